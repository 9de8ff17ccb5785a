import { afterEach, beforeEach, expect, setDefaultTimeout, test } from "bun:test";
import { randomUUID } from "node:crypto";
import { writeSync } from "node:fs";
import { setTimeout as after } from "node:timers/promises";

import { notifyBarrier } from "../../src/activation/index.ts";
import { keepNotifySocket } from "../../src/activation/notify.ts";
import { descriptors, nothingLeft, refusal } from "../support/checks.ts";
import { execute } from "../support/daemon.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import { close } from "../support/sockets.ts";

setDefaultTimeout(10_000);

let receiver: NotifyReceiver;
let before: Map<string, number>;
beforeEach(() => {
  receiver = new NotifyReceiver(`@${randomUUID()}`);
  process.env["NOTIFY_SOCKET"] = receiver.address;
  // Kept open, and sent from.
  keepNotifySocket();
  before = descriptors();
});
// Whatever the outcome.
afterEach(async () => {
  await nothingLeft(before);
  receiver.close();
});

/** The descriptors of a barrier that has come. */
async function received(): Promise<readonly number[]> {
  const { text, fds } = await receiver.next();
  expect([text, fds.length]).toEqual(["BARRIER=1", 1]);
  return fds;
}

test("a barrier resolves when the descriptor that it sent is closed, and not before", async () => {
  const barrier = notifyBarrier(5_000);
  // No child that is started meanwhile holds it up.
  expect([...descriptors().keys()].filter((name) => name.endsWith("inherit"))).toEqual([]);
  const fds = await received();
  // Nothing but the close counts.
  for (const fd of fds) writeSync(fd, "?");
  expect(await Promise.race([barrier, after(20, "waits")])).toBe("waits");
  fds.forEach(close);
  expect(await barrier).toBe(true);
});

test.each([0, 20])("a barrier rejects after %d milliseconds", async (timeout) => {
  const error = await notifyBarrier(timeout).catch((error: unknown) => error);
  expect(error).toEqual(
    refusal(71, RegExp(`^the service .* to a barrier within ${timeout} ms$`), "ETIMEDOUT"),
  );
  // Ours is closed, whatever becomes of the other.
  await nothingLeft(before);
  (await received()).forEach(close);
});

// A timer of more than 2^31 milliseconds would be over after one.
test.each([3e9, Number.POSITIVE_INFINITY])("a barrier waits for %d milliseconds", async (long) => {
  const barrier = notifyBarrier(long);
  const fds = await received();
  expect(await Promise.race([barrier, after(20, "waits")])).toBe("waits");
  fds.forEach(close);
  expect(await barrier).toBe(true);
});

test("a barrier rejects if nobody receives", async () => {
  process.env["NOTIFY_SOCKET"] = "/nonexistent/notify";
  const error = await notifyBarrier(1000).catch((error: unknown) => error);
  expect(error).toEqual(refusal(71, /"\/nonexistent\/notify"/, "ENOENT"));
});

test("a barrier that is over keeps no process alive", async () => {
  const script = `
    import { notifyBarrier } from "./src/activation/index.ts";
    await notifyBarrier(60_000);`;
  const variables = { NOTIFY_SOCKET: receiver.address };
  await using child = execute(process.execPath, [], variables, ["-e", script]);
  (await received()).forEach(close);
  expect(await Promise.race([child.status(), after(8_000, "runs on")])).toBe(0);
});

test("without NOTIFY_SOCKET there is no barrier", async () => {
  const script = `
    import { notifyBarrier } from "./src/activation/index.ts";
    process.exit(await notifyBarrier(1000) === false ? 42 : 1);`;
  await using child = execute(process.execPath, [], {}, ["-e", script]);
  expect(await child.status()).toBe(42);
});
