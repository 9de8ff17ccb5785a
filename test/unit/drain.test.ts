import {
  afterAll,
  afterEach,
  beforeAll,
  beforeEach,
  describe,
  expect,
  spyOn,
  test,
} from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { once } from "node:events";
import { connect as connectHTTP2 } from "node:http2";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectTLS } from "node:tls";

import { connectionsAt } from "../../src/activation/adopt/connections.ts";
import { drain, draining } from "../../src/activation/adopt/drain.ts";
import { socketName } from "../../src/activation/linux/libc.ts";
import { serve } from "../../src/activation/adopt/serve.ts";
import { descriptors, nothingLeft, thrown } from "../support/checks.ts";
import { far } from "../support/far.ts";
import {
  CERTIFICATE,
  client,
  FAMILIES,
  type Listening,
  listening,
  text,
} from "../support/listening.ts";
import * as sockets from "../support/sockets.ts";
import { until } from "../support/until.ts";

const servers: Bun.Server<undefined>[] = [];
const clients: Socket[] = [];
let before: Map<string, number>;
beforeEach(() => void (before = descriptors()));
afterEach(async () => {
  for (const server of servers.splice(0)) await server.stop(true);
  for (const client of clients.splice(0)) client.destroy();
  await nothingLeft(before);
});

function started<S extends Bun.Server<undefined>>(server: S): S {
  servers.push(server);
  return server;
}

/** A connection that is kept, and what came on it. */
class Kept {
  received = "";
  /** How the server ended it. */
  end: string | undefined;

  private constructor(readonly socket: Socket) {
    clients.push(socket);
    socket.setEncoding("latin1");
    socket.on("data", (data) => (this.received += String(data)));
    socket.on("end", () => (this.end = "closed"));
    socket.on("error", (error) => (this.end = error.message));
  }

  static async to(to: Listening["to"]): Promise<Kept> {
    return new Kept(await client(to));
  }

  static on(socket: Socket): Kept {
    return new Kept(socket);
  }

  send(target: string, headers = "", method = "GET"): void {
    this.received = "";
    this.socket.write(`${method} ${target} HTTP/1.1\r\nHost: example\r\n${headers}\r\n`);
  }

  /** The head and the body of the next answer, which has a known length. */
  async answer(): Promise<{ status: number; body: string; closes: boolean }> {
    return await until("an answer", 10, () => {
      if (this.end !== undefined && this.received === "") throw new Error(this.end);
      const [head = "", body] = this.received.split("\r\n\r\n");
      const length = Number(/^content-length: (\d+)/im.exec(head)?.[1] ?? 0);
      if (body === undefined || body.length < length) return undefined;
      const closes = /^connection: close/im.test(head);
      return { status: Number(head.slice(9, 12)), body, closes };
    });
  }

  async ask(target: string, headers = "") {
    this.send(target, headers);
    return await this.answer();
  }
}

const UPGRADE =
  "Upgrade: websocket\r\nConnection: Upgrade\r\n" +
  "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/** Bytes of a frame that closes with 1001. */
const GOING_AWAY = /\x88.\x03\xe9/s;

describe.each(FAMILIES)("drain of a server on a socket over %s", (family) => {
  test("answers with Connection: close from the call on, gives up, and leaves the rest to the next", async () => {
    using it = listening(family);
    const server = serve({ fd: it.fd, fetch: () => new Response("first") });
    const kept = await Kept.to(it.to);
    expect(await kept.ask("/")).toEqual({ status: 200, body: "first", closes: false });
    const drained = drain(server, { grace: 200 });
    expect(await kept.ask("/")).toEqual({ status: 200, body: "first", closes: true });
    await until("the server closes the connection", 10, () => kept.end === "closed");
    // A newcomer is served meanwhile.
    const newcomer = await Kept.to(it.to);
    expect(await newcomer.ask("/")).toEqual({ status: 200, body: "first", closes: true });
    expect(await drained).toBe(true);
    // From then on newcomers wait for the next process.
    const waiting = await Kept.to(it.to);
    waiting.send("/");
    started(serve({ fd: sockets.duplicate(it.kept), fetch: () => new Response("second") }));
    expect((await waiting.answer()).body).toBe("second");
  });

  test("closes a WebSocket with 1001, and refuses another before the handler runs", async () => {
    using it = listening(family);
    let upgrades = 0;
    const server = serve({
      fd: it.fd,
      fetch(request, server) {
        upgrades++;
        return server.upgrade(request) ? undefined : new Response("plain");
      },
      websocket: { message: (socket, message) => void socket.send(`echo ${message}`) },
    });
    const open = await Kept.to(it.to);
    open.send("/", UPGRADE);
    await until("the upgrade", 10, () => open.received.startsWith("HTTP/1.1 101 "));
    const drained = drain(server, { grace: 300 });
    const late = await Kept.to(it.to);
    expect(await late.ask("/", UPGRADE)).toMatchObject({ status: 503, closes: true });
    expect(upgrades).toBe(1);
    // The open one goes on for as long as there are requests.
    open.socket.write(Uint8Array.of(0x81, 0x82, 0, 0, 0, 0, 0x68, 0x69));
    await until("the echo", 10, () => open.received.endsWith("\x81\x07echo hi"));
    expect(await drained).toBe(true);
    await until("the server closes the WebSocket", 10, () => open.end === "closed");
    expect(open.received).toMatch(GOING_AWAY);
  });
});

test("every kind of answer carries it: routes, files, streams, errors, what is not found", async () => {
  using it = listening("IPv4");
  const directory = mkdtempSync(join(tmpdir(), "socket-service-"));
  const file = join(directory, "file.txt");
  writeFileSync(file, "in a file");
  const shared = new Response("static", { headers: { "X-Kept": "yes" }, status: 201 });
  const server = serve({
    fd: it.fd,
    development: false,
    routes: {
      "/function/:name": ({ params }) => new Response(params.name),
      "/promise": async () => new Response("later"),
      "/static": shared,
      "/file": new Response(Bun.file(file)),
      "/bunfile": Bun.file(file),
      "/method": { GET: () => new Response("got"), POST: new Response("posted") },
      "/fails": () => {
        throw new Error("on purpose");
      },
      "/directory/*": { dir: directory },
      "/false": false,
    },
    fetch: ({ url }) => new Response(url),
    error: ({ message }) => new Response(message, { status: 500 }),
  });
  const ask = async (target: string) => {
    const kept = await Kept.to(it.to);
    const answer = await kept.ask(target);
    kept.socket.destroy();
    return answer;
  };
  const targets = {
    "/function/you": "you",
    "/promise": "later",
    "/static": "static",
    "/file": "in a file",
    "/bunfile": "in a file",
    "/method": "got",
    "/fails": "on purpose",
    "/false": "http://example/false",
    "/other": "http://example/other",
  };
  const answers = new Map<string, { status: number; body: string }>();
  for (const [target, body] of Object.entries(targets)) {
    const { closes, ...answer } = await ask(target);
    expect(closes).toBe(false);
    expect(answer.body).toBe(body);
    answers.set(target, answer);
  }
  const drained = drain(server, { grace: 500 });
  for (const [target, answer] of answers)
    expect([target, await ask(target)]).toEqual([target, { ...answer, closes: true }]);
  // Bun has no way to add a header to these.
  expect(await ask("/directory/file.txt")).toEqual({
    status: 200,
    body: "in a file",
    closes: false,
  });
  await drained;
  expect(shared.headers.has("Connection")).toBe(false);
  rmSync(directory, { recursive: true });
});

test.each([
  ["without", {}],
  // As a framework's build leaves them.
  ["with null for", JSON.parse(`{ "fetch": null, "error": null, "websocket": null }`)],
])("%s fetch and error, what Bun answers itself carries it too", async (_, absent) => {
  using it = listening("IPv4");
  const fails = () => {
    throw new Error("on purpose");
  };
  const server = serve({ ...absent, fd: it.fd, development: false, routes: { "/fails": fails } });
  const drained = drain(server, { grace: 400 });
  using printed = spyOn(console, "error");
  printed.mockImplementation(() => {});
  expect(await (await Kept.to(it.to)).ask("/none")).toEqual({
    status: 404,
    body: "",
    closes: true,
  });
  expect(await (await Kept.to(it.to)).ask("/fails")).toEqual({
    status: 500,
    body: "Something went wrong!",
    closes: true,
  });
  expect(printed.mock.calls).toEqual([[new Error("on purpose")]]);
  expect(await drained).toBe(true);
});

test("what is under way is finished: a slow answer, a stream out, a body in", async () => {
  using it = listening("IPv4");
  const release = Promise.withResolvers<void>();
  const server = serve({
    fd: it.fd,
    routes: {
      "/slow": async () => {
        await release.promise;
        return new Response("slow");
      },
      "/stream": () =>
        new Response(
          (async function* () {
            yield "one,";
            await release.promise;
            yield "two";
          })(),
        ),
      "/body": { POST: async (request) => new Response(await request.text()) },
    },
  });
  const [slow, stream, body] = [await Kept.to(it.to), await Kept.to(it.to), await Kept.to(it.to)];
  slow.send("/slow");
  stream.send("/stream");
  body.send("/body", "Content-Length: 10\r\n", "POST");
  body.socket.write("01234");
  await until(
    "all three are under way",
    10,
    () => stream.received.includes("one,") && server.pendingRequests === 3,
  );
  let isOver = false;
  const drained = drain(server, { grace: 20 }).finally(() => (isOver = true));
  // Newcomers are served until these are answered, however short the grace.
  await Bun.sleep(200);
  for (let i = 0; i < 5; i++) {
    const newcomer = await Kept.to(it.to);
    newcomer.send("/body", "Content-Length: 2\r\n", "POST");
    newcomer.socket.write("hi");
    expect(await newcomer.answer()).toEqual({ status: 200, body: "hi", closes: true });
    await Bun.sleep(20);
  }
  expect(isOver).toBe(false);
  release.resolve();
  body.socket.write("56789");
  expect((await slow.answer()).body).toBe("slow");
  expect((await body.answer()).body).toBe("0123456789");
  await until(
    "the end of the stream",
    10,
    () => stream.received.includes("two") && stream.end === "closed",
  );
  expect(await drained).toBe(true);
});

test("a client that pauses for less than grace after an answer under way meets no close", async () => {
  using it = listening("IPv4");
  const release = Promise.withResolvers<void>();
  const server = serve({
    fd: it.fd,
    async fetch({ url }) {
      if (url.endsWith("/slow")) await release.promise;
      return new Response("answered");
    },
  });
  const kept = await Kept.to(it.to);
  kept.send("/slow");
  await until("the request is under way", 10, () => server.pendingRequests === 1);
  const drained = drain(server, { grace: 150 });
  await Bun.sleep(300);
  release.resolve();
  expect(await kept.answer()).toMatchObject({ body: "answered" });
  await Bun.sleep(100);
  expect(await kept.ask("/")).toEqual({ status: 200, body: "answered", closes: true });
  expect(await drained).toBe(true);
});

test("one who was accepted last is answered, though the first request comes 100 ms later", async () => {
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

test("when grace is over newcomers wait for the next, while what is open is answered", async () => {
  using it = listening("IPv4");
  const release = Promise.withResolvers<void>();
  const server = serve({
    fd: it.fd,
    async fetch({ url }) {
      if (url.endsWith("/slow")) await release.promise;
      return new Response("first");
    },
  });
  const drained = drain(server, { grace: 100 });
  const slow = await Kept.to(it.to);
  slow.send("/slow");
  await Bun.sleep(150);
  const newcomer = await Kept.to(it.to);
  newcomer.send("/");
  await Bun.sleep(100);
  release.resolve();
  expect(await slow.answer()).toEqual({ status: 200, body: "first", closes: true });
  expect(await drained).toBe(true);
  expect(newcomer.received).toBe("");
  started(serve({ fd: sockets.duplicate(it.kept), fetch: () => new Response("second") }));
  expect((await newcomer.answer()).body).toBe("second");
});

test("who connects just before grace is over has a moment for the first request", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response("in time") });
  const drained = drain(server, { grace: 100 });
  const kept = await Kept.to(it.to);
  await Bun.sleep(125);
  expect(await kept.ask("/")).toEqual({ status: 200, body: "in time", closes: true });
  expect(await drained).toBe(true);
});

test("who connects just before a long grace is over has that moment, too", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response("in time") });
  const drained = drain(server, { grace: 500 });
  await Bun.sleep(450);
  const kept = await Kept.to(it.to);
  await Bun.sleep(80);
  expect(await kept.ask("/")).toEqual({ status: 200, body: "in time", closes: true });
  expect(await drained).toBe(true);
});

test("what is left at timeout is cut off, and the result says so", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Promise<Response>(() => {}) });
  const stuck = await Kept.to(it.to);
  stuck.send("/");
  await until("the request is under way", 10, () => server.pendingRequests === 1);
  const begun = performance.now();
  expect(await drain(server, { grace: 20, timeout: 300 })).toBe(false);
  expect(performance.now() - begun).toBeWithin(290, 3000);
  await until("the connection is cut off", 10, () => stuck.end !== undefined);
});

test.each([2 ** 40, Infinity])("a grace and a timeout of %d ms are no short ones", async (long) => {
  using it = listening("IPv4");
  const server = started(serve({ fd: it.fd, fetch: () => new Response("served") }));
  let isOver = false;
  void drain(server, { grace: long, timeout: long }).finally(() => (isOver = true));
  await Bun.sleep(300);
  expect(await (await Kept.to(it.to)).ask("/")).toMatchObject({ body: "served" });
  expect(isOver).toBe(false);
});

test("who connects when grace is over is the next one's, whenever the request comes", async () => {
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

test("a connection of another server, which brings nothing, is not waited for", async () => {
  using other = listening("IPv4");
  started(serve({ fd: other.fd, fetch: () => new Response("other") }));
  const silent = await Kept.to(other.to);
  await (await Kept.to(other.to)).ask("/");
  let shortest = Infinity;
  // A busy machine makes it longer, and nothing makes it shorter.
  for (let n = 0; n < 5; n++) {
    using it = listening("IPv4");
    const server = serve({ fd: it.fd, fetch: () => new Response() });
    const begun = performance.now();
    expect(await drain(server, { grace: 0 })).toBe(true);
    shortest = Math.min(shortest, performance.now() - begun);
  }
  expect(shortest).toBeLessThan(150);
  expect(silent.end).toBeUndefined();
});

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

test("grace ends at a shorter timeout", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response() });
  const begun = performance.now();
  expect(await drain(server, { grace: 10_000, timeout: 200 })).toBe(true);
  expect(performance.now() - begun).toBeWithin(190, 2000);
});

test("nobody is waited for beyond timeout, though a connection has brought nothing", async () => {
  let shortest = Infinity;
  // A busy machine makes it longer, and nothing makes it shorter.
  for (let n = 0; n < 5; n++) {
    using it = listening("IPv4");
    const server = serve({ fd: it.fd, fetch: () => new Response() });
    const silent = await Kept.to(it.to);
    const other = await Kept.to(it.to);
    await other.ask("/");
    const begun = performance.now();
    await drain(server, { grace: 0, timeout: 20 });
    shortest = Math.min(shortest, performance.now() - begun);
    await until("the connection is closed", 10, () => silent.end !== undefined);
  }
  expect(shortest).toBeLessThan(120);
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
  open.send("/", UPGRADE);
  await until("the upgrade", 10, () => open.received.startsWith("HTTP/1.1 101 "));
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
  await until("the server closes the WebSocket", 10, () => open.end === "closed");
  expect(open.received).toMatch(GOING_AWAY);
});

test("at timeout, WebSockets are closed with 1001 all the same", async () => {
  using it = listening("IPv4");
  const server = serve({
    fd: it.fd,
    fetch: (request, server) =>
      server.upgrade(request) ? undefined : new Promise<Response>(() => {}),
    websocket: { message() {} },
  });
  const open = await Kept.to(it.to);
  open.send("/", UPGRADE);
  await until("the upgrade", 10, () => open.received.startsWith("HTTP/1.1 101 "));
  const stuck = await Kept.to(it.to);
  stuck.send("/");
  await until("the request is under way", 10, () => server.pendingRequests === 1);
  expect(await drain(server, { grace: 0, timeout: 200 })).toBe(false);
  await until("the server closes the WebSocket", 10, () => open.end !== undefined);
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
  const drained = drain(server, { grace: 200 });
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
  expect(await drained).toBe(true);
});

test.each(["throws", "rejects"])(
  "newcomers are served while a request is under way, though the handler of one %s",
  async (how) => {
    using it = listening("IPv4");
    const release = Promise.withResolvers<void>();
    const server = serve({
      fd: it.fd,
      development: false,
      async fetch({ url }) {
        if (url.endsWith("/slow")) await release.promise;
        return new Response("answered");
      },
      routes: {
        "/fails": () => {
          const error = new Error("on purpose");
          if (how === "throws") throw error;
          return Promise.reject(error);
        },
      },
      error: () => new Response("failed", { status: 500 }),
    });
    const slow = await Kept.to(it.to);
    slow.send("/slow");
    await until("the request is under way", 10, () => server.pendingRequests === 1);
    const drained = drain(server, { grace: 50 });
    for (let n = 0; n < 3; n++)
      expect(await (await Kept.to(it.to)).ask("/fails")).toMatchObject({ status: 500 });
    await Bun.sleep(500);
    expect(await (await Kept.to(it.to)).ask("/")).toMatchObject({ body: "answered" });
    release.resolve();
    expect(await slow.answer()).toMatchObject({ body: "answered" });
    expect(await drained).toBe(true);
  },
);

test("a second call returns the first one's promise", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response() });
  const first = drain(server, { grace: 10 });
  expect(drain(server, { grace: 10_000 })).toBe(first);
  expect(await first).toBe(true);
  expect(drain(server)).toBe(first);
});

test("the handlers of a reload count, before the call and after", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response("one") });
  server.reload({ fetch: () => new Response("two") });
  const drained = drain(server, { grace: 200 });
  expect(await (await Kept.to(it.to)).ask("/")).toEqual({ status: 200, body: "two", closes: true });
  server.reload({ routes: { "/": new Response("three") } });
  expect(await (await Kept.to(it.to)).ask("/")).toMatchObject({ body: "three", closes: true });
  expect(await drained).toBe(true);
});

test("a reload that Bun refuses changes nothing, before the call and after", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response("one") });
  const wrong = JSON.parse(`{ "fetch": 1 }`);
  expect(thrown(() => server.reload(wrong))).toBeInstanceOf(TypeError);
  expect((await (await Kept.to(it.to)).ask("/")).body).toBe("one");
  const drained = drain(server, { grace: 200 });
  expect(await (await Kept.to(it.to)).ask("/")).toMatchObject({ body: "one", closes: true });
  expect(thrown(() => server.reload(JSON.parse(`{ "websocket": 1 }`)))).toBeInstanceOf(Error);
  expect(await (await Kept.to(it.to)).ask("/")).toMatchObject({ body: "one", closes: true });
  expect(await drained).toBe(true);
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
    kept.send("/", UPGRADE);
    await until("the upgrade", 10, () => kept.received.startsWith("HTTP/1.1 101 "));
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

test("drains a server over TLS", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, tls: CERTIFICATE, fetch: () => new Response("safe") });
  const socket = connectTLS({ ...it.to, rejectUnauthorized: false });
  const kept = Kept.on(socket);
  expect(await kept.ask("/")).toMatchObject({ body: "safe", closes: false });
  const drained = drain(server, { grace: 300 });
  expect(await kept.ask("/")).toMatchObject({ body: "safe", closes: true });
  expect(await drained).toBe(true);
});

test("drains a server that was not passed its socket, and closes it", async () => {
  const server = serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response("mine") });
  const to = { host: "127.0.0.1", port: server.port ?? 0 };
  const drained = drain(server, { grace: 300 });
  expect(await (await Kept.to(to)).ask("/")).toMatchObject({ body: "mine", closes: true });
  expect(await drained).toBe(true);
  expect(await client(to).catch(() => "refused")).toBe("refused");
});

test("this of a handler is the server, and its arguments are Bun's", async () => {
  using it = listening("IPv4");
  const server: Bun.Server<undefined> = serve({
    fd: it.fd,
    fetch(request, given) {
      return Response.json([this === server, given === server, given.requestIP(request)?.family]);
    },
  });
  const drained = drain(server, { grace: 300 });
  expect((await (await Kept.to(it.to)).ask("/")).body).toBe('[true,true,"IPv4"]');
  await drained;
});

test("until the call Bun has the program's own handlers, so that a request costs nothing", async () => {
  const routes = { "/": () => new Response() };
  const options = { routes, fetch: () => new Response(), error: () => new Response() };
  const native = Bun.serve;
  using spy = spyOn(Bun, "serve");
  const given: Bun.Serve.Options<undefined>[] = [];
  spy.mockImplementation(((options: Bun.Serve.Options<undefined>) => {
    given.push(options);
    return native(options);
  }) as typeof Bun.serve);
  using it = listening("IPv4");
  started(serve({ ...options, fd: it.fd }));
  started(serve({ ...options, port: 0 }));
  expect(given.length).toBe(2);
  for (const { routes, fetch, error } of given) {
    expect(routes).toBe(options.routes);
    expect(fetch).toBe(options.fetch);
    expect(error).toBe(options.error);
  }
});

test("refuses a server that serve did not make, and numbers that are none", async () => {
  const server = started(Bun.serve({ port: 0, fetch: () => new Response() }));
  expect(thrown(() => drain(server))).toEqual(
    TypeError("drain got a server of Bun.serve, whose options it cannot know: use serve"),
  );
  const own = started(serve({ port: 0, fetch: () => new Response() }));
  expect(thrown(() => drain(own, { grace: -1 }))).toEqual(
    RangeError("grace is -1: give milliseconds, from 0 on"),
  );
  expect(thrown(() => drain(own, { timeout: Number.NaN }))).toEqual(
    RangeError("timeout is NaN: give milliseconds, from 0 on"),
  );
});

test("a client that asks nothing does not hold the end up", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response() });
  const silent = await client(it.to);
  clients.push(silent);
  expect(await drain(server, { grace: 20 })).toBe(true);
  expect(await text(silent)).toBe("");
});

describe.each(FAMILIES)("no request is lost over %s", (family) => {
  test("that is the first, and arrives just before the stop, while Bun does something else", async () => {
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

  test("that is the first, and comes in pieces", async () => {
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
  await until("the stream is cut", 10, () => stream.end !== undefined);
  // The next process.
  started(serve({ fd: sockets.duplicate(it.kept), ...handlers("second") }));
  await until("the next one serves all", 10, () => (answers["second"] ?? 0) > 100);
  isOver = true;
  await Promise.all(workers);
  expect(answers["first"]).toBeGreaterThan(10);
  expect(answers["lost"]).toBeUndefined();
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
  await until("its end", 10, () => stream.end === "closed");
  expect(stream.received).toContain("told");
});

test.each([
  ["not at all", () => {}],
  ["and fails", () => Promise.reject(new Error("too large"))],
  ["up to its first part", async ({ body }: Request) => void (await body?.getReader().read())],
  ["and cancels it", async ({ body }: Request) => await body?.cancel()],
])(
  "the early response to a body of 1 or 10 MB arrives if the handler reads it %s",
  async (_, read) => {
    using it = listening("IPv4");
    const server = serve({
      fd: it.fd,
      async fetch(request) {
        await read(request);
        return new Response("denied", { status: 401 });
      },
      error: () => new Response("denied", { status: 401 }),
    });
    const drained = drain(server, { grace: 300 });
    for (const size of [1e6, 1e7]) {
      const kept = await Kept.to(it.to);
      kept.send("/", `Content-Length: ${size}\r\n`, "POST");
      for (let sent = 0; sent < size; sent += 1e5) {
        kept.socket.write(Buffer.alloc(1e5));
        await Bun.sleep(0);
      }
      expect(await kept.answer()).toMatchObject({ status: 401, body: "denied" });
      kept.socket.end();
    }
    expect(await drained).toBe(true);
  },
);

test("a body that is still coming when the server stops gets its early response", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response("denied", { status: 401 }) });
  const kept = await Kept.to(it.to);
  const drained = drain(server, { grace: 20 });
  kept.send("/", "Content-Length: 10000000\r\n", "POST");
  for (let sent = 0; sent < 100; sent++) {
    kept.socket.write(Buffer.alloc(1e5));
    await Bun.sleep(10);
  }
  expect(kept.received).toStartWith("HTTP/1.1 401");
  expect(kept.end ?? "").not.toMatch(/ECONNRESET|EPIPE/);
  expect(await drained).toBe(true);
});

test.each([20, 70, 170])(
  "a TLS handshake under way is finished, with a round trip of %i ms",
  async (roundTrip) => {
    using it = listening("IPv4");
    using distance = await far(it.to, roundTrip);
    const server = serve({ fd: it.fd, tls: CERTIFICATE, fetch: () => new Response("safe") });
    const kept = Kept.on(connectTLS({ port: distance.port, rejectUnauthorized: false }));
    kept.send("/");
    await until("it is accepted", 10, () => connectionsAt(socketName(it.kept)).length === 1);
    const drained = drain(server, { grace: 1 });
    expect(await kept.answer()).toEqual({ status: 200, body: "safe", closes: true });
    expect(await drained).toBe(true);
  },
);

test.each(FAMILIES)(
  "drain of a stopped server over %s is true at once, and harms no other",
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

test("the answers of static: end their connections too", async () => {
  using it = listening("IPv4");
  const options = {
    fd: it.fd,
    static: { "/": new Response("static") },
    fetch: () => new Response("other"),
  };
  const drained = drain(serve(options), { grace: 300 });
  const { body, closes } = await (await Kept.to(it.to)).ask("/");
  expect([body, closes]).toEqual(["static", true]);
  expect(await drained).toBe(true);
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
  await until("the end", 10, () => slow.end === "closed");
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
    await until("it is under way", 10, () => server.pendingRequests === 1);
    const drained = drain(server, { grace: 20 });
    await Promise.all([ended, goaway]);
    expect(length).toBe(1_000_000);
    expect(await drained).toBe(true);
  },
);

test("options with a routes that is an array, as a Hono app has, are taken as Bun.serve takes them", async () => {
  using it = listening("IPv4");
  const options = { fd: it.fd, fetch: () => new Response("app") };
  const server = serve(Object.assign(options, JSON.parse(`{ "routes": [{ "path": "/" }] }`)));
  expect(await (await Kept.to(it.to)).ask("/")).toMatchObject({ body: "app", closes: false });
  const drained = drain(server, { grace: 300 });
  expect(await (await Kept.to(it.to)).ask("/")).toMatchObject({ body: "app", closes: true });
  expect(await drained).toBe(true);
});

test("an aborted signal cuts off what is left at once", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Promise<Response>(() => {}) });
  const stuck = await Kept.to(it.to);
  stuck.send("/");
  await until("the request is under way", 10, () => server.pendingRequests === 1);
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

test("what a stopped server still answers is waited for", async () => {
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
    await until("the request is under way", 10, () => server.pendingRequests === 1);
    const stopped = server.stop();
    const drained = drain(server, { timeout });
    setTimeout(release.resolve, 200);
    expect(await drained).toBe(isAnswered);
    expect((await kept.answer()).body).toBe("at last");
    await stopped;
  }
});

describe("a request with a body that the handler does not read", () => {
  const ignoring = () => {
    const it = listening("IPv4");
    const server = serve({ fd: it.fd, fetch: () => new Response("thanks") });
    return { ...it, server, [Symbol.dispose]: () => it[Symbol.dispose]() };
  };

  test.each([
    ["in one piece", ["POST", 10], 0],
    ["after its head", ["PUT", 60_000], 20],
  ] as const)(
    "and that is short ends the connection, if it comes %s",
    async (_, [method, size], pause) => {
      using it = ignoring();
      const drained = drain(it.server, { grace: 200 });
      const kept = await Kept.to(it.to);
      kept.send("/", `Content-Length: ${size}\r\n`, method);
      await Bun.sleep(pause);
      kept.socket.write("x".repeat(size));
      expect(await kept.answer()).toEqual({ status: 200, body: "thanks", closes: true });
      expect(await drained).toBe(true);
    },
  );

  test("and that is chunked and empty ends the connection", async () => {
    using it = ignoring();
    const drained = drain(it.server, { grace: 200 });
    const kept = await Kept.to(it.to);
    kept.send("/", "Transfer-Encoding: chunked\r\n", "POST");
    kept.socket.write("0\r\n\r\n");
    expect(await kept.answer()).toEqual({ status: 200, body: "thanks", closes: true });
    expect(await drained).toBe(true);
  });

  test("and that comes late is answered first, and the connection goes on", async () => {
    using it = ignoring();
    const drained = drain(it.server, { grace: 1500 });
    const kept = await Kept.to(it.to);
    kept.send("/", "Content-Length: 4\r\n", "POST");
    expect(await kept.answer()).toEqual({ status: 200, body: "thanks", closes: false });
    kept.socket.write("body");
    expect(await kept.ask("/")).toEqual({ status: 200, body: "thanks", closes: true });
    expect(await drained).toBe(true);
  });

  test("is still there for a response that reads it later", async () => {
    using it = listening("IPv4");
    const server = serve({
      fd: it.fd,
      fetch: (request) =>
        new Response(
          (async function* () {
            await Bun.sleep(20);
            yield `read ${await request.text()}`;
          })(),
        ),
    });
    const drained = drain(server, { grace: 200 });
    const kept = await Kept.to(it.to);
    kept.send("/", "Content-Length: 4\r\n", "POST");
    kept.socket.write("body");
    await until("the end", 10, () => kept.end === "closed");
    expect(kept.received).toContain("read body");
    expect(await drained).toBe(true);
  });
});

test("a client that waits for 100 Continue gets it, and its answer", async () => {
  using it = listening("IPv4");
  const server = serve({
    fd: it.fd,
    fetch: async (request) => new Response(await request.text()),
  });
  const drained = drain(server, { grace: 20 });
  const kept = await Kept.to(it.to);
  kept.send("/", "Expect: 100-continue\r\nContent-Length: 4\r\n", "POST");
  await until("100 Continue", 10, () => kept.received.startsWith("HTTP/1.1 100 "));
  // Phase 3 is over by now.
  await Bun.sleep(100);
  kept.received = "";
  kept.socket.write("body");
  expect(await kept.answer()).toEqual({ status: 200, body: "body", closes: true });
  expect(await drained).toBe(true);
});

test("requests that come together are answered as before, up to the one that ends the connection", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: ({ url }) => new Response(new URL(url).pathname) });
  const two = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n";
  const before = await Kept.to(it.to);
  before.socket.write(two);
  await until("both answers", 10, () => before.received.endsWith("/2"));
  const drained = drain(server, { grace: 300 });
  const kept = await Kept.to(it.to);
  kept.socket.write(two);
  // Bun 1.4.0 answers the second as well.
  const { body, ...answer } = await kept.answer();
  expect([body.slice(0, 2), answer]).toEqual(["/1", { status: 200, closes: true }]);
  expect(await drained).toBe(true);
});

describe("on a connection that was kept", () => {
  test.each(["", " over TLS"])("a request in pieces at the stop is answered%s", async (kind) => {
    using it = listening("IPv4");
    const tls = kind === "" ? {} : { tls: CERTIFICATE };
    const server = serve({ fd: it.fd, ...tls, fetch: () => new Response("answered") });
    const kept =
      kind === ""
        ? await Kept.to(it.to)
        : Kept.on(connectTLS({ ...it.to, rejectUnauthorized: false }));
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

test("what a WebSocket has been sent arrives, however slowly, and then the close", async () => {
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
  await until("the end", 10, () => slow.end === "closed");
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
  rude.send("/", UPGRADE);
  await until("the upgrade", 10, () => rude.received.startsWith("HTTP/1.1 101 "));
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
      await until("it is busy", 10, () => busy.pendingRequests === 1);
      kept.socket.write("GET / HT");
    }
    const server = serve({ fd: it.fd, fetch: () => new Response() });
    const begun = performance.now();
    expect(await drain(server, { grace: 0 })).toBe(true);
    expect(performance.now() - begun).toBeLessThan(400);
  },
);

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

describe("the result says whether a client that is slow got all", () => {
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
        clients.push(slow);
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
