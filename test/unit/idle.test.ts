import { expect, spyOn, test } from "bun:test";
import { heapStats } from "bun:jsc";
import fs from "node:fs";

import { Idle, whenIdle } from "../../src/activation/adopt/idle.ts";
import { listen } from "../../src/activation/adopt/listen.ts";
import { serve } from "../../src/activation/adopt/serve.ts";
import { servedBy } from "../../src/activation/adopt/served.ts";
import { thrown } from "../support/checks.ts";
import { execute } from "../support/daemon.ts";
import { happens, idleAfterUses, within } from "../support/idle.ts";
import { drainUntil, served } from "../support/kept.ts";
import { client, exchange, listening } from "../support/listening.ts";
import { close, duplicate } from "../support/sockets.ts";
import { cleansUp, started } from "../support/started.ts";
import { until } from "../support/until.ts";

cleansUp();

const TIMEOUT = 200;

test("each of two calls for a server notices its requests", async () => {
  const { server, ...it } = served("Hello");
  const idle = [whenIdle(server, { timeout: 800 }), whenIdle(server, { timeout: 900 })];
  const use = async () => expect(await exchange(it.to)).toEndWith("Hello");
  await idleAfterUses(
    { timeout: 800, pause: 300 },
    Promise.race(idle),
    Array.from({ length: 4 }, () => use),
  );
  await happens(Promise.all(idle));
});

test("a drain stays in force if whenIdle is called during it", async () => {
  const it = served("Hello");
  const end = drainUntil(it.server);
  expect(await it.ask()).toMatchObject({ closes: true });
  void whenIdle(it.server, { timeout: 1000 });
  expect(await it.ask()).toMatchObject({ closes: true });
  expect(await end()).toBe(true);
});

test("each request counts, also a short one between two looks, and after a reload", async () => {
  using it = listening("IPv4");
  const route = () => new Response("route");
  const fails = () => {
    throw new Error("on purpose");
  };
  const options = {
    routes: { "/a": route, "/b": { GET: route }, "/fails": fails },
    fetch: () => new Response("fetch"),
    error: () => new Response("error"),
  };
  const server = started(serve({ fd: it.fd, ...options }));
  const idle = whenIdle(server, { timeout: 500 });
  const uses = [
    ["/a", "route"],
    ["/b", "route"],
    ["/b", "route"],
    ["/", "fetch"],
    ["/", "fetch"],
    ["/fails", "error"],
    ["/a", "route"],
    ["/", "fetch"],
  ].map(([target, body]) => async () => {
    expect(await exchange(it.to, target)).toEndWith(`\r\n\r\n${body}`);
    server.reload(options);
  });
  await idleAfterUses({ timeout: 500, pause: 300 }, idle, uses);
});

test("a handler keeps the `this` of Bun, and a routes that is an array is left to Bun", async () => {
  using it = listening("IPv4");
  const options = {
    // A Hono app has one.
    ...JSON.parse(`{ "routes": [{ "path": "/" }] }`),
    fetch(this: unknown, _: Request, given: unknown) {
      return Response.json(given === this && this === server);
    },
  };
  const server: Bun.Server<undefined> = started(serve({ fd: it.fd, ...options }));
  void whenIdle(server, { timeout: 1000 });
  expect(await exchange(it.to)).toEndWith("\r\n\r\ntrue");
});

test("a server that is watched again and again keeps no trace of it", async () => {
  const { server } = served("");
  for (let n = 0; n < 3; n++) await whenIdle(server, { timeout: 20 });
  void whenIdle(server, { timeout: Infinity });
  expect(servedBy(server)?.onUse.size).toBe(0);
});

test("a route with properties that are no methods counts", async () => {
  using it = listening("IPv4");
  const get = () => new Response("got");
  const routes = { "/": { GET: get, description: "of the page" } };
  const server = started(serve({ fd: it.fd, routes }));
  const idle = whenIdle(server, { timeout: 500 });
  const use = async () => expect(await exchange(it.to)).toEndWith("got");
  await idleAfterUses({ timeout: 500, pause: 300 }, idle, [use, use, use]);
});

test("a route that is a Response still answers", async () => {
  using it = listening("IPv4");
  const routes = { "/": new Response("static") };
  const server = started(serve({ fd: it.fd, routes }));
  void whenIdle(server, { timeout: 1000 });
  expect(await exchange(it.to)).toEndWith("\r\n\r\nstatic");
});

test("a server that was passed no socket is never idle", async () => {
  const server = started(serve({ port: 0, fetch: () => new Response() }));
  const listener = started(listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } }));
  const each = [server, listener].map((one) => whenIdle(one, { timeout: 100 }));
  expect(await within(500, Promise.race(each))).toBe(false);
});

test("nobody is idle while a server of the program's own is open", async () => {
  using it = listening("IPv4");
  const idle = new Idle();
  idle.add(started(listen({ fd: it.fd, socket: { data() {} } })));
  const own = {};
  idle.addOwn(own);
  const ended = idle.after(TIMEOUT);
  expect(await within(3 * TIMEOUT, ended)).toBe(false);
  idle.remove(own);
  await happens(ended);
});

test("it keeps no trace of the servers that have stopped", async () => {
  using it = listening("IPv4");
  const idle = new Idle();
  const sets = () => {
    Bun.gc(true);
    return heapStats().objectTypeCounts["Set"] ?? 0;
  };
  const before = sets();
  for (let turn = 0; turn < 500; turn++) {
    const listener = listen({ fd: duplicate(it.fd), socket: { data() {} } });
    idle.add(listener);
    listener.stop();
    idle.remove(listener);
  }
  close(it.fd);
  expect(sets()).toBeLessThan(before + 250);
});

test("a look reads the descriptors once for all servers that had one socket in turn", async () => {
  using it = listening("IPv4");
  const idle = new Idle();
  for (let turn = 0; turn < 3; turn++) {
    const listener = listen({ fd: duplicate(it.fd), socket: { data() {} } });
    idle.add(listener);
    listener.stop();
  }
  close(it.fd);
  using looks = spyOn(fs, "readdirSync");
  await idle.after(TIMEOUT);
  // It looks ten times, or less often if the machine is busy.
  expect(looks.mock.calls.length).toBeWithin(1, 13);
});

test("it looks once a second if the timeout is long, and never if it is Infinity", async () => {
  const idle = new Idle();
  const looks = { long: 0, endless: 0 };
  void idle.after(1e6, () => ++looks.long > 1);
  void idle.after(Infinity, () => ++looks.endless > 1);
  await until("it looks", 2, () => looks.long > 0);
  expect(looks).toEqual({ long: 1, endless: 0 });
});

test.each(["before", "after"])("it keeps no program alive %s its first look", async (when) => {
  using it = listening("IPv4");
  // The first look comes after a second.
  const script = `
    import { serve, whenIdle } from "./src/activation/index.ts";
    const server = serve({ fd: 3, fetch: () => new Response() });
    server.unref();
    void whenIdle(server, { timeout: 1e9 });
    setTimeout(() => {
      const begun = performance.now();
      process.on("exit", () => (process.exitCode = performance.now() - begun < 800 ? 0 : 1));
    }, ${when === "before" ? 0 : 1100});`;
  await using child = execute(process.execPath, [it.fd], {}, ["-e", script]);
  close(it.fd);
  expect([await child.status(), child.stderr]).toEqual([0, ""]);
});

test("an error of a handler is logged as without it", () => {
  const script = `
    import { serve, whenIdle } from "./src/activation/index.ts";
    const fetch = () => { throw new Error("of the handler"); };
    const server = serve({ hostname: "127.0.0.1", port: 0, development: false, fetch });
    void whenIdle(server, { timeout: 1e9 });
    await globalThis.fetch(server.url);
    process.exit();`;
  const { stderr } = Bun.spawnSync([process.execPath, "-e", script]);
  expect(stderr.toString()).toMatch(/^error: of the handler$/m);
});

test("its promise resolves before the event loop accepts the next client", async () => {
  const { server, ...it } = served("first");
  await whenIdle(server, { timeout: 50 });
  // A client that connects now waits for the next server on the socket.
  const stopped = server.stop();
  const late = await client(it.to);
  await stopped;
  expect(late.readyState).toBe("open");
  late.destroy();
});

test("whenIdle refuses a timeout of 0, and a server that serve did not make", () => {
  const { server } = served("");
  expect(thrown(() => whenIdle(server, { timeout: 0 }))).toBeInstanceOf(RangeError);
  const other = started(Bun.serve({ port: 0, fetch: () => new Response() }));
  expect(thrown(() => whenIdle(other, { timeout: 1 }))).toBeInstanceOf(TypeError);
});
