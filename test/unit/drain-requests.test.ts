/* No request is lost in a drain, however it comes. */
import { describe, expect, test } from "bun:test";

import { becomeQuiet, drain } from "../../src/activation/adopt/drain.ts";
import { serve } from "../../src/activation/adopt/serve.ts";
import { servedBy, watchOf } from "../../src/activation/adopt/served.ts";
import { accepted, drainUntil, holding, serving, underWay } from "../support/kept.ts";
import { CERTIFICATE, FAMILIES } from "../support/listening.ts";
import * as sockets from "../support/sockets.ts";
import { cleansUp, started } from "../support/started.ts";
import { shortest, until } from "../support/until.ts";

cleansUp();

/** A request in pieces. */
const PIECES = ["GET / HT", "TP/1.1\r\nHo", "st: example\r\n", "\r\n"];

describe.each(FAMILIES)("no request is lost over %s", (family) => {
  test("that is the first of a client, and arrives just before the stop, while Bun is busy", async () => {
    for (let delay = 0; delay < 12; delay++) {
      const it = serving("answered", family);
      const kept = await it.client();
      await accepted(it);
      const drained = drain(it.server, { grace: 1 });
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
    const begun = performance.now();
    const fetch = ({ url }: Request) => {
      if (url.endsWith("/busy")) {
        kept.send("/");
        // Timers come before the request that Bun has not read yet.
        while (performance.now() < begun + 800);
      }
      return new Response("answered");
    };
    const it = serving({ fetch }, family);
    const kept = await it.client();
    await kept.ask();
    kept.received = "";
    const drained = drain(it.server, { grace: begun + 790 - performance.now() });
    await Bun.sleep(begun + 650 - performance.now());
    await it.asking("/busy");
    expect(await kept.answer()).toEqual({ status: 200, body: "answered", closes: true });
    expect(await drained).toBe(true);
  });

  test("that is the first of a client, and comes in pieces", async () => {
    const it = serving("answered", family);
    const kept = await it.client();
    await accepted(it);
    const drained = drain(it.server, { grace: 1 });
    await kept.write(PIECES, 20);
    expect(await kept.answer()).toEqual({ status: 200, body: "answered", closes: true });
    expect(await drained).toBe(true);
  });

  test("and idle connections do not delay the end", async () => {
    const time = await shortest(1000, async () => {
      const it = serving("answered", family);
      for (let i = 0; i < 5; i++) await it.ask();
      await Bun.sleep(50);
      const begun = performance.now();
      expect(await drain(it.server, { grace: 600 })).toBe(true);
      return performance.now() - begun;
    });
    expect(time).toBeWithin(600, 1000);
  });

  test("and a server that has no connection ends at once", async () => {
    const times: number[] = [];
    for (let i = 0; i < 5; i++) {
      const it = serving("", family);
      const begun = performance.now();
      expect(await drain(it.server, { grace: 0 })).toBe(true);
      times.push(performance.now() - begun);
    }
    // If it waited for a first request, it would be half a second.
    expect(Math.min(...times)).toBeLessThan(400);
  });
});

test.each(["first", "second"])(
  "the %s request of a connection that pauses in its head is cut off, and the result is false",
  async (which) => {
    const it = serving("Hello");
    const kept = await it.client();
    if (which === "second") expect(await kept.ask()).toMatchObject({ body: "Hello" });
    await kept.write(["GET / HTTP/1.1\r\nHo"], 700);
    expect(await drain(it.server, { grace: 0 })).toBe(false);
    expect(await kept.ended()).toBe("closed");
  },
);

test("a quiet server has sent its answers, and a drain then ends it", async () => {
  const { release, fetch } = holding("slow");
  const it = serving({ fetch });
  const kept = await it.client();
  expect(await kept.ask()).toMatchObject({ closes: false });
  const quiet = becomeQuiet(it.server).then(() => "quiet");
  const slow = await it.asking("/slow");
  await underWay(it.server);
  expect(await kept.ask()).toMatchObject({ closes: true });
  // Longer than the grace, and than a connection may take for its first request.
  expect(await Promise.race([quiet, Bun.sleep(2500)])).toBeUndefined();
  release.resolve();
  expect(await slow.answer()).toMatchObject({ body: "slow" });
  slow.socket.destroy();
  expect(await quiet).toBe("quiet");
  expect(await drain(it.server)).toBe(true);
  // It has stopped.
  await becomeQuiet(it.server);
});

test("the options of drain count, also for a server that becomes quiet", async () => {
  const { release, fetch } = holding("slow");
  const it = serving({ fetch });
  const slow = await it.asking("/slow");
  await underWay(it.server);
  const quiet = becomeQuiet(it.server);
  const end = drainUntil(it.server);
  const begun = performance.now();
  expect(await end()).toBe(false);
  // Its own timeout would be ten seconds.
  expect(performance.now() - begun).toBeLessThan(5000);
  await slow.ended();
  release.resolve();
  await quiet;
});

test("a request over a Unix socket is answered that Bun has not read when all others are answered", async () => {
  const release = Promise.withResolvers<void>();
  const slow = async () => {
    await release.promise;
    kept.send("/");
    const end = performance.now() + 20;
    // Until then Bun reads nothing.
    while (performance.now() < end);
    return new Response("slow");
  };
  const it = serving({ routes: { "/slow": slow }, fetch: () => new Response("answered") }, "Unix");
  const kept = await it.client();
  await kept.ask();
  kept.received = "";
  const drained = drain(it.server, { grace: 0 });
  await it.asking("/slow");
  // After the linger, which lasts up to 700 ms here.
  await Bun.sleep(900);
  release.resolve();
  expect(await kept.answer()).toEqual({ status: 200, body: "answered", closes: true });
  expect(await drained).toBe(true);
});

test("a stream that never ends is cut at timeout, and costs nobody else a request", async () => {
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
  const it = serving(handlers("first"));
  const stream = await it.asking("/stream");
  await until("the stream has begun", 10, () => stream.received.includes("tick"));
  const answers: Record<string, number> = {};
  let isOver = false;
  const worker = async () => {
    while (!isOver) {
      const kept = await it.client();
      for (let closes = false; !closes && !isOver;) {
        const { body, ...answer } = await kept.ask().catch(() => ({ body: "lost", closes: true }));
        answers[body] = (answers[body] ?? 0) + 1;
        closes = answer.closes;
      }
      kept.socket.destroy();
    }
  };
  const workers = Array.from({ length: 8 }, worker);
  const begun = performance.now();
  const drained = drain(it.server, { grace: 50, timeout: 2000 });
  expect(await drained).toBe(false);
  expect(performance.now() - begun).toBeWithin(1990, 5000);
  await stream.ended();
  // The next process.
  started(serve({ fd: sockets.duplicate(it.kept), ...handlers("second") }));
  await until("the next one serves all", 10, () => (answers["second"] ?? 0) > 100);
  isOver = true;
  await Promise.all(workers);
  expect(answers["first"]).toBeGreaterThan(10);
  expect(answers["lost"]).toBeUndefined();
});

test("over TLS, a client that asks again after an answer that did not say close is answered", async () => {
  const fetch = async () => (await Bun.sleep(800), new Response("answered"));
  const it = serving({ tls: CERTIFICATE, fetch });
  const kept = it.tlsClient();
  kept.send("/");
  await underWay(it.server);
  const drained = drain(it.server, { grace: 0 });
  expect(await kept.answer()).toMatchObject({ body: "answered", closes: false });
  await Bun.sleep(150);
  expect(await kept.ask()).toMatchObject({ body: "answered", closes: true });
  expect(await drained).toBe(true);
});

test("requests that come together are answered as before, up to the one that ends the connection", async () => {
  const it = serving({ fetch: ({ url }) => new Response(new URL(url).pathname) });
  const two = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n";
  const before = await it.client();
  before.socket.write(two);
  await until("both answers", 10, () => before.received.endsWith("/2"));
  const end = drainUntil(it.server);
  const kept = await it.client();
  kept.socket.write(two);
  // Bun 1.4.0 answers the second as well.
  const { body, ...answer } = await kept.answer();
  expect([body.slice(0, 2), answer]).toEqual(["/1", { status: 200, closes: true }]);
  expect(await end()).toBe(true);
});

describe("on a connection that was kept", () => {
  test.each(["", " over TLS"])("a request in pieces at the stop is answered%s", async (kind) => {
    const tls = kind === "" ? {} : { tls: CERTIFICATE };
    const it = serving({ ...tls, fetch: () => new Response("answered") });
    const kept = kind === "" ? await it.client() : it.tlsClient();
    await kept.ask();
    const drained = drain(it.server, { grace: 400 });
    await Bun.sleep(100);
    // The third comes at the stop.
    await kept.write(PIECES, 150);
    expect(await kept.answer()).toEqual({ status: 200, body: "answered", closes: true });
    expect(await drained).toBe(true);
  });

  test("a request in pieces after the stop is answered, though another client has stalled", async () => {
    const { release, fetch } = holding("answered");
    const it = serving({ fetch });
    const [stalled, kept] = [await it.client(), await it.client()];
    for (const client of [stalled, kept]) await client.ask();
    const end = drain(it.server, { grace: 100 });
    const slow = await it.asking("/slow");
    stalled.socket.write("GET / HT");
    const served = servedBy(it.server) ?? expect.unreachable();
    await until("it accepts no more", 6, () => watchOf(it.server, served) === undefined);
    // Until the stalled one counts as cut off.
    await Bun.sleep(1000);
    await kept.write(PIECES.slice(0, 1), 20);
    release.resolve();
    expect(await slow.answer()).toMatchObject({ body: "answered" });
    await Bun.sleep(150);
    await kept.write(PIECES.slice(1), 0);
    expect(await kept.answer()).toMatchObject({ body: "answered" });
    expect(await end).toBe(false);
  });

  test("a chunked upload in pieces around the stop is read to its end", async () => {
    const it = serving({ fetch: async (request) => new Response(await request.text()) });
    const kept = await it.client();
    await kept.ask();
    const drained = drain(it.server, { grace: 400 });
    await Bun.sleep(30);
    kept.send("/", "Transfer-Encoding: chunked\r\n", "POST");
    await Bun.sleep(300);
    // Bun answers, and closes, when the length of the last chunk has come, without the empty line after it.
    await kept.write(["4\r\nbod", "y\r\n", "1\r\n", "!\r\n0\r\n\r\n"], 40);
    expect(await kept.answer()).toEqual({ status: 200, body: "body!", closes: true });
    expect(await drained).toBe(true);
  });
});
