/* A drain ends streams, WebSockets, slow clients and stopped servers. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { connect as connectHTTP2 } from "node:http2";
import { connect } from "node:net";
import { join } from "node:path";

import { drain, draining } from "../../src/activation/adopt/drain.ts";
import { serve } from "../../src/activation/adopt/serve.ts";
import { scratch } from "../support/daemon.ts";
import { drainUntil, ECHO, GOING_AWAY, HI, holding } from "../support/kept.ts";
import { Kept, serving, underWay, upgrade, UPGRADE } from "../support/kept.ts";
import { getHTTP2, GOAWAY, untilGoaway } from "../support/http2.ts";
import { CERTIFICATE, client, FAMILIES, listening } from "../support/listening.ts";
import { atEnd, cleansUp, started } from "../support/started.ts";
import { shortest, until } from "../support/until.ts";

cleansUp();

test("with an endless stream under way, clients wait for the next from half of timeout on", async () => {
  const it = serving({
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
  const stream = await it.asking("/stream");
  await until("it is under way", 10, () => stream.received.includes("more"));
  const drained = drain(it.server, { grace: 50, timeout: 1000 });
  await Bun.sleep(250);
  expect(await it.ask()).toMatchObject({ body: "first" });
  await Bun.sleep(500);
  const newcomer = await it.asking();
  expect(await drained).toBe(false);
  expect(newcomer.received).toBe("");
  it.next("second");
  expect((await newcomer.answer()).body).toBe("second");
});

test("a WebSocket is open until the last request is answered", async () => {
  const { release, fetch } = holding("slow");
  const it = serving({ routes: { "/slow": fetch }, fetch: upgrade, websocket: ECHO });
  const open = await it.client();
  await open.upgrade();
  const drained = drain(it.server, { grace: 50 });
  const slow = await it.asking("/slow");
  // Beyond grace, and beyond all that a connection may take for its first request.
  await Bun.sleep(600);
  expect(open.end).toBeUndefined();
  await open.echo();
  release.resolve();
  expect(await slow.answer()).toMatchObject({ body: "slow" });
  expect(await drained).toBe(true);
  expect(await open.ended()).toBe("closed");
  expect(open.received).toMatch(GOING_AWAY);
});

test("at timeout, too, WebSockets are closed with 1001", async () => {
  const it = serving({
    routes: { "/stuck": () => new Promise<Response>(() => {}) },
    fetch: upgrade,
    websocket: ECHO,
  });
  const open = await it.client();
  await open.upgrade();
  await it.asking("/stuck");
  await underWay(it.server);
  expect(await drain(it.server, { grace: 0, timeout: 200 })).toBe(false);
  await open.ended();
  expect(open.received).toMatch(GOING_AWAY);
});

test("an upgrade is refused however it is spelled, in a route too", async () => {
  let upgrades = 0;
  const fetch = (request: Request, server: Bun.Server<undefined>) => {
    upgrades++;
    return upgrade(request, server);
  };
  const routes = { "/route": fetch, "/method": { GET: fetch } };
  const it = serving({ routes, fetch, websocket: ECHO });
  const end = drainUntil(it.server);
  for (const target of ["/", "/route", "/method"])
    for (const word of ["websocket", "WebSocket", "WEBSOCKET"]) {
      const headers = UPGRADE.replace("websocket", word);
      expect(await it.ask(target, headers)).toMatchObject({
        status: 503,
        closes: true,
      });
    }
  expect(upgrades).toBe(0);
  // Another protocol is the handler's own.
  const other = UPGRADE.replace("websocket", "h2c");
  expect(await it.ask("/", other)).toMatchObject({ status: 200, closes: true });
  expect(await end()).toBe(true);
});

test("a WebSocket that a reload brought is closed with 1001, and one that closed is left alone", async () => {
  let closed = 0;
  const handlers = { fetch: upgrade, websocket: { message() {}, close: () => void closed++ } };
  const it = serving(handlers);
  const sockets: Kept[] = [];
  for (let n = 0; n < 3; n++) {
    const kept = await it.client();
    await kept.upgrade();
    sockets.push(kept);
    if (n === 1) it.server.reload(handlers);
  }
  sockets[1]?.socket.destroy();
  await until("one is gone", 10, () => closed === 1);
  expect(await drain(it.server, { grace: 10 })).toBe(true);
  for (const kept of [sockets[0], sockets[2]]) {
    await until("the server closes the WebSocket", 10, () => kept?.end === "closed");
    expect(kept?.received).toMatch(GOING_AWAY);
  }
  expect(closed).toBe(3);
});

test("a client that stalls in its first request makes the result false beside a WebSocket, too", async () => {
  const it = serving({ fetch: upgrade, websocket: ECHO });
  await (await it.client()).upgrade();
  const drained = drain(it.server, { grace: 300 });
  (await it.client()).socket.write("GET / HT");
  expect(await drained).toBe(false);
});

test("a client whose first request comes in pieces is answered beside a WebSocket, and the result is true", async () => {
  const it = serving({ fetch: upgrade, websocket: ECHO });
  await (await it.client()).upgrade();
  const drained = drain(it.server, { grace: 300 });
  await Bun.sleep(200);
  const kept = await it.client();
  await kept.write([..."GET / HTTP"].concat("/1.1\r\nHost: example\r\n\r\n"), 100);
  expect(await kept.answer()).toMatchObject({ status: 200 });
  expect(await drained).toBe(true);
});

test("a stream ends itself when draining says so", async () => {
  const it = serving({
    fetch: () =>
      new Response(
        new ReadableStream({
          start(controller) {
            controller.enqueue("open,");
            draining(it.server).addEventListener("abort", () => {
              controller.enqueue("told");
              controller.close();
            });
          },
        }),
      ),
  });
  const stream = await it.asking();
  await until("the stream has begun", 10, () => stream.received.includes("open,"));
  expect(draining(it.server).aborted).toBe(false);
  const drained = drain(it.server, { grace: 20 });
  expect(draining(it.server).aborted).toBe(true);
  expect(await drained).toBe(true);
  expect(await stream.ended()).toBe("closed");
  expect(stream.received).toContain("told");
});

test.each(FAMILIES)(
  "drain of a stopped server over %s is true at once, and ends no other server",
  async (family) => {
    using waiting = listening(family);
    const { server: stopped } = serving("A", family);
    await stopped.stop();
    // It gets the number that the first one had.
    started(serve({ fd: waiting.fd, fetch: () => new Response("B") }));
    const begun = performance.now();
    expect(await drain(stopped, { grace: 5000 })).toBe(true);
    expect(performance.now() - begun).toBeLessThan(4000);
    for (let i = 0; i < 3; i++) {
      const kept = await Kept.to(waiting.to);
      expect(await kept.ask()).toMatchObject({ body: "B", closes: false });
    }
    // With no other, the number is free.
    const { server: alone } = serving("", family);
    await alone.stop(true);
    expect(await drain(alone)).toBe(true);
  },
);

test("a server that opened an abstract socket itself is drained", async () => {
  const unix = `\0${crypto.randomUUID()}`;
  const server = serve({ unix, fetch: () => new Response("whole") });
  const kept = new Kept(connect(unix));
  expect(await kept.ask()).toMatchObject({ body: "whole" });
  const drained = drain(server, { grace: 300 });
  expect(await kept.ask()).toMatchObject({ body: "whole", closes: true });
  expect(await drained).toBe(true);
});

test("drain of a stopped server with a port of its own is true at once", async () => {
  const server = serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response() });
  await server.stop();
  const begun = performance.now();
  expect(await drain(server, { grace: 5000 })).toBe(true);
  expect(performance.now() - begun).toBeLessThan(4000);
});

/** A direct stream of so many bytes. */
const direct = (size: number) =>
  new Response(
    new ReadableStream({
      type: "direct",
      async pull(controller) {
        controller.write("y".repeat(size));
        controller.end();
      },
    }),
  );

/** A slow client, which does not read on after the first bytes of an answer. */
async function paused(it: ReturnType<typeof serving>, headers = ""): Promise<Kept> {
  const slow = await it.asking("/", headers);
  await until("it begins", 10, () => slow.received.length > 0);
  slow.socket.pause();
  return slow;
}

/** In a drain, a client that pauses for 300 ms gets all of an answer, and then the end. */
async function expectAll(it: ReturnType<typeof serving>, slow: Kept, size: number) {
  const drained = drain(it.server, { grace: 20 });
  await Bun.sleep(300);
  slow.socket.resume();
  expect(await drained).toBe(true);
  expect(await slow.ended()).toBe("closed");
  expect(slow.received.length).toBeGreaterThan(size);
}

test("a direct stream reaches a slow client whole", async () => {
  const it = serving({ fetch: () => direct(80_000_000) });
  await expectAll(it, await paused(it), 80_000_000);
});

test("a slow WebSocket gets all that was sent to it, and then the close", async () => {
  const size = 20_000_000;
  const open = (socket: Bun.ServerWebSocket<undefined>) => void socket.send("y".repeat(size));
  const websocket = { backpressureLimit: 2 * size, open, message() {} };
  const it = serving({ fetch: upgrade, websocket });
  const slow = await paused(it, UPGRADE);
  await expectAll(it, slow, size);
  expect(slow.received.slice(-4)).toMatch(GOING_AWAY);
});

test("a direct stream that is not taken by timeout makes the result false", async () => {
  const it = serving({ fetch: () => direct(80_000_000) });
  await paused(it);
  expect(await drain(it.server, { grace: 20, timeout: 300 })).toBe(false);
});

// Bun 1.4.0 does not speak it.
test.skipIf(Bun.version === "1.4.0")(
  "HTTP/2 requests under way are finished, and the session is told to go",
  async () => {
    const it = serving({
      http2: true,
      async fetch() {
        await Bun.sleep(200);
        return new Response("z".repeat(1_000_000));
      },
    });
    const session = connectHTTP2(String(it.server.url));
    const goaway = once(session, "goaway");
    const request = session.request({ ":path": "/" });
    let length = 0;
    request.on("data", (data: Buffer) => (length += data.length));
    const ended = once(request, "end");
    await underWay(it.server);
    const drained = drain(it.server, { grace: 20 });
    await Promise.all([ended, goaway]);
    expect(length).toBe(1_000_000);
    expect(await drained).toBe(true);
  },
);

// Bun 1.4.0 does not speak it.
test.skipIf(Bun.version === "1.4.0")(
  "a session of HTTP/2 that goes on asking is not cut off, and drain is true",
  async () => {
    const it = serving({ http2: true, tls: CERTIFICATE, fetch: () => new Response("Hello") });
    const session = connectHTTP2(String(it.server.url), { rejectUnauthorized: false });
    expect(await getHTTP2(session)).toBe("Hello");
    const drained = drain(it.server, { grace: 20 });
    expect(await untilGoaway(session, "Hello")).toMatch(GOAWAY);
    expect(await drained).toBe(true);
  },
);

test("an aborted signal cuts off open requests at once", async () => {
  const it = serving({ fetch: () => new Promise<Response>(() => {}) });
  await it.asking();
  await underWay(it.server);
  const impatience = new AbortController();
  const drained = drain(it.server, { grace: 10, signal: impatience.signal });
  await Bun.sleep(50);
  const begun = performance.now();
  impatience.abort();
  expect(await drained).toBe(false);
  expect(performance.now() - begun).toBeLessThan(5000);
});

test("an aborted signal ends the grace as well", async () => {
  const it = serving("");
  const impatience = new AbortController();
  const begun = performance.now();
  const drained = drain(it.server, { grace: 5000, signal: impatience.signal });
  await Bun.sleep(20);
  impatience.abort();
  expect(await drained).toBe(true);
  expect(performance.now() - begun).toBeLessThan(4000);
});

test("drain of a stopped server waits for its requests under way", async () => {
  for (const [timeout, isAnswered] of [
    [5000, true],
    [50, false],
  ] as const) {
    const { release, fetch } = holding("at last");
    const it = serving({ fetch });
    const kept = await it.asking("/slow");
    await underWay(it.server);
    const stopped = it.server.stop();
    const drained = drain(it.server, { timeout });
    setTimeout(release.resolve, 200);
    expect(await drained).toBe(isAnswered);
    expect((await kept.answer()).body).toBe("at last");
    await stopped;
  }
});

test("drain is false if the program cuts a request off meanwhile", async () => {
  const { fetch } = holding("never");
  const it = serving({ fetch });
  const kept = await it.asking("/slow");
  await underWay(it.server);
  // In Bun 1.4.0, the handler counts as a request until it ends.
  const drained = drain(it.server, { timeout: 2000 });
  void it.server.stop(true);
  expect(await drained).toBe(false);
  kept.socket.destroy();
  // With no request there is nothing to cut off.
  const idle = serving({ fetch });
  const ended = drain(idle.server);
  void idle.server.stop(true);
  expect(await ended).toBe(true);
  // Nor does a stop that lets it be answered.
  const { release, ...late } = holding("late");
  const gentle = serving(late);
  const waiting = await gentle.asking("/slow");
  await underWay(gentle.server);
  const over = drain(gentle.server);
  void gentle.server.stop();
  release.resolve();
  expect(await waiting.answer()).toMatchObject({ body: "late" });
  expect(await over).toBe(true);
});

test.each([
  ["gets answers", 1000, ECHO],
  // Its messages look like parts of a request.
  ["gets none", 1800, { message() {} }],
] as const)(
  "a WebSocket's client that goes on sending and %s does not hold the end up",
  async (_, longest, websocket) => {
    const time = await shortest(longest, async () => {
      const it = serving({ fetch: upgrade, websocket });
      const rude = await it.client();
      await rude.upgrade();
      const sending = setInterval(() => rude.socket.write(HI), 5);
      const begun = performance.now();
      expect(await drain(it.server, { grace: 20 })).toBe(true);
      clearInterval(sending);
      return performance.now() - begun;
    });
    expect(time).toBeLessThan(longest);
  },
);

test.each(["IPv4", "Unix"] as const)(
  "over %s only the connections of its own server count",
  async (family) => {
    const fetch = () => new Promise<Response>(() => {});
    for (const busy of [serving({ fetch }), serving({ fetch }, "Unix")]) {
      started(busy.server);
      const kept = await busy.asking();
      await underWay(busy.server);
      kept.socket.write("GET / HT");
    }
    const time = await shortest(400, async () => {
      const it = serving("", family);
      const begun = performance.now();
      expect(await drain(it.server, { grace: 0 })).toBe(true);
      return performance.now() - begun;
    });
    expect(time).toBeLessThan(400);
  },
);

describe("the result says whether a slow client got all", () => {
  const size = 3e7;
  const scratched = scratch();
  const directory = scratched.path;
  const file = join(directory, "large");
  beforeAll(() => writeFileSync(file, new Uint8Array(size)));
  afterAll(() => scratched[Symbol.dispose]());
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
        const fetch = () => new Response();
        const it = serving({ fetch, ...options() });
        const slow = await client(it.to);
        atEnd(() => slow.destroy());
        let length = 0;
        slow.on("data", (data: Buffer) => {
          if (length === 0) slow.pause();
          length += data.length;
        });
        slow.write("GET /large HTTP/1.1\r\nHost: example\r\n\r\n");
        await until("it begins", 10, () => length > 0);
        const drained = drain(it.server, { grace: 20, timeout: isStuck ? 200 : 10_000 });
        if (isStuck) expect(await drained).toBe(false);
        else await Bun.sleep(100);
        slow.resume();
        expect(await drained).toBe(!isStuck);
        if (!isStuck) await until("all of it", 10, () => length > size);
      });
});
