/* How a drain ends streams, WebSockets, slow clients and stopped servers. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect as connectHTTP2 } from "node:http2";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { drain, draining } from "../../src/activation/adopt/drain.ts";
import { serve } from "../../src/activation/adopt/serve.ts";
import { drainUntil, GOING_AWAY, Kept, underWay, UPGRADE } from "../support/kept.ts";
import { client, FAMILIES, listening } from "../support/listening.ts";
import * as sockets from "../support/sockets.ts";
import { atEnd, cleansUp, started } from "../support/started.ts";
import { until } from "../support/until.ts";

cleansUp();

test("with an endless stream under way, clients wait for the next from half of timeout on", async () => {
  using it = listening("IPv4");
  const server = serve({
    fd: it.fd,
    routes: {
      "/stream": () =>
        new Response(
          (async function* () {
            for (;;) {
              yield "more";
              await Bun.sleep(20);
            }
          })(),
        ),
    },
    fetch: () => new Response("first"),
  });
  const stream = await Kept.to(it.to);
  stream.send("/stream");
  await until("it is under way", 10, () => stream.received.includes("more"));
  const drained = drain(server, { grace: 50, timeout: 1000 });
  await Bun.sleep(250);
  expect(await (await Kept.to(it.to)).ask("/")).toMatchObject({ body: "first" });
  await Bun.sleep(500);
  const newcomer = await Kept.to(it.to);
  newcomer.send("/");
  expect(await drained).toBe(false);
  expect(newcomer.received).toBe("");
  started(serve({ fd: sockets.duplicate(it.kept), fetch: () => new Response("second") }));
  expect((await newcomer.answer()).body).toBe("second");
});

test("a WebSocket is open until the last request is answered", async () => {
  using it = listening("IPv4");
  const release = Promise.withResolvers<void>();
  const server = serve({
    fd: it.fd,
    async fetch(request, server) {
      if (server.upgrade(request)) return undefined;
      await release.promise;
      return new Response("slow");
    },
    websocket: { message: (socket, message) => void socket.send(`echo ${message}`) },
  });
  const open = await Kept.to(it.to);
  await open.upgrade();
  const drained = drain(server, { grace: 50 });
  const slow = await Kept.to(it.to);
  slow.send("/slow");
  // Beyond grace, and beyond all that a connection may take for its first request.
  await Bun.sleep(600);
  expect(open.end).toBeUndefined();
  open.received = "";
  open.socket.write(Uint8Array.of(0x81, 0x82, 0, 0, 0, 0, 0x68, 0x69));
  await until("the echo", 10, () => open.received === "\x81\x07echo hi");
  release.resolve();
  expect(await slow.answer()).toMatchObject({ body: "slow" });
  expect(await drained).toBe(true);
  expect(await open.ended()).toBe("closed");
  expect(open.received).toMatch(GOING_AWAY);
});

test("at timeout, too, WebSockets are closed with 1001", async () => {
  using it = listening("IPv4");
  const server = serve({
    fd: it.fd,
    fetch: (request, server) =>
      server.upgrade(request) ? undefined : new Promise<Response>(() => {}),
    websocket: { message() {} },
  });
  const open = await Kept.to(it.to);
  await open.upgrade();
  const stuck = await Kept.to(it.to);
  stuck.send("/");
  await underWay(server);
  expect(await drain(server, { grace: 0, timeout: 200 })).toBe(false);
  await open.ended();
  expect(open.received).toMatch(GOING_AWAY);
});

test("an upgrade is refused however it is spelled, in a route too", async () => {
  using it = listening("IPv4");
  let upgrades = 0;
  const upgrade = (request: Request, server: Bun.Server<undefined>) => {
    upgrades++;
    return server.upgrade(request) ? undefined : new Response();
  };
  const server = serve({
    fd: it.fd,
    routes: { "/route": upgrade, "/method": { GET: upgrade } },
    fetch: upgrade,
    websocket: { message() {} },
  });
  const end = drainUntil(server);
  for (const target of ["/", "/route", "/method"])
    for (const word of ["websocket", "WebSocket", "WEBSOCKET"]) {
      const headers = UPGRADE.replace("websocket", word);
      expect(await (await Kept.to(it.to)).ask(target, headers)).toMatchObject({
        status: 503,
        closes: true,
      });
    }
  expect(upgrades).toBe(0);
  // Another protocol is the handler's own.
  const other = UPGRADE.replace("websocket", "h2c");
  expect(await (await Kept.to(it.to)).ask("/", other)).toMatchObject({ status: 200, closes: true });
  expect(await end()).toBe(true);
});

test("a WebSocket that a reload brought is closed with 1001, and one that closed is left alone", async () => {
  using it = listening("IPv4");
  let closed = 0;
  const upgrade = {
    fetch: (request: Request, server: Bun.Server<undefined>) =>
      server.upgrade(request) ? undefined : new Response(),
    websocket: { message() {}, close: () => void closed++ },
  };
  const server = serve({ fd: it.fd, ...upgrade });
  const sockets: Kept[] = [];
  for (let n = 0; n < 3; n++) {
    const kept = await Kept.to(it.to);
    await kept.upgrade();
    sockets.push(kept);
    if (n === 1) server.reload(upgrade);
  }
  sockets[1]?.socket.destroy();
  await until("one is gone", 10, () => closed === 1);
  expect(await drain(server, { grace: 10 })).toBe(true);
  for (const kept of [sockets[0], sockets[2]]) {
    await until("the server closes the WebSocket", 10, () => kept?.end === "closed");
    expect(kept?.received).toMatch(GOING_AWAY);
  }
  expect(closed).toBe(3);
});

test("a stream ends itself when draining says so", async () => {
  using it = listening("IPv4");
  const server: Bun.Server<undefined> = serve({
    fd: it.fd,
    fetch: () =>
      new Response(
        new ReadableStream({
          start(controller) {
            controller.enqueue("open,");
            draining(server).addEventListener("abort", () => {
              controller.enqueue("told");
              controller.close();
            });
          },
        }),
      ),
  });
  const stream = await Kept.to(it.to);
  stream.send("/");
  await until("the stream has begun", 10, () => stream.received.includes("open,"));
  expect(draining(server).aborted).toBe(false);
  const drained = drain(server, { grace: 20 });
  expect(draining(server).aborted).toBe(true);
  expect(await drained).toBe(true);
  expect(await stream.ended()).toBe("closed");
  expect(stream.received).toContain("told");
});

test.each(FAMILIES)(
  "drain of a stopped server over %s is true at once, and ends no other server",
  async (family) => {
    using it = listening(family);
    using other = listening(family);
    const stopped = serve({ fd: it.fd, fetch: () => new Response("A") });
    await stopped.stop();
    // It gets the number that the first one had.
    started(serve({ fd: other.fd, fetch: () => new Response("B") }));
    const begun = performance.now();
    expect(await drain(stopped)).toBe(true);
    expect(performance.now() - begun).toBeLessThan(500);
    for (let i = 0; i < 3; i++) {
      const kept = await Kept.to(other.to);
      expect(await kept.ask("/")).toMatchObject({ body: "B", closes: false });
    }
    // With no other, the number is free.
    using last = listening(family);
    const alone = serve({ fd: last.fd, fetch: () => new Response() });
    await alone.stop(true);
    expect(await drain(alone)).toBe(true);
  },
);

test("drain of a stopped server with a port of its own is true at once", async () => {
  const server = serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response() });
  await server.stop();
  const begun = performance.now();
  expect(await drain(server)).toBe(true);
  expect(performance.now() - begun).toBeLessThan(500);
});

test("a direct stream reaches a slow client whole", async () => {
  using it = listening("IPv4");
  const size = 80_000_000;
  const server = serve({
    fd: it.fd,
    fetch: () =>
      new Response(
        new ReadableStream({
          type: "direct",
          async pull(controller) {
            controller.write("y".repeat(size));
            controller.end();
          },
        }),
      ),
  });
  const slow = await Kept.to(it.to);
  slow.send("/");
  await until("it begins", 10, () => slow.received.length > 0);
  slow.socket.pause();
  const drained = drain(server, { grace: 20 });
  await Bun.sleep(300);
  slow.socket.resume();
  expect(await drained).toBe(true);
  expect(await slow.ended()).toBe("closed");
  expect(slow.received.length).toBeGreaterThan(size);
});

test("a direct stream that is not taken by timeout makes the result false", async () => {
  using it = listening("IPv4");
  const server = serve({
    fd: it.fd,
    fetch: () =>
      new Response(
        new ReadableStream({
          type: "direct",
          async pull(controller) {
            controller.write("y".repeat(80_000_000));
            controller.end();
          },
        }),
      ),
  });
  const stuck = await Kept.to(it.to);
  stuck.send("/");
  await until("it begins", 10, () => stuck.received.length > 0);
  stuck.socket.pause();
  expect(await drain(server, { grace: 20, timeout: 300 })).toBe(false);
});

// Bun 1.4.0 does not speak it.
test.skipIf(Bun.version === "1.4.0")(
  "HTTP/2 requests under way are finished, and the session is told to go",
  async () => {
    using it = listening("IPv4");
    const server = serve({
      fd: it.fd,
      http2: true,
      async fetch() {
        await Bun.sleep(200);
        return new Response("z".repeat(1_000_000));
      },
    });
    const session = connectHTTP2(String(server.url));
    const goaway = once(session, "goaway");
    const request = session.request({ ":path": "/" });
    let length = 0;
    request.on("data", (data: Buffer) => (length += data.length));
    const ended = once(request, "end");
    await underWay(server);
    const drained = drain(server, { grace: 20 });
    await Promise.all([ended, goaway]);
    expect(length).toBe(1_000_000);
    expect(await drained).toBe(true);
  },
);

test("an aborted signal cuts off what is left at once", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Promise<Response>(() => {}) });
  const stuck = await Kept.to(it.to);
  stuck.send("/");
  await underWay(server);
  const impatience = new AbortController();
  const drained = drain(server, { grace: 10, signal: impatience.signal });
  await Bun.sleep(50);
  const begun = performance.now();
  impatience.abort();
  expect(await drained).toBe(false);
  expect(performance.now() - begun).toBeLessThan(1000);
});

test("an aborted signal ends the grace as well", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response() });
  const impatience = new AbortController();
  const begun = performance.now();
  const drained = drain(server, { grace: 5000, signal: impatience.signal });
  await Bun.sleep(20);
  impatience.abort();
  expect(await drained).toBe(true);
  expect(performance.now() - begun).toBeLessThan(500);
});

test("drain of a stopped server waits for its requests under way", async () => {
  for (const [timeout, isAnswered] of [
    [5000, true],
    [50, false],
  ] as const) {
    using it = listening("IPv4");
    const release = Promise.withResolvers<void>();
    const server = serve({
      fd: it.fd,
      async fetch() {
        await release.promise;
        return new Response("at last");
      },
    });
    const kept = await Kept.to(it.to);
    kept.send("/");
    await underWay(server);
    const stopped = server.stop();
    const drained = drain(server, { timeout });
    setTimeout(release.resolve, 200);
    expect(await drained).toBe(isAnswered);
    expect((await kept.answer()).body).toBe("at last");
    await stopped;
  }
});

test("a slow WebSocket gets all that was sent to it, and then the close", async () => {
  using it = listening("IPv4");
  const size = 20_000_000;
  const server = serve({
    fd: it.fd,
    fetch: (request, server) => (server.upgrade(request) ? undefined : new Response()),
    websocket: {
      backpressureLimit: 2 * size,
      open: (socket) => void socket.send("y".repeat(size)),
      message() {},
    },
  });
  const slow = await Kept.to(it.to);
  slow.send("/", UPGRADE);
  await until("it begins", 10, () => slow.received.length > 0);
  slow.socket.pause();
  const drained = drain(server, { grace: 20 });
  await Bun.sleep(300);
  slow.socket.resume();
  expect(await drained).toBe(true);
  expect(await slow.ended()).toBe("closed");
  expect(slow.received.length).toBeGreaterThan(size);
  expect(slow.received.slice(-4)).toMatch(GOING_AWAY);
});

test("a WebSocket's client that goes on sending does not hold the end up", async () => {
  using it = listening("IPv4");
  const server = serve({
    fd: it.fd,
    fetch: (request, server) => (server.upgrade(request) ? undefined : new Response()),
    websocket: { message() {} },
  });
  const rude = await Kept.to(it.to);
  await rude.upgrade();
  const message = Uint8Array.of(0x81, 0x82, 0, 0, 0, 0, 0x68, 0x69);
  const sending = setInterval(() => rude.socket.write(message), 5);
  const begun = performance.now();
  expect(await drain(server, { grace: 20 })).toBe(true);
  expect(performance.now() - begun).toBeLessThan(1000);
  clearInterval(sending);
});

test.each(["IPv4", "Unix"] as const)(
  "over %s only the connections of its own server count",
  async (family) => {
    using it = listening(family);
    using other = listening("IPv4");
    using unix = listening("Unix");
    const stuck = () => new Promise<Response>(() => {});
    for (const { fd, to } of [other, unix]) {
      const busy = started(serve({ fd, fetch: stuck }));
      const kept = await Kept.to(to);
      kept.send("/");
      await underWay(busy);
      kept.socket.write("GET / HT");
    }
    const server = serve({ fd: it.fd, fetch: () => new Response() });
    const begun = performance.now();
    expect(await drain(server, { grace: 0 })).toBe(true);
    expect(performance.now() - begun).toBeLessThan(400);
  },
);

describe("the result says whether a slow client got all", () => {
  const size = 3e7;
  const directory = mkdtempSync(join(tmpdir(), "socket-service-"));
  const file = join(directory, "large");
  beforeAll(() => writeFileSync(file, new Uint8Array(size)));
  afterAll(() => rmSync(directory, { recursive: true }));
  async function* parts() {
    for (let sent = 0; sent < size; sent += 1e6) yield new Uint8Array(1e6);
  }
  const text = "y".repeat(size);
  const kinds: Record<string, () => { fetch: () => Response } | { routes: object }> = {
    "a text": () => ({ fetch: () => new Response(text) }),
    "a file": () => ({ fetch: () => new Response(Bun.file(file)) }),
    "a stream": () => ({ fetch: () => new Response(parts()) }),
    "a route that is a response": () => ({ routes: { "/large": new Response(text) } }),
    "a route that is a file": () => ({ routes: { "/large": Bun.file(file) } }),
    "a route that is a directory": () => ({ routes: { "/*": { dir: directory } } }),
  };
  for (const [kind, options] of Object.entries(kinds))
    for (const isStuck of [false, true])
      test(`of ${kind}: ${!isStuck}`, async () => {
        using it = listening("IPv4");
        const fetch = () => new Response();
        const server = serve({ fd: it.fd, fetch, ...options() });
        const slow = await client(it.to);
        atEnd(() => slow.destroy());
        let length = 0;
        slow.on("data", (data: Buffer) => (length += data.length));
        slow.write("GET /large HTTP/1.1\r\nHost: example\r\n\r\n");
        await until("it begins", 10, () => length > 0);
        slow.pause();
        const drained = drain(server, { grace: 20, timeout: isStuck ? 200 : 10_000 });
        if (isStuck) expect(await drained).toBe(false);
        else await Bun.sleep(100);
        slow.resume();
        expect(await drained).toBe(!isStuck);
        if (!isStuck) await until("all of it", 10, () => length > size);
      });
});
