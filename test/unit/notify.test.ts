import { afterEach, beforeEach, describe, expect, mock, spyOn, test } from "bun:test";
import { randomUUID } from "node:crypto";
import { fstatSync, readFileSync, rmSync } from "node:fs";

import { type Assignments, notify, notifyEnabled } from "../../src/activation/index.ts";
import { monotonicMicroseconds } from "../../src/activation/linux/libc.ts";
import { descriptors, logged, refusal } from "../support/checks.ts";
import { run } from "../support/daemon.ts";
import { freshPath } from "../support/listening.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import { close, pipe } from "../support/sockets.ts";
import { cleansUp } from "../support/started.ts";
import { EMULATED } from "../support/until.ts";

let receiver: NotifyReceiver;

/** Makes an address the service manager's. */
function manager(address: string): void {
  process.env["NOTIFY_SOCKET"] = address;
}

beforeEach(() => {
  receiver = new NotifyReceiver();
  manager(receiver.address);
  notify({ ready: true });
  receiver.poll();
});
afterEach(() => {
  mock.restore();
  receiver.close();
});
cleansUp();

/** The datagram that a notification makes. */
function sent(...what: Parameters<typeof notify>): string | undefined {
  expect(notify(...what)).toBe(true);
  return receiver.poll()?.text;
}

/** Expects that a notification is not sent, and returns the line that is logged about it. */
async function failure(...what: Parameters<typeof notify>): Promise<string> {
  return await logged(() => expect(notify(...what)).toBe(false));
}

/** The one line that a program of its own prints: an address is kept for the life of a process. */
async function printed(variables: Record<string, string>, program: string): Promise<string> {
  const script = `import { notify, notifyEnabled } from "./src/activation/index.ts";\n${program}`;
  const { status, stdout, stderr } = await run(script, variables);
  expect([status, stderr]).toEqual([0, ""]);
  return stdout.trimEnd();
}

test("notify does nothing if there is nobody to notify", async () => {
  const program = "console.log(notifyEnabled(), notify({ ready: true }))";
  expect(await printed({}, program)).toBe("false false");
});

test("without libc nothing is sent, and one line names the remedy", async () => {
  const script = `
    import { notify } from "./src/activation/index.ts";
    const answers = [notify({ ready: true }), notify({ reloading: true }), notify({ watchdog: true })];
    console.log(...answers);`;
  const variables = { NOTIFY_SOCKET: receiver.address, BUN_JSC_useJIT: "0" };
  const { status, stdout, stderr } = await run(script, variables);
  expect([status, stdout]).toEqual([0, "false false false\n"]);
  expect(stderr).toMatch(
    /^cannot notify .*: cannot call libc, .*: unset BUN_JSC_useJIT \(it is "0"\)\n$/,
  );
});

test("a reload without a manager needs no libc", async () => {
  const program = "console.log(notify({ reloading: true }))";
  expect(await printed({ BUN_JSC_useJIT: "0" }, program)).toBe("false");
});

test("a program whose descriptors are all in use goes on, without its notifications", async () => {
  const script = `
    import { closeSync, openSync } from "node:fs";
    import { notify } from "./src/activation/index.ts";
    import { keepNotifySocket } from "./src/activation/notify/notify.ts";
    const open = [];
    try { for (;;) open.push(openSync("/dev/null")); } catch {}
    keepNotifySocket();
    const full = notify({ ready: true });
    closeSync(open.pop());
    console.log(full, notify({ status: "up" }));`;
  const { status, stdout, stderr } = await run(script, { NOTIFY_SOCKET: receiver.address }, 64);
  expect([status, stdout]).toEqual([0, "false true\n"]);
  expect(stderr).toMatch(
    /^cannot notify .*: socket failed, [^\n]*\(EMFILE\): raise LimitNOFILE= [^\n]*\n$/,
  );
  expect([receiver.poll()?.text, receiver.poll()]).toEqual(["STATUS=up\n", undefined]);
});

test("the first call takes NOTIFY_SOCKET out of the environment, and keeps it", () => {
  expect(notifyEnabled()).toBe(true);
  expect(process.env).not.toHaveProperty("NOTIFY_SOCKET");
  expect(notifyEnabled()).toBe(true);
  expect(sent({ ready: true })).toBe("READY=1\n");
});

const ASSIGNMENTS: [Assignments, string][] = [
  [{ ready: true }, "READY=1"],
  [{ stopping: true }, "STOPPING=1"],
  [{ status: "50 % of ü" }, "STATUS=50 % of ü"],
  [{ status: "" }, "STATUS="],
  [{ notifyAccess: "all" }, "NOTIFYACCESS=all"],
  [{ errno: 2 }, "ERRNO=2"],
  [{ busError: "org.example.Error" }, "BUSERROR=org.example.Error"],
  [{ varlinkError: "org.example.Error" }, "VARLINKERROR=org.example.Error"],
  [{ exitStatus: 0 }, "EXIT_STATUS=0"],
  [{ mainPid: 4711, mainPidfdId: 2n ** 64n - 1n }, `MAINPID=4711\nMAINPIDFDID=${2n ** 64n - 1n}`],
  [{ watchdog: true }, "WATCHDOG=1"],
  [{ watchdog: "trigger" }, "WATCHDOG=trigger"],
  [{ watchdogUsec: 20_000_000 }, "WATCHDOG_USEC=20000000"],
  [{ extendTimeoutUsec: 1 }, "EXTEND_TIMEOUT_USEC=1"],
  [{ fdStoreRemove: true, fdName: "a b" }, "FDSTOREREMOVE=1\nFDNAME=a b"],
  [{ fdPoll: false }, "FDPOLL=0"],
  [{ restartReset: true }, "RESTART_RESET=1"],
  [{ custom: { X_EXAMPLE_1: "a=b", X_2: "" } }, "X_EXAMPLE_1=a=b\nX_2="],
  [{ status: "up", ready: true }, "READY=1\nSTATUS=up"],
];
test("notify sends every assignment of sd_notify(3), each on a line", () => {
  for (const [notification, datagram] of ASSIGNMENTS)
    expect(sent(notification)).toBe(`${datagram}\n`);
});

test("a reload is sent with this moment of CLOCK_MONOTONIC, in microseconds", () => {
  const earliest = monotonicMicroseconds();
  const datagram = sent({ reloading: true }) ?? "";
  const usec = BigInt(/^RELOADING=1\nMONOTONIC_USEC=(\d+)\n$/.exec(datagram)?.[1] ?? "0");
  expect([usec >= earliest, usec <= monotonicMicroseconds()]).toEqual([true, true]);
});

test("a manager that is gone is a warning, once until there is one again", async () => {
  const path = new NotifyReceiver(freshPath());
  manager(path.address);
  expect(notify({ ready: true })).toBe(true);
  expect(path.poll()?.text).toBe("READY=1\n");
  path.close();
  const warning = RegExp(
    `^cannot notify systemd at NOTIFY_SOCKET "${path.address}": [^\n]*\\(ECONNREFUSED\\)\n$`,
  );
  expect(await failure({ ready: true })).toMatch(warning);
  expect(await failure({ ready: true })).toBe("");
  expect(await failure({ stopping: true })).toBe("");
  rmSync(path.address);
  const next = new NotifyReceiver(path.address);
  expect(await logged(() => notify({ ready: true }))).toBe("");
  expect(next.poll()?.text).toBe("READY=1\n");
  next.close();
  expect(await failure({ ready: true })).toMatch(warning);
  rmSync(path.address);
});

test("descriptors are sent along, in order and 253 at most, and stay open here", () => {
  const [reads, writes] = pipe();
  const what = (fd: number) => [fstatSync(fd).ino, readFileSync(`/proc/self/fdinfo/${fd}`, "utf8")];
  for (const fds of [[reads, writes, reads], Array<number>(253).fill(writes)]) {
    expect(notify({ fdStore: true, fdName: "pipe", fdPoll: false }, { fds })).toBe(true);
    const received = receiver.poll();
    expect(received?.text).toBe("FDSTORE=1\nFDNAME=pipe\nFDPOLL=0\n");
    expect(received?.fds.map(what)).toEqual(fds.map(what));
    received?.fds.forEach(close);
  }
  expect(notify({ mainPidfd: true }, { fds: [reads] })).toBe(true);
  const received = receiver.poll();
  expect(received?.text).toBe("MAINPIDFD=1\n");
  received?.fds.forEach(close);
  for (const fd of [reads, writes]) close(fd);
});

// The processes of the emulator are not those of the kernel that checks them.
test.skipIf(EMULATED)(
  "notify sends for another process if that is allowed, and for none that does not exist",
  async () => {
    const [user, group] = [process.getuid?.() ?? -1, process.getgid?.() ?? -1];
    const isRoot = user === 0;
    for (const pid of [isRoot ? process.ppid : process.pid, process.pid]) {
      // The credentials come after descriptors, too.
      notify({ fdStore: true }, { fds: [0, 0, 0], pid });
      const received = receiver.poll();
      expect([received?.fds.length, received?.sender]).toEqual([3, [pid, user, group]]);
      received?.fds.forEach(close);
      expect(notify({ ready: true }, { pid })).toBe(true);
      expect(receiver.poll()?.sender).toEqual([pid, user, group]);
    }
    expect(await failure({ ready: true }, { pid: 0x7ffffffe })).toMatch(
      RegExp(`sendmsg failed, .*\\(${isRoot ? "ESRCH" : "EPERM"}\\)\n$`),
    );
  },
);

// The processes of the emulator are not those of the kernel that checks them.
test.skipIf(EMULATED)("READY=1 for another process is not that of this one", async () => {
  const script = `
    import { notify } from "./src/activation/index.ts";
    import { wasReady } from "./src/activation/notify/notify.ts";
    const ready = (pid) => [notify({ ready: true }, { pid }), wasReady()].join();
    console.log(ready(process.ppid), ready(process.pid));`;
  const { status, stdout } = await run(script, { NOTIFY_SOCKET: receiver.address });
  // Only root may send for another process.
  const isRoot = process.getuid?.() === 0;
  expect([status, stdout]).toEqual([0, `${isRoot},false true,true\n`]);
});

const REFUSED: [Assignments, RegExp][] = [
  [
    { status: "one\nREADY=1" },
    /^TypeError: cannot send STATUS="one\\nREADY=1": give one line of text$/,
  ],
  [{ status: "a\0b" }, /^TypeError: cannot send STATUS="a\\u0000b"/],
  [{ busError: "\n" }, /^TypeError: cannot send BUSERROR=/],
  [{ errno: -1 }, /^RangeError: cannot send ERRNO="-1": give a whole number from 0$/],
  [{ watchdogUsec: 1.5 }, /^RangeError: cannot send WATCHDOG_USEC="1.5"/],
  [{ watchdogUsec: 1e21 }, /^RangeError: cannot send WATCHDOG_USEC="1e\+21"/],
  [{ mainPid: Number.NaN }, /^RangeError: cannot send MAINPID="NaN"/],
  [{ fdStoreRemove: true, fdName: "a:b" }, /^TypeError: cannot send FDNAME="a:b"/],
  [{ fdStoreRemove: true, fdName: "" }, /^TypeError: cannot send FDNAME=""/],
  [{ fdStoreRemove: true }, /^TypeError: cannot send FDSTOREREMOVE=1 without a name: give fdName$/],
  [
    { mainPidfd: true },
    /^TypeError: cannot send MAINPIDFD=1 without its descriptor: give \{ fds: \[fd\] \}/,
  ],
  [{ mainPidfdId: 5n }, /^TypeError: cannot send MAINPIDFDID= without a process id: give mainPid$/],
  [
    { fdStore: true },
    /^TypeError: cannot send FDSTORE=1 without a descriptor: give \{ fds: \[fd\] \} as the second argument$/,
  ],
  [
    { custom: { "X_A\nB": "" } },
    /^TypeError: cannot send "X_A\\nB": give a name of X_ and then A-Z, 0-9 or _$/,
  ],
  [{ custom: { X_A: "\n" } }, /^TypeError: cannot send X_A=/],
  [{}, /^TypeError: cannot send an empty notification: set at least one field$/],
];
test.each(REFUSED)("notify(%p) is refused, and nothing sent", (notification, message) => {
  expect(refusal(() => notify(notification))).toMatch(message);
  expect(receiver.poll()).toBeUndefined();
});

test("the 4,096 bytes that systemd reads are sent, and one more is refused", () => {
  const status = "x".repeat(4096 - "STATUS=\n".length);
  expect(sent({ status })?.length).toBe(4096);
  const wide = "ü".repeat(status.length / 2);
  expect(Buffer.byteLength(sent({ status: wide }) ?? "")).toBe(4096);
  for (const long of [`${status}x`, `${wide}x`])
    expect(refusal(() => notify({ status: long }))).toMatch(
      /^RangeError: the notification has 4097 bytes, and systemd reads at most 4096: shorten /,
    );
  expect(receiver.poll()).toBeUndefined();
});

test("all notifications are sent from one socket", () => {
  expect(sent({ ready: true })).toBe("READY=1\n");
  const before = descriptors();
  expect(sent({ stopping: true })).toBe("STOPPING=1\n");
  expect(descriptors()).toEqual(before);
});

test("more than 253 descriptors are refused", () => {
  const fds = Array<number>(254).fill(0);
  expect(refusal(() => notify({ fdStore: true }, { fds }))).toBe(
    "RangeError: cannot send 254 descriptors at once: give at most 253",
  );
  expect(receiver.poll()).toBeUndefined();
});

test.each([
  ["", /"": this is no address: set an absolute path, or @ and a name\n$/],
  ["relative", /"relative": this is no address: /],
  ["@", /"@": its path has 1 bytes, but it needs 2 to 107\n$/],
  [`@${"x".repeat(107)}`, /: its path has 108 bytes, but it needs 2 to 107\n$/],
  [`/${"ü".repeat(54)}`, /: its path has 109 bytes, but it needs 2 to 107\n$/],
  ["vsock:2:1234", /"vsock:2:1234": AF_VSOCK is not supported: use AF_UNIX\n$/],
  ["vsock-stream:2:1234", /AF_VSOCK is not supported/],
] as const)("the address %j is a warning", async (address, message) => {
  manager(address);
  expect(await failure({ ready: true })).toMatch(message);
});

test("the longest addresses are reached, and the shortest is tried", async () => {
  manager("@~");
  expect(await failure({ ready: true })).toInclude("(ECONNREFUSED)");
  for (const address of [`@${randomUUID().padEnd(106, "x")}`, freshPath().padEnd(107, "y")]) {
    const reached = new NotifyReceiver(address);
    manager(address);
    expect(notify({ ready: true })).toBe(true);
    expect(reached.poll()?.text).toBe("READY=1\n");
    reached.close();
    if (!address.startsWith("@")) rmSync(address);
  }
});

test("notify does not wait if nobody receives", async () => {
  const sleep = spyOn(Bun, "sleepSync");
  manager("/nonexistent/notify");
  expect(await failure({ ready: true })).toMatch(
    /^cannot notify systemd at NOTIFY_SOCKET "\/nonexistent\/notify": sendmsg failed, .*\(ENOENT\)\n$/,
  );
  expect(sleep).not.toHaveBeenCalled();
});

test("a descriptor that is not open is the caller's mistake, whatever else is wrong", () => {
  for (const address of [receiver.address, "/nonexistent/notify"]) {
    manager(address);
    expect(refusal(() => notify({ fdStore: true }, { fds: [0, 987_654] }))).toBe(
      "RangeError: cannot send descriptor 987654: give the number of an open descriptor",
    );
  }
  expect(receiver.poll()).toBeUndefined();
});

test("a caller's mistake throws also without a manager", async () => {
  const program = `
    const mistakes = [{}, { status: "a\\nb" }, { errno: -1 }, { status: "x".repeat(4096) }, { fdStore: true }];
    const kind = (call) => { try { return call(); } catch ({ name }) { return name; } };
    const options = [{ fds: [-1] }, { fds: ["3"] }, { pid: 0 }];
    console.log(...mistakes.map((it) => kind(() => notify(it))));
    console.log(...options.map((it) => kind(() => notify({ ready: true }, it))));`;
  expect(await printed({}, program)).toBe(
    "TypeError TypeError RangeError RangeError TypeError\nRangeError TypeError RangeError",
  );
});

describe("with a manager that does not read", () => {
  /** Fills its queue, up to the first notification that finds no room. Returns the warning. */
  async function fill(): Promise<string> {
    return await logged(() => {
      while (notify({ ready: true }));
    });
  }

  test("notify waits for 100 milliseconds and fails, and does not wait again", async () => {
    const sleep = spyOn(Bun, "sleepSync");
    expect(await fill()).toMatch(/: sendmsg failed, .*\(EAGAIN\)\n$/);
    const waits = sleep.mock.calls.length;
    expect(waits).toBeWithin(10, 101);
    for (let n = 0; n < 1000; n++) expect(await failure({ watchdog: true })).toBe("");
    expect(sleep).toHaveBeenCalledTimes(waits);
    // When there was room, the next one waits.
    receiver.poll();
    expect(notify({ stopping: true })).toBe(true);
    expect(await failure({ ready: true })).toInclude("(EAGAIN)");
    expect(sleep.mock.calls.length).toBeGreaterThan(waits);
  });

  test("notify waits also after a failure of another kind", async () => {
    await fill();
    receiver.poll();
    expect(notify({ ready: true })).toBe(true);
    expect(await failure({ ready: true }, { pid: 0x7ffffffe })).toMatch(/\((ESRCH|EPERM)\)/);
    const sleep = spyOn(Bun, "sleepSync");
    expect(await failure({ stopping: true })).toBe("");
    expect(sleep.mock.calls.length).toBeGreaterThan(10);
  });

  test("notify goes on as soon as there is room", async () => {
    const sleep = spyOn(Bun, "sleepSync");
    await fill();
    receiver.poll();
    expect(notify({ ready: true })).toBe(true);
    sleep.mockReset().mockImplementationOnce(() => void receiver.poll());
    expect(notify({ stopping: true })).toBe(true);
    expect(sleep).toHaveBeenCalledTimes(1);
  });
});
