import { afterEach, beforeEach, describe, expect, mock, spyOn, test } from "bun:test";
import { randomUUID } from "node:crypto";
import { fstatSync, readFileSync, rmSync } from "node:fs";

import { type Notification, notify, notifyEnabled } from "../../src/activation/index.ts";
import { monotonicMicroseconds } from "../../src/activation/libc.ts";
import { descriptors, nothingLeft, refusal, thrown } from "../support/checks.ts";
import { execute } from "../support/daemon.ts";
import { freshPath } from "../support/listening.ts";
import { lines } from "../support/lines.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import { close, pipe } from "../support/sockets.ts";

let receiver: NotifyReceiver;
let before: Map<string, number>;

/** Makes an address the service manager's. */
function manager(address: string): void {
  process.env["NOTIFY_SOCKET"] = address;
}

beforeEach(() => {
  receiver = new NotifyReceiver(`@${randomUUID()}`);
  manager(receiver.address);
  notify({ ready: true });
  receiver.poll();
  before = descriptors();
});
afterEach(async () => {
  mock.restore();
  await nothingLeft(before);
  receiver.close();
});

/** The datagram that a notification makes. */
function sent(...what: Parameters<typeof notify>): string | undefined {
  expect(notify(...what)).toBe(true);
  return receiver.poll()?.text;
}

/** The one line that a program of its own prints: an address is kept for the life of a process. */
async function printed(variables: Record<string, string>, program: string): Promise<unknown> {
  const script = `import { notify, notifyEnabled } from "./src/activation/index.ts";\n${program}`;
  await using child = execute(process.execPath, [], variables, ["-e", script]);
  for await (const line of lines(child.process.stdout)) return line;
  throw new Error(`it printed nothing: ${child.stderr}`);
}

test("notify does nothing if there is nobody to notify", async () => {
  const program = "console.log(notifyEnabled(), notify({ ready: true }))";
  expect(await printed({}, program)).toBe("false false");
});

test("notify says what to do if libc cannot be called", async () => {
  const program = `
    try { notify({ ready: true }) } catch ({ status, message }) { console.log(status, message) }`;
  const variables = { NOTIFY_SOCKET: receiver.address, BUN_JSC_useJIT: "0" };
  expect(await printed(variables, program)).toMatch(
    /^71 cannot notify .*: cannot call libc, .*: leave BUN_JSC_useJIT unset, which is "0"$/,
  );
});

test("the first call takes NOTIFY_SOCKET out of the environment, and keeps it", () => {
  expect(notifyEnabled()).toBe(true);
  expect(process.env).not.toHaveProperty("NOTIFY_SOCKET");
  expect(notifyEnabled()).toBe(true);
  expect(sent({ ready: true })).toBe("READY=1\n");
});

const ASSIGNMENTS: [Notification, string][] = [
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
  [{ mainPidfd: true }, "MAINPIDFD=1"],
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

test("notify reaches a path, and says that nobody is behind it any more", () => {
  const path = new NotifyReceiver(freshPath());
  manager(path.address);
  expect(notify({ ready: true })).toBe(true);
  expect(path.poll()?.text).toBe("READY=1\n");
  path.close();
  expect(thrown(() => notify({ ready: true }))).toEqual(refusal(71, /refused/, "ECONNREFUSED"));
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
  for (const fd of [reads, writes]) close(fd);
});

test("notify sends for another process if that is allowed, and for none that does not exist", () => {
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
  expect(thrown(() => notify({ ready: true }, { pid: 0x7ffffffe }))).toEqual(
    refusal(71, /sendmsg failed/, isRoot ? "ESRCH" : "EPERM"),
  );
});

const REFUSED: [Notification, RegExp][] = [
  [{ status: "one\nREADY=1" }, /^cannot notify STATUS="one\\nREADY=1": give one line of text$/],
  [{ status: "a\0b" }, /^cannot notify STATUS="a\\u0000b"/],
  [{ busError: "\n" }, /^cannot notify BUSERROR=/],
  [{ errno: -1 }, /^cannot notify ERRNO="-1": give a whole number from 0$/],
  [{ watchdogUsec: 1.5 }, /^cannot notify WATCHDOG_USEC="1.5"/],
  [{ watchdogUsec: 1e21 }, /^cannot notify WATCHDOG_USEC="1e\+21"/],
  [{ mainPid: Number.NaN }, /^cannot notify MAINPID="NaN"/],
  [{ fdStoreRemove: true, fdName: "a:b" }, /^cannot notify FDNAME="a:b"/],
  [{ fdStoreRemove: true, fdName: "" }, /^cannot notify FDNAME=""/],
  [{ fdStoreRemove: true }, /^cannot notify FDSTOREREMOVE=1 without a name: give fdName$/],
  [{ fdStore: true }, /^cannot notify FDSTORE=1 with no descriptor: give some as fds$/],
  [{ custom: { "X_A\nB": "" } }, /^cannot notify "X_A\\nB": a name of your own is X_ and/],
  [{ custom: { X_A: "\n" } }, /^cannot notify X_A=/],
  [{}, /^cannot notify of nothing: set at least one field$/],
];
test.each(REFUSED)("notify(%j) is refused, and nothing sent", (notification, message) => {
  expect(thrown(() => notify(notification))).toEqual(refusal(78, message));
  expect(receiver.poll()).toBeUndefined();
});

test("the 4,096 bytes that systemd reads are sent, and one more is refused", () => {
  const status = "x".repeat(4096 - "STATUS=\n".length);
  expect(sent({ status })?.length).toBe(4096);
  expect(thrown(() => notify({ status: `${status}x` }))).toEqual(
    refusal(78, /^cannot notify 4097 bytes at once: send at most the 4096 that systemd reads$/),
  );
  expect(receiver.poll()).toBeUndefined();
});

test("all notifications are sent from one socket", () => {
  expect(sent({ ready: true })).toBe("READY=1\n");
  const before = descriptors();
  expect(sent({ stopping: true })).toBe("STOPPING=1\n");
  expect(descriptors()).toEqual(before);
});

test("more than 253 descriptors, and what is no process id, are refused", () => {
  const fds = Array<number>(254).fill(0);
  const many = /^cannot send 254 descriptors at once: give at most 253$/;
  expect(thrown(() => notify({ fdStore: true }, { fds }))).toEqual(refusal(78, many));
  for (const pid of [0, -1, 1.5])
    expect(thrown(() => notify({ ready: true }, { pid }))).toEqual(
      refusal(78, RegExp(`^cannot notify for process ${pid}: give the id of one$`)),
    );
  expect(receiver.poll()).toBeUndefined();
});

test.each([
  ["", /^NOTIFY_SOCKET is "", not an absolute path or @name: set one$/],
  ["relative", /not an absolute path or @name/],
  ["@", /^NOTIFY_SOCKET is "@", 1 bytes long: use 2 to 107$/],
  [`@${"x".repeat(107)}`, /108 bytes long: use 2 to 107$/],
  [`/${"ü".repeat(54)}`, /109 bytes long: use 2 to 107$/],
  ["vsock:2:1234", /AF_VSOCK is not supported, use AF_UNIX$/],
  ["vsock-stream:2:1234", /AF_VSOCK is not supported/],
] as const)("the address %j is refused", (address, message) => {
  manager(address);
  expect(thrown(() => notify({ ready: true }))).toEqual(refusal(78, message));
});

test("the longest addresses are reached, and the shortest is tried", () => {
  manager("@~");
  expect(thrown(() => notify({ ready: true }))).toEqual(refusal(71, /refused/, "ECONNREFUSED"));
  for (const address of [`@${randomUUID().padEnd(106, "x")}`, freshPath().padEnd(107, "y")]) {
    const reached = new NotifyReceiver(address);
    manager(address);
    expect(notify({ ready: true })).toBe(true);
    expect(reached.poll()?.text).toBe("READY=1\n");
    reached.close();
    if (!address.startsWith("@")) rmSync(address);
  }
});

test("notify says that there is no receiver, and that a descriptor is not open", () => {
  const fds = [987_654];
  // There is nothing to wait for.
  const sleep = spyOn(Bun, "sleepSync");
  expect(thrown(() => notify({ fdStore: true }, { fds }))).toEqual(
    refusal(71, /bad file/, "EBADF"),
  );
  manager("/nonexistent/notify");
  const message =
    /^cannot notify the service manager at NOTIFY_SOCKET "\/nonex.*": sendmsg failed, /;
  expect(thrown(() => notify({ ready: true }))).toEqual(refusal(71, message, "ENOENT"));
  expect(sleep).not.toHaveBeenCalled();
});

describe("with a manager that does not read", () => {
  /** Fills its queue: what fails is the first that finds no room. */
  function fill(): unknown {
    for (;;) {
      const error = thrown(() => notify({ ready: true }));
      if (error !== undefined) return error;
    }
  }

  test("notify waits for 100 milliseconds, and fails", () => {
    const sleep = spyOn(Bun, "sleepSync").mockImplementation(() => {});
    expect(fill()).toEqual(refusal(71, /sendmsg failed/, "EAGAIN"));
    const waited = sleep.mock.calls.flat();
    expect(waited.reduce((sum: number, it) => sum + Number(it), 0)).toBe(100);
  });

  test("notify goes on as soon as there is room", () => {
    const sleep = spyOn(Bun, "sleepSync").mockImplementation(() => {});
    fill();
    sleep.mockReset().mockImplementationOnce(() => void receiver.poll());
    expect(notify({ stopping: true })).toBe(true);
    expect(sleep).toHaveBeenCalledTimes(1);
  });
});
