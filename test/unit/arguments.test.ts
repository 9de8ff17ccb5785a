/* Wrong arguments are refused, and nothing is sent: not every caller is type-checked. */
import { afterAll, describe, expect, test } from "bun:test";

import * as activation from "../../src/activation/index.ts";
import { refusal, rejection } from "../support/checks.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import * as sockets from "../support/sockets.ts";
import { AF_INET } from "../support/sockets.ts";

const receiver = new NotifyReceiver();
process.env["NOTIFY_SOCKET"] = receiver.address;
afterAll(() => receiver.close());

/** Calls a function of the module as code does that is not type-checked. */
function call(name: keyof typeof activation, ...args: readonly unknown[]): unknown {
  const { [name]: called } = activation;
  if (typeof called !== "function") throw new Error(`${name} is no function`);
  return Reflect.apply(called, undefined, args);
}

const handlers = { data() {} };
/** The name of the error for a value: a number is out of range, anything else of the wrong type. */
const nameFor = (value: unknown) =>
  ["number", "bigint"].includes(typeof value) ? "RangeError" : "TypeError";
/** The same where a bigint is of the wrong type. */
const mistake = (value: unknown) => (typeof value === "number" ? "RangeError" : "TypeError");
/** How a message shows a value. */
const shown = (value: unknown) =>
  typeof value === "string" || typeof value === "object" ? JSON.stringify(value) : String(value);

test.each([
  -1,
  1.5,
  Number.NaN,
  Number.POSITIVE_INFINITY,
  2 ** 31,
  2 ** 32 + 3,
  "3",
  { fd: 3, name: "http" },
  null,
  undefined,
])("%p is no descriptor", async (fd) => {
  const wrong =
    typeof fd === "number"
      ? `78: descriptor ${fd} is not open: `
      : `TypeError: fd is ${shown(fd)}: give the number of a descriptor`;
  expect(refusal(() => call("describe", fd))).toStartWith(wrong);
  expect(await rejection(call("adoptConnection", fd, handlers))).toStartWith(wrong);
  expect(refusal(() => call("notify", { fdStore: true }, { fds: [0, fd] }))).toBe(
    `${nameFor(fd)}: cannot send descriptor ${fd}: give the number of an open descriptor`,
  );
  expect(receiver.poll()).toBeUndefined();
});

const listening = sockets.listening(AF_INET, 1);
afterAll(() => sockets.close(listening));

test.each([-1, 987_654, 1.5, Number.NaN, 2 ** 32 + listening])("no server is on %p", (fd) => {
  const wrong = `78: descriptor ${fd} is not open: give the number of an open descriptor`;
  const fetch = () => new Response();
  expect(refusal(() => activation.listen({ fd, socket: handlers }))).toBe(wrong);
  expect(refusal(() => activation.serve({ fd, fetch }))).toBe(wrong);
});

test.each([0, -1, 1.5, Number.NaN, 2 ** 31, 2 ** 32 + 1, "1", 1n])("%p is no process", (pid) => {
  expect(refusal(() => call("notify", { ready: true }, { pid }))).toBe(
    `${nameFor(pid)}: cannot send for process ${pid}: give a process id, from 1 on`,
  );
  expect(refusal(() => call("notify", { mainPid: pid }))).toBe(
    `${nameFor(pid)}: cannot send MAINPID="${pid}": give a process id, from 1 on`,
  );
  expect(receiver.poll()).toBeUndefined();
});

describe.each([
  ["drain", "grace", "milliseconds from 0 on"],
  ["drain", "timeout", "milliseconds from 0 on"],
  ["whenIdle", "timeout", "milliseconds above 0"],
] as const)("%s refuses a %s", (name, option, wanted) => {
  test.each([-1, Number.NaN, "1", null, 1n])("of %p", (value) => {
    using server = activation.serve({ port: 0, fetch: () => new Response() });
    expect(refusal(() => call(name, server, { [option]: value }))).toBe(
      `${mistake(value)}: ${option} is ${shown(value)}: give ${wanted}`,
    );
  });
});

test.each([-1, Number.NaN, "1", null, 1n])(
  "notifyBarrier refuses a timeout of %p",
  async (value) => {
    expect(await rejection(call("notifyBarrier", value))).toBe(
      `${mistake(value)}: timeout is ${shown(value)}: give milliseconds from 0 on, or Infinity`,
    );
    expect(receiver.poll()).toBeUndefined();
  },
);

test.each([0, -1, 1.5, Number.NaN, "1", null, 1n])(
  "listen refuses maxConnections of %p",
  (maxConnections) => {
    for (const where of [{}, { fd: listening }])
      expect(refusal(() => call("listen", { ...where, maxConnections, socket: handlers }))).toBe(
        `${mistake(maxConnections)}: maxConnections is ${shown(maxConnections)}: give a whole number from 1 on`,
      );
  },
);

test.each([
  {},
  { socket: null },
  { socket: 1 },
  { socket: {} },
  { socket: { ...handlers, open: 5 } },
  { socket: { ...handlers, close: "a" } },
])("listen says the same as Bun.listen of %p", (options) => {
  const where = { hostname: "127.0.0.1", port: 0 };
  const said = refusal(() => Reflect.apply(Bun.listen, Bun, [{ ...where, ...options }]));
  expect(said).toStartWith("TypeError");
  expect(refusal(() => call("listen", { fd: listening, ...options }))).toBe(said);
});

const TRUE = "give true";
const COUNT = "give a whole number from 0";
const LINE = "give one line of text";
const ACCESS = "give none, main, exec or all";
test.each([
  ["ready", 0, `READY="0": ${TRUE}`],
  ["ready", false, `READY="false": ${TRUE}`],
  ["stopping", "yes", `STOPPING="yes": ${TRUE}`],
  ["reloading", 1, `RELOADING="1": ${TRUE}`],
  ["watchdog", "bogus", `WATCHDOG="bogus": ${TRUE}`],
  ["fdPoll", true, 'FDPOLL="true": give false'],
  ["notifyAccess", "bogus", `NOTIFYACCESS="bogus": ${ACCESS}`],
  ["notifyAccess", "", `NOTIFYACCESS="": ${ACCESS}`],
  ["status", 5, `STATUS="5": ${LINE}`],
  ["status", null, `STATUS="null": ${LINE}`],
  ["errno", "2", `ERRNO="2": ${COUNT}`],
  ["mainPidfdId", 2n ** 64n, `MAINPIDFDID="${2n ** 64n}": ${COUNT}`],
  ["fdName", 5, 'FDNAME="5": give 1 to 255 printable ASCII characters, no colon'],
  ["custom", { X_A: 1 }, `X_A="1": ${LINE}`],
])("notify refuses %s: %p", (field, value, message) => {
  // Text where a number is wanted is of the wrong type, and so is a number where text is wanted.
  const name = typeof value === "bigint" ? "RangeError" : "TypeError";
  expect(refusal(() => call("notify", { mainPid: 1, [field]: value }))).toBe(
    `${name}: cannot send ${message}`,
  );
  expect(receiver.poll()).toBeUndefined();
});
