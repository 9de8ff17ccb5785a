import { describe, expect, spyOn, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectTLS } from "node:tls";

import { drain, draining } from "../../src/activation/adopt/drain.ts";
import { serve } from "../../src/activation/adopt/serve.ts";
import { thrown } from "../support/checks.ts";
import { drainUntil, GOING_AWAY, Kept, underWay, UPGRADE } from "../support/kept.ts";
import { CERTIFICATE, client, FAMILIES, listening, text } from "../support/listening.ts";
import * as sockets from "../support/sockets.ts";
import { atEnd, cleansUp, started } from "../support/started.ts";
import { until } from "../support/until.ts";

cleansUp();

/** A handler that answers a request for /slow when it is released, and others at once. */
function holding(text: string) {
  const release = Promise.withResolvers<void>();
  const fetch = async ({ url }: Request) => {
    if (url.endsWith("/slow")) await release.promise;
    return new Response(text);
  };
  return { release, fetch };
}

describe.each(FAMILIES)("drain of a server on a socket over %s", (family) => {
  test("answers with Connection: close from the call on, and leaves later clients to the next process", async () => {
    using it = listening(family);
    const server = serve({ fd: it.fd, fetch: () => new Response("first") });
    const kept = await Kept.to(it.to);
    expect(await kept.ask("/")).toEqual({ status: 200, body: "first", closes: false });
    const drained = drain(server, { grace: 200 });
    expect(await kept.ask("/")).toEqual({ status: 200, body: "first", closes: true });
    expect(await kept.ended()).toBe("closed");
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
    await open.upgrade();
    const drained = drain(server, { grace: 300 });
    const late = await Kept.to(it.to);
    expect(await late.ask("/", UPGRADE)).toMatchObject({ status: 503, closes: true });
    expect(upgrades).toBe(1);
    // The open one goes on for as long as there are requests.
    open.socket.write(Uint8Array.of(0x81, 0x82, 0, 0, 0, 0, 0x68, 0x69));
    await until("the echo", 10, () => open.received.endsWith("\x81\x07echo hi"));
    expect(await drained).toBe(true);
    expect(await open.ended()).toBe("closed");
    expect(open.received).toMatch(GOING_AWAY);
  });
});

test("each kind of answer says Connection: close: routes, files, streams, errors, not found", async () => {
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
  const end = drainUntil(server);
  for (const [target, answer] of answers)
    expect([target, await ask(target)]).toEqual([target, { ...answer, closes: true }]);
  // Bun has no way to add a header to these.
  expect(await ask("/directory/file.txt")).toEqual({
    status: 200,
    body: "in a file",
    closes: false,
  });
  await end();
  expect(shared.headers.has("Connection")).toBe(false);
  rmSync(directory, { recursive: true });
});

test.each([
  ["without", {}],
  // As a framework's build leaves them.
  ["with null for", JSON.parse(`{ "fetch": null, "error": null, "websocket": null }`)],
])("%s fetch and error, the answers of Bun itself say Connection: close", async (_, absent) => {
  using it = listening("IPv4");
  const fails = () => {
    throw new Error("on purpose");
  };
  const server = serve({ ...absent, fd: it.fd, development: false, routes: { "/fails": fails } });
  const end = drainUntil(server);
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
  expect(await end()).toBe(true);
});

test("requests under way are finished: a slow answer, a stream out, a body in", async () => {
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
  const { release, fetch } = holding("answered");
  const server = serve({ fd: it.fd, fetch });
  const kept = await Kept.to(it.to);
  kept.send("/slow");
  await underWay(server);
  const drained = drain(server, { grace: 150 });
  await Bun.sleep(300);
  release.resolve();
  expect(await kept.answer()).toMatchObject({ body: "answered" });
  await Bun.sleep(100);
  expect(await kept.ask("/")).toEqual({ status: 200, body: "answered", closes: true });
  expect(await drained).toBe(true);
});

test("after grace newcomers wait for the next process, and open connections are answered", async () => {
  using it = listening("IPv4");
  const { release, fetch } = holding("first");
  const server = serve({ fd: it.fd, fetch });
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

test("at timeout open requests are cut off, and the result is false", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Promise<Response>(() => {}) });
  const stuck = await Kept.to(it.to);
  stuck.send("/");
  await underWay(server);
  const begun = performance.now();
  expect(await drain(server, { grace: 20, timeout: 300 })).toBe(false);
  expect(performance.now() - begun).toBeWithin(290, 3000);
  await stuck.ended();
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

test("grace ends at a shorter timeout", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response() });
  const begun = performance.now();
  expect(await drain(server, { grace: 10_000, timeout: 200 })).toBe(true);
  expect(performance.now() - begun).toBeWithin(190, 2000);
});

test("a connection that has brought nothing is not waited for beyond timeout", async () => {
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
    await silent.ended();
  }
  expect(shortest).toBeLessThan(120);
});

test.each(["throws", "rejects"])(
  "newcomers are served while a request is under way, though the handler of one %s",
  async (how) => {
    using it = listening("IPv4");
    const { release, fetch } = holding("answered");
    const server = serve({
      fd: it.fd,
      development: false,
      fetch,
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
    await underWay(server);
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
  const end = drainUntil(server);
  expect(await (await Kept.to(it.to)).ask("/")).toEqual({ status: 200, body: "two", closes: true });
  server.reload({ routes: { "/": new Response("three") } });
  expect(await (await Kept.to(it.to)).ask("/")).toMatchObject({ body: "three", closes: true });
  expect(await end()).toBe(true);
});

test("a reload that Bun refuses changes nothing, before the call and after", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response("one") });
  const wrong = JSON.parse(`{ "fetch": 1 }`);
  expect(thrown(() => server.reload(wrong))).toBeInstanceOf(TypeError);
  expect((await (await Kept.to(it.to)).ask("/")).body).toBe("one");
  const end = drainUntil(server);
  expect(await (await Kept.to(it.to)).ask("/")).toMatchObject({ body: "one", closes: true });
  expect(thrown(() => server.reload(JSON.parse(`{ "websocket": 1 }`)))).toBeInstanceOf(Error);
  expect(await (await Kept.to(it.to)).ask("/")).toMatchObject({ body: "one", closes: true });
  expect(await end()).toBe(true);
});

test("drain ends a server over TLS", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, tls: CERTIFICATE, fetch: () => new Response("safe") });
  const socket = connectTLS({ ...it.to, rejectUnauthorized: false });
  const kept = new Kept(socket);
  expect(await kept.ask("/")).toMatchObject({ body: "safe", closes: false });
  const end = drainUntil(server);
  expect(await kept.ask("/")).toMatchObject({ body: "safe", closes: true });
  expect(await end()).toBe(true);
});

test("drain closes the socket of a server that was not passed one", async () => {
  const server = serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response("mine") });
  const to = { host: "127.0.0.1", port: server.port ?? 0 };
  const end = drainUntil(server);
  expect(await (await Kept.to(to)).ask("/")).toMatchObject({ body: "mine", closes: true });
  expect(await end()).toBe(true);
  expect(await client(to).catch(() => "refused")).toBe("refused");
});

test("a handler keeps the `this` and the arguments of Bun", async () => {
  using it = listening("IPv4");
  const server: Bun.Server<undefined> = serve({
    fd: it.fd,
    fetch(request, given) {
      return Response.json([this === server, given === server, given.requestIP(request)?.family]);
    },
  });
  const end = drainUntil(server);
  expect((await (await Kept.to(it.to)).ask("/")).body).toBe('[true,true,"IPv4"]');
  await end();
});

test("before drain, Bun has the program's own handlers: a request costs nothing", async () => {
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

test("drain and draining refuse a server that serve did not make", () => {
  const server = started(Bun.serve({ port: 0, fetch: () => new Response() }));
  for (const end of [drain, draining])
    expect(thrown(() => end(server))).toEqual(
      TypeError("serve did not make this server: use serve instead of Bun.serve"),
    );
});

test("a client that asks nothing does not hold the end up", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response() });
  const silent = await client(it.to);
  atEnd(() => silent.destroy());
  expect(await drain(server, { grace: 20 })).toBe(true);
  expect(await text(silent)).toBe("");
});

test("the answers of `static` say Connection: close", async () => {
  using it = listening("IPv4");
  const options = {
    fd: it.fd,
    static: { "/": new Response("static") },
    fetch: () => new Response("other"),
  };
  const end = drainUntil(serve(options));
  const { body, closes } = await (await Kept.to(it.to)).ask("/");
  expect([body, closes]).toEqual(["static", true]);
  expect(await end()).toBe(true);
});

test("options with a routes that is an array, as a Hono app has, are taken as Bun.serve takes them", async () => {
  using it = listening("IPv4");
  const options = { fd: it.fd, fetch: () => new Response("app") };
  const server = serve(Object.assign(options, JSON.parse(`{ "routes": [{ "path": "/" }] }`)));
  expect(await (await Kept.to(it.to)).ask("/")).toMatchObject({ body: "app", closes: false });
  const end = drainUntil(server);
  expect(await (await Kept.to(it.to)).ask("/")).toMatchObject({ body: "app", closes: true });
  expect(await end()).toBe(true);
});
