import { describe, expect, mock, spyOn, test } from "bun:test";
import { mkdirSync, openSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";

import { drain, draining } from "../../src/activation/adopt/drain.ts";
import { serve } from "../../src/activation/adopt/serve.ts";
import { servedBy } from "../../src/activation/adopt/served.ts";
import { identity as identityOf, replace } from "../../src/activation/linux/libc.ts";
import { onServe, rejection, thrown } from "../support/checks.ts";
import { scratch } from "../support/daemon.ts";
import { drainUntil, ECHO, GOING_AWAY, holding, Kept } from "../support/kept.ts";
import { serving, underWay, upgrade, UPGRADE } from "../support/kept.ts";
import { CERTIFICATE, client, FAMILIES, listening, text } from "../support/listening.ts";
import * as sockets from "../support/sockets.ts";
import { atEnd, cleansUp, started } from "../support/started.ts";
import { until } from "../support/until.ts";

cleansUp();

describe.each(FAMILIES)("drain of a server on a socket over %s", (family) => {
  test("answers with Connection: close from the call on, and leaves later clients to the next process", async () => {
    const it = serving("first", family);
    const kept = await it.client();
    expect(await kept.ask()).toEqual({ status: 200, body: "first", closes: false });
    const end = drainUntil(it.server);
    expect(await kept.ask()).toEqual({ status: 200, body: "first", closes: true });
    expect(await kept.ended()).toBe("closed");
    // A newcomer is served meanwhile.
    expect(await it.ask()).toEqual({ status: 200, body: "first", closes: true });
    expect(await end()).toBe(true);
    // From then on newcomers wait for the next process.
    const waiting = await it.asking();
    it.next("second");
    expect((await waiting.answer()).body).toBe("second");
  });

  test("closes a WebSocket with 1001, and refuses another before the handler runs", async () => {
    let upgrades = 0;
    const fetch = (request: Request, server: Bun.Server<undefined>) => {
      upgrades++;
      return upgrade(request, server);
    };
    const it = serving({ fetch, websocket: ECHO }, family);
    const open = await it.client();
    await open.upgrade();
    const drained = drain(it.server, { grace: 1000 });
    expect(await it.ask("/", UPGRADE)).toMatchObject({ status: 503, closes: true });
    expect(upgrades).toBe(1);
    // The open one goes on for as long as there are requests.
    await open.echo();
    expect(await drained).toBe(true);
    expect(await open.ended()).toBe("closed");
    expect(open.received).toMatch(GOING_AWAY);
  });
});

test("a second call has no effect on the limits of the first", async () => {
  const { fetch, release } = holding("never");
  const it = serving({ fetch });
  await it.asking("/slow");
  await underWay(it.server);
  const begun = performance.now();
  const first = drain(it.server, { grace: 0, timeout: 300 });
  await Bun.sleep(50);
  expect(drain(it.server, { timeout: 60_000 })).toBe(first);
  expect(await first).toBe(false);
  expect(performance.now() - begun).toBeLessThan(30_000);
  release.resolve();
});

test.each([106, 107, 108])("a server on a path of %i bytes is drained", async (length) => {
  using directory = scratch();
  const unix = join(directory.path, "x").padEnd(length, "x");
  const server = started(serve({ unix, fetch: () => new Response() }));
  expect(await drain(server, { grace: 0 })).toBe(true);
});

test("each kind of answer says Connection: close: routes, files, streams, errors, not found", async () => {
  using scratched = scratch();
  const directory = scratched.path;
  const file = join(directory, "file.txt");
  writeFileSync(file, "in a file");
  const shared = new Response("static", { headers: { "X-Kept": "yes" }, status: 201 });
  const it = serving({
    development: false,
    routes: {
      "/function/:name": ({ params }) => new Response(params.name),
      "/promise": async () => new Response("later"),
      "/static": shared,
      "/file": new Response(Bun.file(file)),
      "/bunfile": Bun.file(file),
      "/method": { GET: () => new Response("got"), POST: new Response("posted") },
      "/described": Object.assign({ GET: () => new Response("got") }, { description: "a text" }),
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
    const kept = await it.client();
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
    "/described": "got",
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
  const end = drainUntil(it.server);
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
});

test.each([
  ["without", {}],
  // As a framework's build leaves them.
  ["with null for", JSON.parse(`{ "fetch": null, "error": null, "websocket": null }`)],
])("%s fetch and error, the answers of Bun itself say Connection: close", async (_, absent) => {
  const fails = () => {
    throw new Error("on purpose");
  };
  const it = serving({ ...absent, development: false, routes: { "/fails": fails } });
  const end = drainUntil(it.server);
  using printed = spyOn(console, "error");
  printed.mockImplementation(() => {});
  expect(await it.ask("/none")).toEqual({ status: 404, body: "", closes: true });
  expect(await it.ask("/fails")).toEqual({
    status: 500,
    body: "Something went wrong!",
    closes: true,
  });
  expect(printed.mock.calls).toEqual([[new Error("on purpose")]]);
  expect(await end()).toBe(true);
});

test("requests under way are finished: a slow answer, a stream out, a body in", async () => {
  const { release, fetch } = holding("slow");
  const it = serving({
    routes: {
      "/slow": fetch,
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
  const [slow, stream, body] = [await it.client(), await it.client(), await it.client()];
  slow.send("/slow");
  stream.send("/stream");
  body.send("/body", "Content-Length: 10\r\n", "POST");
  body.socket.write("01234");
  await until(
    "all three are under way",
    10,
    () => stream.received.includes("one,") && it.server.pendingRequests === 3,
  );
  let isOver = false;
  const drained = drain(it.server, { grace: 20 }).finally(() => (isOver = true));
  // Newcomers are served until these are answered, however short the grace.
  await Bun.sleep(200);
  for (let i = 0; i < 5; i++) {
    const newcomer = await it.asking("/body", "Content-Length: 2\r\n", "POST");
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
  const { release, fetch } = holding("answered");
  const it = serving({ fetch });
  const kept = await it.asking("/slow");
  await underWay(it.server);
  const drained = drain(it.server, { grace: 150 });
  await Bun.sleep(300);
  release.resolve();
  expect(await kept.answer()).toMatchObject({ body: "answered" });
  await Bun.sleep(100);
  expect(await kept.ask()).toEqual({ status: 200, body: "answered", closes: true });
  expect(await drained).toBe(true);
});

test("after grace newcomers wait for the next process, and open connections are answered", async () => {
  const { release, fetch } = holding("first");
  const it = serving({ fetch });
  const drained = drain(it.server, { grace: 400 });
  const slow = await it.asking("/slow");
  await Bun.sleep(450);
  const newcomer = await it.asking();
  await Bun.sleep(100);
  release.resolve();
  expect(await slow.answer()).toEqual({ status: 200, body: "first", closes: true });
  expect(await drained).toBe(true);
  expect(newcomer.received).toBe("");
  it.next("second");
  expect((await newcomer.answer()).body).toBe("second");
});

test("at timeout open requests are cut off, and the result is false", async () => {
  const it = serving({ fetch: () => new Promise<Response>(() => {}) });
  const stuck = await it.asking();
  await underWay(it.server);
  const begun = performance.now();
  expect(await drain(it.server, { grace: 20, timeout: 300 })).toBe(false);
  expect(performance.now() - begun).toBeWithin(290, 3000);
  await stuck.ended();
});

test.each([2 ** 40, Infinity])("a grace and a timeout of %d ms are no short ones", async (long) => {
  const it = serving("served");
  started(it.server);
  let isOver = false;
  void drain(it.server, { grace: long, timeout: long }).finally(() => (isOver = true));
  await Bun.sleep(300);
  expect(await it.ask()).toMatchObject({ body: "served" });
  expect(isOver).toBe(false);
});

test("a connection of another server, which brings nothing, is not waited for", async () => {
  const other = serving("other");
  started(other.server);
  const silent = await other.client();
  await other.ask();
  let shortest = Infinity;
  // A busy machine makes it longer, and nothing makes it shorter.
  for (let n = 0; n < 5; n++) {
    const it = serving("");
    const begun = performance.now();
    expect(await drain(it.server, { grace: 0 })).toBe(true);
    shortest = Math.min(shortest, performance.now() - begun);
  }
  expect(shortest).toBeLessThan(150);
  expect(silent.end).toBeUndefined();
});

test("grace ends at a shorter timeout", async () => {
  const it = serving("");
  const begun = performance.now();
  expect(await drain(it.server, { grace: 10_000, timeout: 200 })).toBe(true);
  expect(performance.now() - begun).toBeWithin(190, 2000);
});

test("a connection that has brought nothing is not waited for beyond timeout", async () => {
  let shortest = Infinity;
  // A busy machine makes it longer, and nothing makes it shorter.
  for (let n = 0; n < 5; n++) {
    const it = serving("");
    const silent = await it.client();
    await it.ask();
    const begun = performance.now();
    await drain(it.server, { grace: 0, timeout: 20 });
    shortest = Math.min(shortest, performance.now() - begun);
    await silent.ended();
  }
  expect(shortest).toBeLessThan(120);
});

test.each(["throws", "rejects"])(
  "newcomers are served while a request is under way, though the handler of one %s",
  async (how) => {
    const { release, fetch } = holding("answered");
    const it = serving({
      development: false,
      fetch,
      routes: {
        "/fails": (): Promise<Response> => {
          const error = new Error("on purpose");
          if (how === "throws") throw error;
          return Promise.reject(error);
        },
      },
      error: () => new Response("failed", { status: 500 }),
    });
    const slow = await it.asking("/slow");
    await underWay(it.server);
    const drained = drain(it.server, { grace: 50 });
    for (let n = 0; n < 3; n++) expect(await it.ask("/fails")).toMatchObject({ status: 500 });
    await Bun.sleep(500);
    expect(await it.ask()).toMatchObject({ body: "answered" });
    release.resolve();
    expect(await slow.answer()).toMatchObject({ body: "answered" });
    expect(await drained).toBe(true);
  },
);

test("a second call returns the first one's promise", async () => {
  const it = serving("");
  const first = drain(it.server, { grace: 10 });
  expect(drain(it.server, { grace: 10_000 })).toBe(first);
  expect(await first).toBe(true);
  expect(drain(it.server)).toBe(first);
});

test("the handlers of a reload count, before the call and after", async () => {
  const it = serving("one");
  it.server.reload({ fetch: () => new Response("two") });
  const end = drainUntil(it.server);
  expect(await it.ask()).toEqual({ status: 200, body: "two", closes: true });
  it.server.reload({ routes: { "/": new Response("three") } });
  expect(await it.ask()).toMatchObject({ body: "three", closes: true });
  expect(await end()).toBe(true);
});

test.each(["before", "after"])("what a reload does not give stays, %s the call", async (when) => {
  const { answer, fail, ...rest } = {
    answer: (body: string) => () => new Response(body),
    fail: () => {
      throw new Error("on purpose");
    },
    error: () => new Response("an error", { status: 500 }),
  };
  const reloads = [
    { routes: { "/": fail, "/route": answer("a route") } },
    { fetch: answer("two") },
    { error: () => new Response("another error", { status: 500 }) },
  ];
  // The last one of an order cannot be lost.
  for (const order of [reloads, reloads.toReversed()]) {
    const first = { ...rest, development: false, fetch: answer("one"), routes: { "/": fail } };
    const it = serving(first);
    const reload = () => order.forEach((options) => it.server.reload(Object(options)));
    if (when === "before") reload();
    const end = drainUntil(it.server);
    if (when === "after") reload();
    expect(await it.ask("/route")).toEqual({ status: 200, body: "a route", closes: true });
    expect(await it.ask("/")).toEqual({ status: 500, body: "another error", closes: true });
    expect(await it.ask("/other")).toEqual({ status: 200, body: "two", closes: true });
    expect(await end()).toBe(true);
  }
});

const failing = (): never => {
  throw new Error("on purpose");
};

test.each([
  ["throws", failing],
  ["is rejected", async () => failing()],
  ["returns nothing", () => undefined],
  ["returns no response", async () => "text"],
])("a handler of errors that %s is called once, and Bun's answer is sent", async (_, handler) => {
  const error = mock(handler);
  const it = serving(Object({ development: false, fetch: failing, error }));
  const end = drainUntil(it.server);
  using silent = spyOn(console, "error").mockImplementation(() => {});
  expect(await it.ask()).toMatchObject({ status: 500, closes: true });
  expect(silent).toHaveBeenCalled();
  expect(error).toHaveBeenCalledTimes(1);
  expect(await end()).toBe(true);
});

test("an error that a handler returns is one that it throws", async () => {
  const error = ({ message }: Error) => new Response(message, { status: 500 });
  const it = serving(Object({ fetch: () => new Error("returned"), error }));
  const end = drainUntil(it.server);
  expect(await it.ask()).toEqual({ status: 500, body: "returned", closes: true });
  expect(await end()).toBe(true);
});

test.each([
  ["another file", () => openSync("/dev/null", "r")],
  ["a descriptor of the same socket", (kept: number) => kept],
])("a server that is stopped in the grace has ended, though %s has its number", async (_, file) => {
  const it = serving("");
  const fd = servedBy(it.server)?.watch?.fd ?? -1;
  const drained = drain(it.server, { grace: 100 });
  await it.server.stop();
  expect(sockets.isOpen(fd)).toBe(false);
  const other = file(it.kept);
  replace(other, fd);
  const identity = identityOf(fd);
  expect(await drained).toBe(true);
  expect(identityOf(fd)).toBe(identity);
  for (const number of new Set([fd, other])) if (number !== it.kept) sockets.close(number);
});

test("drain does not look at the address that serve ignores", async () => {
  const it = serving(Object({ port: Number.NaN, fetch: () => new Response() }));
  expect(await drain(it.server, { grace: 0 })).toBe(true);
});

test("a reload that Bun refuses changes nothing, before the call and after", async () => {
  const it = serving("one");
  const wrong = JSON.parse(`{ "fetch": 1 }`);
  expect(thrown(() => it.server.reload(wrong))).toBeInstanceOf(TypeError);
  expect((await it.ask()).body).toBe("one");
  const end = drainUntil(it.server);
  expect(await it.ask()).toMatchObject({ body: "one", closes: true });
  expect(thrown(() => it.server.reload(JSON.parse(`{ "websocket": 1 }`)))).toBeInstanceOf(Error);
  expect(await it.ask()).toMatchObject({ body: "one", closes: true });
  expect(await end()).toBe(true);
});

test("drain ends a server over TLS", async () => {
  const it = serving({ tls: CERTIFICATE, fetch: () => new Response("safe") });
  const kept = it.tlsClient();
  expect(await kept.ask()).toMatchObject({ body: "safe", closes: false });
  const end = drainUntil(it.server);
  expect(await kept.ask()).toMatchObject({ body: "safe", closes: true });
  expect(await end()).toBe(true);
});

test.each(["IPv4", "Unix"])(
  "drain closes the socket of a server over %s that was not passed one",
  async (family) => {
    using scratched = scratch();
    const path = join(scratched.path, "socket");
    const fetch = () => new Response("mine");
    const isUnix = family === "Unix";
    const server = serve(
      isUnix ? { unix: path, fetch } : { hostname: "127.0.0.1", port: 0, fetch },
    );
    const to = isUnix ? { path } : { host: "127.0.0.1", port: server.port ?? 0 };
    const end = drainUntil(server);
    expect(await (await Kept.to(to)).ask()).toMatchObject({ body: "mine", closes: true });
    expect(await end()).toBe(true);
    expect(await client(to).catch(() => "refused")).toBe("refused");
  },
);

test("a server of its own on a path that is too long for a sockaddr is drained", async () => {
  using directory = scratch();
  const place = join(directory.path, "d".repeat(100));
  mkdirSync(place);
  const unix = join(place, "socket");
  const { release, fetch: handler } = holding("answered");
  const server = started(serve({ unix, fetch: handler }));
  const reply = fetch("http://localhost/slow", { unix });
  await underWay(server);
  const drained = drain(server, { grace: 10 });
  release.resolve();
  expect(await (await reply).text()).toBe("answered");
  expect(await drained).toBe(true);
});

test("drain refuses one of several servers on one address, whose clients it cannot tell apart", async () => {
  const on = (port: number, text: string) => {
    const fetch = () => new Response(text);
    return started(serve({ hostname: "127.0.0.1", port, reusePort: true, fetch }));
  };
  const one = on(0, "served");
  const other = on(one.port ?? 0, "served");
  expect(await rejection(drain(other))).toMatch(/^TypeError: more than one server .*give each one/);
  for (let n = 0; n < 10; n++)
    expect(await (await fetch(`http://127.0.0.1:${one.port}`, { keepalive: false })).text()).toBe(
      "served",
    );
});

test("handlers keep the `this` and the arguments of Bun", async () => {
  const selves: unknown[] = [];
  const it = serving({
    routes: {
      "/fails": () => {
        throw new Error("on purpose");
      },
    },
    fetch(request, given) {
      selves.push(this);
      return Response.json([given === self, given.requestIP(request)?.family]);
    },
    error({ message }) {
      selves.push(this);
      return new Response(message);
    },
  });
  const self: unknown = it.server;
  await it.ask("/fails");
  const end = drainUntil(it.server);
  expect((await it.ask()).body).toBe('[true,"IPv4"]');
  expect((await it.ask("/fails")).body).toBe("on purpose");
  expect(selves.map((one) => one === self)).toEqual([true, true, true]);
  await end();
});

test("before drain, Bun has the program's own handlers: a request costs nothing", async () => {
  const routes = { "/": () => new Response() };
  const options = { routes, fetch: () => new Response(), error: () => new Response() };
  const given: Bun.Serve.Options<undefined>[] = [];
  using _ = onServe((options) => void given.push(options));
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
  for (const end of [drain, draining])
    expect(thrown(() => end(createServer()))).toEqual(
      TypeError(
        "this http.Server has no passed socket: let it listen first, in a program with the preload socket-service/register",
      ),
    );
});

test("a client that asks nothing does not hold the end up", async () => {
  const it = serving("");
  const silent = await client(it.to);
  atEnd(() => silent.destroy());
  expect(await drain(it.server, { grace: 20 })).toBe(true);
  expect(await text(silent)).toBe("");
});

test("the answers of `static` say Connection: close", async () => {
  const options = { static: { "/": new Response("static") }, fetch: () => new Response("other") };
  const it = serving(options);
  const end = drainUntil(it.server);
  const { body, closes } = await it.ask();
  expect([body, closes]).toEqual(["static", true]);
  expect(await end()).toBe(true);
});

test("options with a routes that is an array, as a Hono app has, are taken as Bun.serve takes them", async () => {
  const options = { fetch: () => new Response("app") };
  const it = serving(Object.assign(options, JSON.parse(`{ "routes": [{ "path": "/" }] }`)));
  expect(await it.ask()).toMatchObject({ body: "app", closes: false });
  const end = drainUntil(it.server);
  expect(await it.ask()).toMatchObject({ body: "app", closes: true });
  expect(await end()).toBe(true);
  // A reload with one leaves the routes before.
  const routed = serving({ ...options, routes: { "/r": () => new Response("route") } });
  routed.server.reload(Object.assign(options, JSON.parse(`{ "routes": [{ "path": "/" }] }`)));
  const over = drainUntil(routed.server);
  expect(await routed.ask("/r")).toMatchObject({ body: "route", closes: true });
  expect(await over()).toBe(true);
});
