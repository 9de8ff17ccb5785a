/* What no caller may give: it is refused, and nothing is sent. Not every caller is type-checked. */
import { afterAll, describe, expect, test } from "bun:test";
import { randomUUID } from "node:crypto";

import * as activation from "../../src/activation/index.ts";
import { misuse, refusal, thrown } from "../support/checks.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import * as sockets from "../support/sockets.ts";
import { AF_INET } from "../support/sockets.ts";

const receiver = new NotifyReceiver(`@${randomUUID()}`);
process.env["NOTIFY_SOCKET"] = receiver.address;
afterAll(() => receiver.close());

/** Calls a function of the module as code does that is not type-checked. */
function call(name: keyof typeof activation, ...args: readonly unknown[]): unknown {
  const { [name]: called } = activation;
  if (typeof called !== "function") throw new Error(`${name} is no function`);
  return Reflect.apply(called, undefined, args);
}

const handlers = { data() {} };
const failure = (error: unknown) => error;
/** The name of the error for a value: a number is out of range, anything else of the wrong type. */
const nameFor = (value: unknown) =>
  ["number", "bigint"].includes(typeof value) ? "RangeError" : "TypeError";
/** The same where a bigint is of the wrong type. */
const mistake = (value: unknown) => (typeof value === "number" ? "RangeError" : "TypeError");

test.each([
  -1,
  1.5,
  Number.NaN,
  Number.POSITIVE_INFINITY,
  2 ** 31,
  2 ** 32 + 3,
  "3",
  null,
  undefined,
])("%p is no descriptor", async (fd) => {
  const wrong = refusal(78, RegExp(`^descriptor ${fd} is not open: `));
  expect(thrown(() => call("describe", fd))).toEqual(wrong);
  expect(await Promise.resolve(call("adoptConnection", fd, handlers)).catch(failure)).toEqual(
    wrong,
  );
  const message = RegExp(`^cannot send descriptor ${fd}: give the number of an open descriptor$`);
  const send = () => call("notify", { fdStore: true }, { fds: [0, fd] });
  expect(thrown(send)).toEqual(misuse(nameFor(fd), message));
  expect(receiver.poll()).toBeUndefined();
});

const listening = sockets.listening(AF_INET, 1);
afterAll(() => sockets.close(listening));

test.each([-1, 987_654, 1.5, Number.NaN, 2 ** 32 + listening])("no server is on %p", (fd) => {
  const wrong = refusal(
    78,
    RegExp(`^descriptor ${fd} is not open: give the number of an open descriptor$`),
  );
  const fetch = () => new Response();
  expect(thrown(() => activation.listen({ fd, socket: handlers }))).toEqual(wrong);
  expect(thrown(() => activation.serve({ fd, fetch }))).toEqual(wrong);
});

test.each([0, -1, 1.5, Number.NaN, 2 ** 31, 2 ** 32 + 1, "1", 1n])("%p is no process", (pid) => {
  expect(thrown(() => call("notify", { ready: true }, { pid }))).toEqual(
    misuse(nameFor(pid), RegExp(`^cannot send for process ${pid}: give a process id, from 1 on$`)),
  );
  expect(thrown(() => call("notify", { mainPid: pid }))).toEqual(
    misuse(nameFor(pid), RegExp(`^cannot send MAINPID="${pid}": give a process id, from 1 on$`)),
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
    expect(thrown(() => call(name, server, { [option]: value }))).toEqual(
      misuse(mistake(value), RegExp(`^${option} is ${value}: give ${wanted}$`)),
    );
  });
});

test.each([-1, Number.NaN, "1", null, 1n])(
  "notifyBarrier refuses a timeout of %p",
  async (value) => {
    expect(await Promise.resolve(call("notifyBarrier", value)).catch(failure)).toEqual(
      misuse(
        mistake(value),
        RegExp(`^timeout is ${value}: give milliseconds from 0 on, or Infinity$`),
      ),
    );
    expect(receiver.poll()).toBeUndefined();
  },
);

test.each([0, 1.5, "1", null, 1n])("listen refuses maxConnections of %p", (maxConnections) => {
  expect(thrown(() => call("listen", { maxConnections, socket: handlers }))).toEqual(
    misuse(
      mistake(maxConnections),
      RegExp(`^maxConnections is ${maxConnections}: give a whole number from 1 on$`),
    ),
  );
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
  const error = thrown(() => call("notify", { [field]: value }));
  // Text where a number is wanted is of the wrong type, and so is a number where text is wanted.
  const name = typeof value === "bigint" ? "RangeError" : "TypeError";
  expect(error).toEqual(misuse(name, RegExp(`^cannot send ${message}$`)));
  expect(receiver.poll()).toBeUndefined();
});
