/* No request is lost in a drain, however it comes. */
import { describe, expect, test } from "bun:test";
import { connect as connectTLS } from "node:tls";

import { connectionsAt } from "../../src/activation/adopt/connections.ts";
import { drain } from "../../src/activation/adopt/drain.ts";
import { serve } from "../../src/activation/adopt/serve.ts";
import { socketName, talk } from "../../src/activation/linux/libc.ts";
import { far } from "../support/far.ts";
import { drainUntil, Kept } from "../support/kept.ts";
import { CERTIFICATE, client, FAMILIES, listening } from "../support/listening.ts";
import * as sockets from "../support/sockets.ts";
import { atEnd, cleansUp, started } from "../support/started.ts";
import { until } from "../support/until.ts";

cleansUp();

test("a client that was accepted last is answered, even if its first request comes 100 ms later", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response("answered") });
  const late = await Kept.to(it.to);
  const other = await Kept.to(it.to);
  // Bun accepts in the order of the queue: with this answer it has accepted both.
  await other.ask("/");
  const drained = drain(server, { grace: 0 });
  await Bun.sleep(100);
  expect(await late.ask("/")).toEqual({ status: 200, body: "answered", closes: true });
  expect(await drained).toBe(true);
});

test("a client that connects just before grace is over has time for its first request", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response("in time") });
  const drained = drain(server, { grace: 100 });
  const kept = await Kept.to(it.to);
  await Bun.sleep(125);
  expect(await kept.ask("/")).toEqual({ status: 200, body: "in time", closes: true });
  expect(await drained).toBe(true);
});

test("a client that connects just before a long grace is over has that time, too", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response("in time") });
  const drained = drain(server, { grace: 500 });
  await Bun.sleep(450);
  const kept = await Kept.to(it.to);
  await Bun.sleep(80);
  expect(await kept.ask("/")).toEqual({ status: 200, body: "in time", closes: true });
  expect(await drained).toBe(true);
});

test("a client that connects after grace is the next process's, whenever its request comes", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response("first") });
  // With one that brings nothing, the end takes its time.
  await Kept.to(it.to);
  await (await Kept.to(it.to)).ask("/");
  const drained = drain(server, { grace: 0 });
  await Bun.sleep(300);
  const newcomer = await Kept.to(it.to);
  expect(await drained).toBe(true);
  started(serve({ fd: sockets.duplicate(it.kept), fetch: () => new Response("second") }));
  expect((await newcomer.ask("/")).body).toBe("second");
});

describe.each(FAMILIES)("no request is lost over %s", (family) => {
  test("that is the first of a client, and arrives just before the stop, while Bun is busy", async () => {
    for (let delay = 0; delay < 12; delay++) {
      using it = listening(family);
      const server = serve({ fd: it.fd, fetch: () => new Response("answered") });
      const kept = await Kept.to(it.to);
      await until("it is accepted", 10, () => connectionsAt(socketName(it.kept)).length === 1);
      const drained = drain(server, { grace: 1 });
      setTimeout(() => {
        const end = performance.now() + 3;
        kept.send("/");
        // Until then Bun reads nothing.
        while (performance.now() < end);
      }, delay);
      expect([delay, await kept.answer()]).toEqual([
        delay,
        { status: 200, body: "answered", closes: true },
      ]);
      expect(await drained).toBe(true);
    }
  });

  test("that arrives on a kept connection just before the stop", async () => {
    using it = listening(family);
    const kept = await Kept.to(it.to);
    const begun = performance.now();
    const server = serve({
      fd: it.fd,
      fetch({ url }) {
        if (url.endsWith("/busy")) {
          kept.send("/");
          // Timers come before what Bun has not read yet.
          while (performance.now() < begun + 800);
        }
        return new Response("answered");
      },
    });
    await kept.ask("/");
    kept.received = "";
    const drained = drain(server, { grace: begun + 790 - performance.now() });
    await Bun.sleep(begun + 650 - performance.now());
    (await Kept.to(it.to)).send("/busy");
    expect(await kept.answer()).toEqual({ status: 200, body: "answered", closes: true });
    expect(await drained).toBe(true);
  });

  test("that is the first of a client, and comes in pieces", async () => {
    using it = listening(family);
    const server = serve({ fd: it.fd, fetch: () => new Response("answered") });
    const kept = await Kept.to(it.to);
    const drained = drain(server, { grace: 1 });
    for (const piece of ["GET / HT", "TP/1.1\r\nHo", "st: example\r\n", "\r\n"]) {
      kept.socket.write(piece);
      await Bun.sleep(20);
    }
    expect(await kept.answer()).toEqual({ status: 200, body: "answered", closes: true });
    expect(await drained).toBe(true);
  });

  test("and idle connections do not delay the end", async () => {
    using it = listening(family);
    const server = serve({ fd: it.fd, fetch: () => new Response("answered") });
    for (let i = 0; i < 5; i++) await (await Kept.to(it.to)).ask("/");
    await Bun.sleep(50);
    const begun = performance.now();
    expect(await drain(server, { grace: 600 })).toBe(true);
    expect(performance.now() - begun).toBeWithin(600, 1000);
  });

  test("and a server that has no connection ends at once", async () => {
    const times: number[] = [];
    for (let i = 0; i < 5; i++) {
      using it = listening(family);
      const server = serve({ fd: it.fd, fetch: () => new Response() });
      const begun = performance.now();
      expect(await drain(server, { grace: 0 })).toBe(true);
      times.push(performance.now() - begun);
    }
    expect(Math.min(...times)).toBeLessThan(30);
  });
});

test("a stream that never ends is cut at timeout, and costs nobody else a request", async () => {
  using it = listening("IPv4");
  const endless = async function* () {
    for (;;) {
      yield "tick\n";
      await Bun.sleep(10);
    }
  };
  const handlers = (name: string) => ({
    async fetch({ url }: Request) {
      if (url.endsWith("/stream")) return new Response(endless());
      // So that there are some at any time.
      await Bun.sleep(20);
      return new Response(name);
    },
  });
  const server = serve({ fd: it.fd, ...handlers("first") });
  const stream = await Kept.to(it.to);
  stream.send("/stream");
  await until("the stream has begun", 10, () => stream.received.includes("tick"));
  const answers: Record<string, number> = {};
  let isOver = false;
  const worker = async () => {
    while (!isOver) {
      const kept = await Kept.to(it.to);
      for (let closes = false; !closes && !isOver;) {
        const { body, ...answer } = await kept
          .ask("/")
          .catch(() => ({ body: "lost", closes: true }));
        answers[body] = (answers[body] ?? 0) + 1;
        closes = answer.closes;
      }
      kept.socket.destroy();
    }
  };
  const workers = Array.from({ length: 8 }, worker);
  const begun = performance.now();
  const drained = drain(server, { grace: 50, timeout: 800 });
  expect(await drained).toBe(false);
  expect(performance.now() - begun).toBeWithin(790, 3000);
  await stream.ended();
  // The next process.
  started(serve({ fd: sockets.duplicate(it.kept), ...handlers("second") }));
  await until("the next one serves all", 10, () => (answers["second"] ?? 0) > 100);
  isOver = true;
  await Promise.all(workers);
  expect(answers["first"]).toBeGreaterThan(10);
  expect(answers["lost"]).toBeUndefined();
});

test.each([20, 70, 170, 700])(
  "a TLS handshake under way is finished, with a round trip of %i ms",
  async (roundTrip) => {
    using it = listening("IPv4");
    using distance = await far(it.to, roundTrip);
    const server = serve({ fd: it.fd, tls: CERTIFICATE, fetch: () => new Response("safe") });
    const kept = new Kept(connectTLS({ port: distance.port, rejectUnauthorized: false }));
    kept.send("/");
    await until("it is accepted", 10, () => connectionsAt(socketName(it.kept)).length === 1);
    const drained = drain(server, { grace: 1 });
    expect(await kept.answer()).toEqual({ status: 200, body: "safe", closes: true });
    expect(await drained).toBe(true);
  },
);

test("a TLS handshake that never ends is cut off after two seconds, and the result is false", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, tls: CERTIFICATE, fetch: () => new Response("never") });
  const slow = await client(it.to);
  // The head of a record of 512 bytes, and then one byte of it after the other.
  slow.write(Uint8Array.of(22, 3, 1, 2, 0, 1));
  const drip = setInterval(() => slow.write("\0"), 100);
  atEnd(() => clearInterval(drip));
  await until("it is accepted", 10, () => connectionsAt(socketName(it.kept)).length === 1);
  const begun = performance.now();
  expect(await drain(server, { grace: 1 })).toBe(false);
  expect(performance.now() - begun).toBeWithin(1900, 4000);
  slow.destroy();
});

test("a client whose TLS handshake has ended, and who asks nothing, is not waited for", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, tls: CERTIFICATE, fetch: () => new Response("never") });
  const to = "port" in it.to ? { port: it.to.port } : { path: it.to.path };
  const idle = connectTLS({ ...to, rejectUnauthorized: false });
  atEnd(() => idle.destroy());
  await until("it is silent", 10, () => {
    const [fd] = connectionsAt(socketName(it.kept));
    const { segments = 0, heard = 0 } = (fd !== undefined && talk(fd)) || {};
    return segments > 1 && heard > 600;
  });
  const begun = performance.now();
  expect(await drain(server, { grace: 1 })).toBe(true);
  expect(performance.now() - begun).toBeLessThan(500);
});

test("requests that come together are answered as before, up to the one that ends the connection", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: ({ url }) => new Response(new URL(url).pathname) });
  const two = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n";
  const before = await Kept.to(it.to);
  before.socket.write(two);
  await until("both answers", 10, () => before.received.endsWith("/2"));
  const end = drainUntil(server);
  const kept = await Kept.to(it.to);
  kept.socket.write(two);
  // Bun 1.4.0 answers the second as well.
  const { body, ...answer } = await kept.answer();
  expect([body.slice(0, 2), answer]).toEqual(["/1", { status: 200, closes: true }]);
  expect(await end()).toBe(true);
});

describe("on a connection that was kept", () => {
  test.each(["", " over TLS"])("a request in pieces at the stop is answered%s", async (kind) => {
    using it = listening("IPv4");
    const tls = kind === "" ? {} : { tls: CERTIFICATE };
    const server = serve({ fd: it.fd, ...tls, fetch: () => new Response("answered") });
    const kept =
      kind === ""
        ? await Kept.to(it.to)
        : new Kept(connectTLS({ ...it.to, rejectUnauthorized: false }));
    await kept.ask("/");
    const drained = drain(server, { grace: 250 });
    await Bun.sleep(230);
    kept.received = "";
    for (const piece of ["GET / HT", "TP/1.1\r\nHo", "st: example\r\n", "\r\n"]) {
      kept.socket.write(piece);
      await Bun.sleep(40);
    }
    expect(await kept.answer()).toEqual({ status: 200, body: "answered", closes: true });
    expect(await drained).toBe(true);
  });

  test("a chunked upload in pieces around the stop is read to its end", async () => {
    using it = listening("IPv4");
    const server = serve({
      fd: it.fd,
      fetch: async (request) => new Response(await request.text()),
    });
    const kept = await Kept.to(it.to);
    await kept.ask("/");
    const drained = drain(server, { grace: 100 });
    await Bun.sleep(30);
    kept.send("/", "Transfer-Encoding: chunked\r\n", "POST");
    for (const piece of ["4\r\nbod", "y\r\n", "1\r\n", "!\r\n0\r\n", "\r\n"]) {
      await Bun.sleep(40);
      kept.socket.write(piece);
    }
    expect(await kept.answer()).toEqual({ status: 200, body: "body!", closes: true });
    expect(await drained).toBe(true);
  });
});

test("a socket on all addresses has clients of both families, and on each address", async () => {
  for (const host of ["127.0.0.1", "127.8.9.10", sockets.LOOPBACK6]) {
    const fd = sockets.listeningOnAll();
    const to = { host, port: sockets.portOf(fd) };
    const server = serve({ fd, fetch: () => new Response("answered") });
    const kept = await Kept.to(to);
    const other = await Kept.to(to);
    await other.ask("/");
    const drained = drain(server, { grace: 0 });
    await Bun.sleep(100);
    expect(await kept.ask("/")).toEqual({ status: 200, body: "answered", closes: true });
    expect(await drained).toBe(true);
  }
});
