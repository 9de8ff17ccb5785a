import { afterEach, beforeEach, expect, setDefaultTimeout, test } from "bun:test";
import { writeSync } from "node:fs";
import { setTimeout as after } from "node:timers/promises";

import { notify, notifyBarrier } from "../../src/activation/index.ts";
import { descriptors, logged, nothingLeft } from "../support/checks.ts";
import { execute, run } from "../support/daemon.ts";
import { lines } from "../support/lines.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import { close } from "../support/sockets.ts";
import { cleansUp } from "../support/started.ts";

setDefaultTimeout(10_000);

let receiver: NotifyReceiver;
beforeEach(() => {
  receiver = new NotifyReceiver();
  process.env["NOTIFY_SOCKET"] = receiver.address;
  // All are sent from one socket.
  notify({ ready: true });
  receiver.poll();
});
afterEach(() => receiver.close());
cleansUp();

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

test.each([0, 20])("a barrier is false after %d milliseconds", async (timeout) => {
  const before = descriptors();
  expect(await logged(async () => expect(await notifyBarrier(timeout)).toBe(false))).toBe("");
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

test("a barrier is false at once if nobody receives, with a warning", async () => {
  process.env["NOTIFY_SOCKET"] = "/nonexistent/notify";
  const output = await logged(async () => expect(await notifyBarrier(60_000)).toBe(false));
  expect(output).toMatch(/^cannot notify .* "\/nonexistent\/notify": .*\(ENOENT\)\n$/);
});

test("after a barrier that was sent, the next failure is a warning again", async () => {
  const fail = () => {
    process.env["NOTIFY_SOCKET"] = "/nonexistent/notify";
    notify({ ready: true });
  };
  expect(await logged(fail)).not.toBe("");
  process.env["NOTIFY_SOCKET"] = receiver.address;
  const barrier = notifyBarrier(5_000);
  (await received()).forEach(close);
  expect(await barrier).toBe(true);
  expect(await logged(fail)).not.toBe("");
});

test("a barrier is false at once if there is no room, with a warning", async () => {
  const output = await logged(async () => {
    while (notify({ ready: true }));
    expect(await notifyBarrier(60_000)).toBe(false);
  });
  expect(output).toMatch(/^cannot notify .*\(EAGAIN\)\n$/);
});

test("a barrier is true if the manager has closed its end before anything else", async () => {
  // Another process, because this one would only come to it later.
  const script = `
    import { NotifyReceiver } from "./test/support/notify-receiver.ts";
    import { close } from "./test/support/sockets.ts";
    const receiver = new NotifyReceiver("${receiver.address}x");
    console.log("receives");
    for (;;) receiver.poll()?.fds.forEach(close);`;
  await using manager = execute(process.execPath, [], {}, ["-e", script]);
  for await (const line of lines(manager.process.stdout)) {
    expect(line).toBe("receives");
    break;
  }
  process.env["NOTIFY_SOCKET"] = `${receiver.address}x`;
  for (let n = 0; n < 20; n++) expect(await notifyBarrier(5_000)).toBe(true);
});

test("a barrier is false if no descriptor is free, with a warning", async () => {
  const script = `
    import { openSync } from "node:fs";
    import { notify, notifyBarrier } from "./src/activation/index.ts";
    notify({ ready: true });
    try { for (;;) openSync("/dev/null"); } catch {}
    console.log(await notifyBarrier(60_000));`;
  const { status, stdout, stderr } = await run(script, { NOTIFY_SOCKET: receiver.address }, 64);
  expect([status, stdout]).toEqual([0, "false\n"]);
  expect(stderr).toMatch(
    /^cannot notify .*: socketpair failed, [^\n]*\(EMFILE\): raise LimitNOFILE= [^\n]*\n$/,
  );
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
  expect(await run(script)).toMatchObject({ status: 42 });
});
