import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test";

import { startWatchdog, watchdogEnabled } from "../../src/activation/index.ts";
import { logged, refusal } from "../support/checks.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";

/** Expects signs of life, of this process unless another is given. */
function expectPings(WATCHDOG_USEC: string, WATCHDOG_PID = String(process.pid)): void {
  Object.assign(process.env, { WATCHDOG_USEC, WATCHDOG_PID });
}

afterEach(() => {
  expect(process.env).not.toHaveProperty("WATCHDOG_USEC");
  expect(process.env).not.toHaveProperty("WATCHDOG_PID");
});

describe("watchdogEnabled", () => {
  test("returns the interval in microseconds, at each call", () => {
    expectPings("3000000");
    expect(watchdogEnabled()).toBe(3_000_000);
    expect(watchdogEnabled()).toBe(3_000_000);
    // Without WATCHDOG_PID it is for whoever reads it.
    process.env["WATCHDOG_USEC"] = "1";
    expect(watchdogEnabled()).toBe(1);
  });

  test("returns nothing if another process is meant", () => {
    expectPings("3000000", "1");
    expect(watchdogEnabled()).toBeUndefined();
    process.env["WATCHDOG_PID"] = String(process.pid);
    expect(watchdogEnabled()).toBeUndefined();
  });

  test("refuses a text that is no number", () => {
    for (const usec of ["", "0", "-1", "x", "18446744073709551615"]) {
      expectPings(usec);
      expect(refusal(watchdogEnabled)).toMatch(
        /^78: WATCHDOG_USEC is ".*", which is not a number of microseconds: /,
      );
    }
    expectPings("1", "x");
    expect(refusal(watchdogEnabled)).toMatch(/^78: WATCHDOG_PID is "x", which is not a pr/);
  });
});

describe("startWatchdog", () => {
  let receiver: NotifyReceiver;
  beforeEach(() => {
    jest.useFakeTimers();
    receiver = new NotifyReceiver();
    process.env["NOTIFY_SOCKET"] = receiver.address;
  });
  afterEach(() => {
    jest.clearAllTimers();
    jest.useRealTimers();
    receiver.close();
  });

  /** The pings that came meanwhile. */
  function pings(milliseconds: number): string[] {
    jest.advanceTimersByTime(milliseconds);
    const came: string[] = [];
    for (let it = receiver.poll(); it !== undefined; it = receiver.poll()) came.push(it.text);
    return came;
  }

  test("sends WATCHDOG=1 at half the interval, and keeps no process alive", () => {
    expectPings("400000");
    expect(startWatchdog()?.hasRef()).toBe(false);
    expect(pings(199)).toEqual([]);
    expect(pings(1)).toEqual(["WATCHDOG=1\n"]);
    expect(pings(199)).toEqual([]);
    expect(pings(401)).toEqual(Array(3).fill("WATCHDOG=1\n"));
  });

  test("sends them after a call of watchdogEnabled, too, and does nothing at a second call", () => {
    expectPings("400000");
    expect(watchdogEnabled()).toBe(400_000);
    expect(startWatchdog()).toBeDefined();
    expect(startWatchdog()).toBeUndefined();
    expect(pings(200)).toEqual(["WATCHDOG=1\n"]);
  });

  test("sends none if none are expected", () => {
    expectPings("400000", "1");
    expect(startWatchdog()).toBeUndefined();
    expect(jest.getTimerCount()).toBe(0);
  });

  test("sends none before its time if the interval is longer than any timer's", () => {
    expectPings("9007199254740991");
    startWatchdog();
    expect(pings(5)).toEqual([]);
    expect(pings(0x7fffffff)).toEqual(["WATCHDOG=1\n"]);
  });

  test("warns once of a failure to send, and goes on", async () => {
    expectPings("400000");
    process.env["NOTIFY_SOCKET"] = "/nonexistent/notify";
    startWatchdog();
    const output = await logged(() => expect(pings(400)).toEqual([]));
    expect(output).toMatch(/^cannot notify [^\n]*\(ENOENT\)\n$/);
    process.env["NOTIFY_SOCKET"] = receiver.address;
    expect(await logged(() => expect(pings(200)).toEqual(["WATCHDOG=1\n"]))).toBe("");
  });
});
