import { dlopen } from "bun:ffi";
import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { randomUUID } from "node:crypto";
import { fstatSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setImmediate as immediate } from "node:timers/promises";

import { notifyBarrier } from "../../src/activation/barrier.ts";
import { takeVariable } from "../../src/activation/environment.ts";
import { type Notification, notify, notifyEnabled } from "../../src/activation/notify.ts";
import { startWatchdog, watchdogEnabled } from "../../src/activation/watchdog.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import { close, pipe } from "../support/sockets.ts";
import { openDescriptors, refusal, thrown } from "../support/listening.ts";

setDefaultTimeout(60_000);

let receiver: NotifyReceiver;

/** Makes an address the service manager's. */
function manager(address: string): void {
  process.env["NOTIFY_SOCKET"] = address;
}

beforeEach(() => {
  receiver = new NotifyReceiver(`@socket-service-${randomUUID()}`);
  manager(receiver.address);
});
afterEach(() => receiver.close());

const { symbols: libc } = dlopen("libc.so.6", {
  clock_gettime: { args: ["i32", "buffer"], returns: "i32" },
});

/** Microseconds of CLOCK_MONOTONIC. */
function monotonic(): number {
  const time = new BigInt64Array(2);
  libc.clock_gettime(1, time);
  return Number(time[0]) * 1e6 + Math.floor(Number(time[1]) / 1000);
}

/** The datagram that a notification makes. */
function sent(...what: Parameters<typeof notify>): string | undefined {
  expect(notify(...what)).toBe(true);
  return receiver.poll()?.text;
}

test("notify does nothing where there is nobody to notify", () => {
  // The address is kept for the life of a process, so that this takes another.
  const script = `
    import { notify, notifyBarrier, notifyEnabled } from "./src/activation/index.ts";
    console.log(notifyEnabled(), notify({ ready: true }), await notifyBarrier(1000));`;
  const { NOTIFY_SOCKET: _, ...env } = process.env;
  const child = Bun.spawnSync([process.execPath, "-e", script], { env });
  expect(child.stdout.toString()).toBe("false false false\n");
});

test("notify says what to do where libc cannot be called", () => {
  const script = `
    import { notify } from "./src/activation/index.ts";
    try { notify({ ready: true }) } catch ({ status, message }) { console.log(status, message) }`;
  const child = Bun.spawnSync([process.execPath, "-e", script], {
    env: { NOTIFY_SOCKET: receiver.address, BUN_JSC_useJIT: "0" },
  });
  expect(child.stdout.toString()).toMatch(
    /^71 cannot notify .*: cannot call libc, .*: allow memory that is writable and executable .*\n$/,
  );
});

describe("notify", () => {
  test("sends every assignment of sd_notify(3), one a line", () => {
    const table: [Notification, string][] = [
      [{ ready: true }, "READY=1"],
      [{ stopping: true }, "STOPPING=1"],
      [{ status: "50 % of ü" }, "STATUS=50 % of ü"],
      [{ status: "" }, "STATUS="],
      [{ notifyAccess: "all" }, "NOTIFYACCESS=all"],
      [{ errno: 2 }, "ERRNO=2"],
      [{ busError: "org.example.Error" }, "BUSERROR=org.example.Error"],
      [{ varlinkError: "org.example.Error" }, "VARLINKERROR=org.example.Error"],
      [{ exitStatus: 0 }, "EXIT_STATUS=0"],
      [{ mainPid: 4711 }, "MAINPID=4711"],
      [
        { mainPid: 4711, mainPidfdId: 2n ** 64n - 1n },
        "MAINPID=4711\nMAINPIDFDID=18446744073709551615",
      ],
      [{ mainPidfd: true }, "MAINPIDFD=1"],
      [{ watchdog: true }, "WATCHDOG=1"],
      [{ watchdog: "trigger" }, "WATCHDOG=trigger"],
      [{ watchdogUsec: 20_000_000 }, "WATCHDOG_USEC=20000000"],
      [{ extendTimeoutUsec: 1 }, "EXTEND_TIMEOUT_USEC=1"],
      [{ fdStoreRemove: true, fdName: "a b" }, "FDSTOREREMOVE=1\nFDNAME=a b"],
      [{ fdPoll: false }, "FDPOLL=0"],
      [{ restartReset: true }, "RESTART_RESET=1"],
      [{ custom: { X_EXAMPLE_1: "a=b" } }, "X_EXAMPLE_1=a=b"],
      [{ status: "up", ready: true }, "READY=1\nSTATUS=up"],
    ];
    for (const [notification, datagram] of table) expect(sent(notification)).toBe(`${datagram}\n`);
  });

  test("takes NOTIFY_SOCKET out of the environment", () => {
    expect(notifyEnabled()).toBe(true);
    expect(process.env["NOTIFY_SOCKET"]).toBeUndefined();
    expect(notifyEnabled()).toBe(true);
  });

  test("sends a reload with this moment of CLOCK_MONOTONIC, in microseconds", () => {
    const before = monotonic();
    const datagram = sent({ reloading: true }) ?? "";
    const usec = Number(/^RELOADING=1\nMONOTONIC_USEC=(\d+)\n$/.exec(datagram)?.[1]);
    expect(usec).toBeWithin(before, monotonic() + 1);
  });

  test("sends to a path as to an abstract name", () => {
    const path = new NotifyReceiver(join(tmpdir(), `socket-service-${randomUUID()}`));
    manager(path.address);
    expect(notify({ ready: true })).toBe(true);
    expect(path.poll()?.text).toBe("READY=1\n");
    path.close();
    // Bound, but with nobody behind it.
    expect(thrown(() => notify({ ready: true }))).toEqual(refusal(71, /refused/, "ECONNREFUSED"));
    rmSync(path.address);
  });

  test("sends descriptors along, and keeps its own open", () => {
    const [reads, writes] = pipe();
    expect(notify({ fdStore: true, fdName: "pipe", fdPoll: false }, { fds: [reads, writes] })).toBe(
      true,
    );
    const { text, fds } = receiver.poll() ?? { text: "", fds: [] };
    expect(text).toBe("FDSTORE=1\nFDNAME=pipe\nFDPOLL=0\n");
    expect(fds.map((fd) => fstatSync(fd).ino)).toEqual(Array(2).fill(fstatSync(reads).ino));
    for (const fd of [...fds, reads, writes]) close(fd);
  });

  test("sends for another process, as one of those that exist", () => {
    expect(sent({ ready: true }, { pid: process.pid })).toBe("READY=1\n");
    expect(thrown(() => notify({ ready: true }, { pid: 0x7ffffffe }))).toEqual(
      refusal(71, /sendmsg failed/),
    );
  });

  test("refuses what could not be sent as it is", () => {
    const refused: [Notification, RegExp][] = [
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
    for (const [notification, message] of refused)
      expect(thrown(() => notify(notification))).toEqual(refusal(78, message));
    const many = Array<number>(254).fill(0);
    expect(thrown(() => notify({ fdStore: true }, { fds: many }))).toEqual(
      refusal(78, /at most 253/),
    );
    for (const pid of [0, -1, 1.5])
      expect(thrown(() => notify({ ready: true }, { pid }))).toEqual(
        refusal(78, /^cannot notify for/),
      );
    expect(receiver.poll()).toBeUndefined();
  });

  test("sends 253 descriptors at once", () => {
    expect(notify({ fdStore: true }, { fds: Array<number>(253).fill(0) })).toBe(true);
  });

  test("refuses an address of another kind, and reaches the longest there is", () => {
    for (const [address, message] of [
      ["", /not an absolute path or @name: set one$/],
      ["relative", /not an absolute path or @name/],
      ["@", /1 bytes long: use 2 to 107$/],
      [`@${"x".repeat(107)}`, /108 bytes long: use 2 to 107$/],
      [`/${"x".repeat(107)}`, /108 bytes long: use 2 to 107$/],
      ["vsock:2:1234", /AF_VSOCK is not supported, use AF_UNIX$/],
      ["vsock-stream:2:1234", /AF_VSOCK is not supported/],
    ] as const) {
      manager(address);
      expect(thrown(() => notify({ ready: true }))).toEqual(refusal(78, message));
    }
    for (const address of [
      `@${"x".repeat(106)}`,
      join(tmpdir(), "y".repeat(106 - tmpdir().length)),
    ]) {
      const longest = new NotifyReceiver(address);
      manager(address);
      expect(notify({ ready: true })).toBe(true);
      expect(longest.poll()?.text).toBe("READY=1\n");
      longest.close();
      rmSync(address, { force: true });
    }
  });

  test("says that nobody receives, and that a descriptor is not open", () => {
    manager("/nonexistent/notify");
    expect(thrown(() => notify({ ready: true }))).toEqual(
      refusal(
        71,
        /^cannot notify the service manager at NOTIFY_SOCKET "\/nonexistent\/notify": sendmsg failed, /,
        "ENOENT",
      ),
    );
    manager(receiver.address);
    expect(thrown(() => notify({ fdStore: true }, { fds: [987654] }))).toEqual(
      refusal(71, /bad file descriptor/, "EBADF"),
    );
  });

  test("waits a moment and no longer for a manager that does not read", () => {
    let error: unknown;
    let failed = 0;
    while (error === undefined) {
      failed = performance.now();
      error = thrown(() => notify({ ready: true }));
    }
    expect(error).toEqual(refusal(71, /sendmsg failed/, "EAGAIN"));
    expect(performance.now() - failed).toBeWithin(50, 1000);
  });
});

describe("notifyBarrier", () => {
  test("resolves when the descriptor that it sent is closed", async () => {
    const before = openDescriptors();
    let done = false;
    const barrier = notifyBarrier(10_000).finally(() => (done = true));
    const { text, fds } = await receiver.next();
    expect(text).toBe("BARRIER=1");
    expect(fds.length).toBe(1);
    // The event loop runs meanwhile.
    await immediate();
    expect(done).toBe(false);
    // Nothing but the close counts.
    for (const fd of fds) writeSync(fd, "?");
    await Bun.sleep(5);
    expect(done).toBe(false);
    fds.forEach(close);
    expect(await barrier).toBe(true);
    expect(openDescriptors()).toBe(before);
  });

  test.each([0, 20])("rejects after %d milliseconds", async (timeout) => {
    const before = openDescriptors();
    const error = await notifyBarrier(timeout).catch((error: unknown) => error);
    expect(error).toEqual(
      refusal(71, /^the service manager did not come to a barrier/, "ETIMEDOUT"),
    );
    receiver.poll()?.fds.forEach(close);
    expect(openDescriptors()).toBe(before);
  });

  test("waits for ever where it is told to", async () => {
    const barrier = notifyBarrier(Number.POSITIVE_INFINITY);
    (await receiver.next()).fds.forEach(close);
    expect(await barrier).toBe(true);
  });

  test("rejects where nobody receives", async () => {
    const before = openDescriptors();
    manager("/nonexistent/notify");
    const error = await notifyBarrier(1000).catch((error: unknown) => error);
    expect(error).toEqual(refusal(71, /"\/nonexistent\/notify"/, "ENOENT"));
    expect(openDescriptors()).toBe(before);
  });
});

describe("the watchdog", () => {
  const set = (usec?: string, pid?: string) => {
    for (const name of ["WATCHDOG_USEC", "WATCHDOG_PID"]) takeVariable(name);
    if (usec !== undefined) process.env["WATCHDOG_USEC"] = usec;
    if (pid !== undefined) process.env["WATCHDOG_PID"] = pid;
  };

  test("is expected of this process only, with its interval in microseconds", () => {
    set();
    expect(watchdogEnabled()).toBeUndefined();
    set("3000000");
    expect(watchdogEnabled()).toBe(3_000_000);
    expect(process.env["WATCHDOG_USEC"]).toBeUndefined();
    set("3000000", String(process.pid));
    expect(watchdogEnabled()).toBe(3_000_000);
    expect(process.env["WATCHDOG_PID"]).toBeUndefined();
    set("3000000", "1");
    expect(watchdogEnabled()).toBeUndefined();
    for (const usec of ["", "0", "-1", "x", "18446744073709551615"]) {
      set(usec);
      expect(thrown(watchdogEnabled)).toEqual(refusal(78, /^WATCHDOG_USEC is "/));
    }
    set("1", "x");
    expect(thrown(watchdogEnabled)).toEqual(refusal(78, /^WATCHDOG_PID is "x"/));
  });

  test("gets a sign of life at half the interval, and goes on after a failure", async () => {
    set();
    expect(startWatchdog(() => {})).toBeUndefined();
    set("400000");
    manager("/nonexistent/notify");
    const failed = Promise.withResolvers<unknown>();
    const timer = startWatchdog(failed.resolve);
    expect(await failed.promise).toEqual(refusal(71, /ENOENT/, "ENOENT"));
    manager(receiver.address);
    const began = performance.now();
    for (let ping = 0; ping < 3; ping++) expect((await receiver.next()).text).toBe("WATCHDOG=1\n");
    expect(performance.now() - began).toBeWithin(350, 1150);
    clearInterval(timer);
  });

  test("takes an interval longer than any timer", () => {
    set("9007199254740991");
    const timer = startWatchdog(() => {});
    expect(timer?.hasRef()).toBe(false);
    clearInterval(timer);
  });
});

describe("nothing leaks", () => {
  /** Descriptors, and resident memory in MiB once garbage is gone. */
  function held(): [descriptors: number, memory: number] {
    Bun.gc(true);
    return [openDescriptors(), process.memoryUsage.rss() / 2 ** 20];
  }

  /** Runs once to warm up, and then compares what is held before and after `times`. */
  async function repeat(times: number, one: () => unknown): Promise<void> {
    for (let n = 0; n < 200; n++) await one();
    const [descriptors, memory] = held();
    for (let n = 0; n < times; n++) await one();
    const after = held();
    expect(after[0]).toBe(descriptors);
    expect(after[1] - memory).toBeLessThan(16);
  }

  test("in 10,000 notifications", () =>
    repeat(10_000, () => {
      notify({ ready: true, status: "working" });
      receiver.poll();
    }));

  test("in 1,000 notifications with descriptors", () =>
    repeat(1000, () => {
      notify({ fdStore: true }, { fds: [0, 0] });
      receiver.poll()?.fds.forEach(close);
    }));

  test("in 1,000 barriers", () =>
    repeat(1000, async () => {
      const barrier = notifyBarrier(10_000);
      let datagram = receiver.poll();
      for (; datagram === undefined; datagram = receiver.poll()) await immediate();
      datagram.fds.forEach(close);
      await barrier;
    }));

  test("in 1,000 sends that fail", () => {
    manager("/nonexistent/notify");
    return repeat(1000, () => thrown(() => notify({ fdStore: true }, { fds: [0] })));
  });
});
