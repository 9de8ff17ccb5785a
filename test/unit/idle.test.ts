import { describe, expect, test } from "bun:test";
import type { Socket } from "node:net";

import { whenIdle } from "../../src/activation/adopt/idle.ts";
import { listen } from "../../src/activation/adopt/listen.ts";
import { serve } from "../../src/activation/adopt/serve.ts";
import { thrown } from "../support/checks.ts";
import { client, exchange, FAMILIES, listening } from "../support/listening.ts";
import { cleansUp, started } from "../support/started.ts";

cleansUp();

/** Whether it happens within a time. */
async function within(milliseconds: number, promise: Promise<unknown>): Promise<boolean> {
  return await Promise.race([promise.then(() => true), Bun.sleep(milliseconds).then(() => false)]);
}

const TIMEOUT = 200;

describe.each(FAMILIES)("whenIdle of a server over %s", (family) => {
  test("waits for as long as a connection is open, and then the timeout", async () => {
    using it = listening(family);
    const server = started(serve({ fd: it.fd, fetch: () => new Response("Hello") }));
    const open: Socket = await client(it.to);
    const idle = whenIdle(server, { timeout: TIMEOUT });
    expect(await within(3 * TIMEOUT, idle)).toBe(false);
    open.destroy();
    const begun = performance.now();
    await idle;
    expect(performance.now() - begun).toBeWithin(TIMEOUT / 4, 10 * TIMEOUT);
  });

  test("waits for as long as one of `listen` is open", async () => {
    using it = listening(family);
    const listener = started(listen({ fd: it.fd, socket: { data() {} } }));
    const open = await client(it.to);
    const idle = whenIdle([listener], { timeout: TIMEOUT });
    expect(await within(3 * TIMEOUT, idle)).toBe(false);
    open.destroy();
    expect(await within(3 * TIMEOUT, idle)).toBe(true);
  });
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
  const idle = whenIdle(server, { timeout: 1000 });
  for (const [target, body] of [
    ["/a", "route"],
    ["/b", "route"],
    ["/", "fetch"],
    ["/fails", "error"],
    ["/a", "route"],
    ["/", "fetch"],
  ] as const) {
    expect(await exchange(it.to, target)).toEndWith(`\r\n\r\n${body}`);
    server.reload(options);
    expect(await within(300, idle)).toBe(false);
  }
  expect(await within(1500, idle)).toBe(true);
});

test("a server that was passed no socket is never idle", async () => {
  const server = started(serve({ port: 0, fetch: () => new Response() }));
  expect(await within(500, whenIdle(server, { timeout: 100 }))).toBe(false);
});

test("its promise resolves before the event loop accepts the next client", async () => {
  using it = listening("IPv4");
  const server = started(serve({ fd: it.fd, fetch: () => new Response("first") }));
  await whenIdle(server, { timeout: 50 });
  // Who connects now waits for whoever has the socket next.
  const stopped = server.stop();
  const late = await client(it.to);
  await stopped;
  expect(late.readyState).toBe("open");
  late.destroy();
});

test("whenIdle refuses a timeout of 0, and a server that serve did not make", () => {
  using it = listening("IPv4");
  const server = started(serve({ fd: it.fd, fetch: () => new Response() }));
  expect(thrown(() => whenIdle(server, { timeout: 0 }))).toBeInstanceOf(RangeError);
  const other = started(Bun.serve({ port: 0, fetch: () => new Response() }));
  expect(thrown(() => whenIdle(other, { timeout: 1 }))).toBeInstanceOf(TypeError);
});
