/* `drain` in a process of its own: its clients, and its end. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";

import { activate, execute, freePort } from "../support/daemon.ts";
import { client, listening, text } from "../support/listening.ts";
import { lacks } from "../support/needs.ts";
import { program } from "../support/project.ts";
import { until } from "../support/until.ts";

setDefaultTimeout(60_000);

const GRACE = 500;
const PROGRAM = `
import { drain, passedFd, serve } from "socket-service/activation";
const server = serve({
  fd: passedFd(),
  fetch: (request, server) => (server.upgrade(request) ? undefined : new Response("Hello")),
  websocket: { message: (socket, message) => void socket.send(message) },
});
process.on("SIGTERM", async () => process.exit((await drain(server, { grace: ${GRACE} })) ? 0 : 1));
`;

test.skipIf(lacks("systemd-socket-activate")).each(["silent", "talking all the time"])(
  "drain closes 64 WebSockets, %s, with 1001",
  async (kind) => {
    using source = program(PROGRAM);
    const port = freePort();
    await using service = await activate(process.execPath, {
      listen: [`127.0.0.1:${port}`],
      args: [source.path],
    });
    const sockets = Array.from({ length: 64 }, () => new WebSocket(`ws://127.0.0.1:${port}/`));
    const closed = sockets.map(
      (socket) => new Promise<CloseEvent>((resolve) => socket.addEventListener("close", resolve)),
    );
    await Promise.all(
      sockets.map((socket) => new Promise((resolve) => socket.addEventListener("open", resolve))),
    );
    if (kind !== "silent")
      for (const socket of sockets) {
        socket.addEventListener("message", () => socket.send("and again"));
        for (let i = 0; i < 10; i++) socket.send("hello");
      }
    const begun = performance.now();
    expect(await service.stop()).toBe(0);
    expect(performance.now() - begun).toBeWithin(GRACE, GRACE + 3000);
    expect((await Promise.all(closed)).map(({ code }) => code)).toEqual(sockets.map(() => 1001));
  },
);

const REQUEST = "GET / HTTP/1.1\r\nHost: example\r\n\r\n";
const LIMIT = 48;

test.each(["ask once more", "stay silent"])(
  "with no descriptor free, and clients that %s, no answer is lost, and the queue waits",
  async (kind) => {
    using source = program(PROGRAM);
    using it = listening("IPv4");
    const limited = `ulimit -n ${LIMIT}; exec "$0" "$@"`;
    await using service = execute("/bin/sh", [it.fd], {}, [
      "-c",
      limited,
      process.execPath,
      source.path,
    ]);
    const received: string[] = [];
    const ended = new Set<number>();
    const kept = await Promise.all(Array.from({ length: LIMIT }, () => client(it.to)));
    kept.forEach((socket, i) => {
      received[i] = "";
      socket.on("data", (data) => (received[i] += String(data)));
      socket.on("end", () => void ended.add(i));
      socket.write(REQUEST);
    });
    const answered = () => received.filter((given) => given.endsWith("Hello")).length;
    await until("the first descriptor is free no more", 10, async () => {
      const before = answered();
      await Bun.sleep(100);
      return before > 0 && before < LIMIT && answered() === before;
    });
    const served = received.flatMap((given, i) => (given === "" ? [] : [i]));
    service.process.kill("SIGTERM");
    if (kind !== "stay silent") for (const i of served) kept[i]?.write(REQUEST);
    expect([await service.status(), service.stderr]).toEqual([0, ""]);
    await until("those that were served are closed", 10, () => served.every((i) => ended.has(i)));
    const last = kind === "stay silent" ? /Hello$/ : /Hello[^]*Hello$/;
    for (const i of served) expect(received[i]).toMatch(last);
    // The others wait in the queue, if none was free in time.
    for (const [i, given] of received.entries())
      expect(ended.has(i) === given.endsWith("Hello")).toBe(true);
    for (const socket of kept) socket.destroy();
  },
);

test("with no descriptor free, a stream that Bun still sends reaches its end", async () => {
  const length = 40_000_000;
  using source = program(`
import { openSync } from "node:fs";
import { drain, passedFd, serve } from "socket-service/activation";
const pull = (stream) => { stream.write(new Uint8Array(${length})); stream.end(); };
const server = serve({
  fd: passedFd(),
  fetch: () => new Response(new ReadableStream({ type: "direct", pull })),
});
process.on("SIGTERM", async () => {
  const drained = drain(server, { grace: 0 });
  try { for (;;) openSync("/dev/null"); } catch {}
  console.error("draining");
  process.exit((await drained) ? 0 : 1);
});`);
  using it = listening("IPv4");
  const command = ["-c", `ulimit -n 1024; exec "$0" "$@"`, process.execPath, source.path];
  await using service = execute("/bin/sh", [it.fd], {}, command);
  const reader = await client(it.to);
  let received = 0;
  reader.on("data", (data) => (received += data.length));
  reader.write(REQUEST);
  await until("it has begun", 10, () => received > 0);
  reader.pause();
  service.process.kill("SIGTERM");
  await service.says(/draining/);
  reader.resume();
  expect(await service.status()).toBe(0);
  await until("all has come", 10, () => received > length);
});

test("under bun --hot, drain ends a server of an earlier evaluation", async () => {
  const serving = (version: number) => `
import { drain, passedFd, serve } from "socket-service/activation";
const server = serve({
  fd: passedFd(),
  async fetch() {
    console.error("asked v${version}");
    await Bun.sleep(300);
    return new Response("v${version}");
  },
});
process.removeAllListeners("SIGTERM");
process.on("SIGTERM", async () => {
  const drained = drain(server, { grace: 200 });
  console.error("draining");
  process.exit((await drained) ? 0 : 1);
});
console.error("evaluated v${version}");
`;
  using source = program(serving(0));
  using it = listening("IPv4");
  await using service = execute(process.execPath, [it.fd], {}, ["--hot", source.path]);
  await service.says(/evaluated v0/);
  writeFileSync(source.path, serving(1));
  await service.says(/evaluated v1/);
  const slow = await client(it.to);
  let received = "";
  slow.on("data", (data) => (received += String(data)));
  slow.write(REQUEST);
  await service.says(/asked v1/);
  service.process.kill("SIGTERM");
  await service.says(/draining/);
  const late = await client(it.to);
  late.write(REQUEST);
  expect(await text(late)).toMatch(/connection: close[^]*v1$/i);
  expect(await service.status()).toBe(0);
  expect(received).toEndWith("v1");
  slow.destroy();
});
