/* An open connection keeps whenIdle from resolving. */
import { describe, expect, test } from "bun:test";
import type { Socket } from "node:net";

import { whenIdle } from "../../src/activation/adopt/idle.ts";
import { listen } from "../../src/activation/adopt/listen.ts";
import { serve } from "../../src/activation/adopt/serve.ts";
import { happens, idleAfterUses, within } from "../support/idle.ts";
import { accepted, served } from "../support/kept.ts";
import { client, FAMILIES, listening, text } from "../support/listening.ts";
import { cleansUp, started } from "../support/started.ts";

cleansUp();

const TIMEOUT = 200;

describe.each(FAMILIES)("whenIdle of a server over %s", (family) => {
  test("waits for as long as a connection is open, and then the timeout", async () => {
    const { server, ...it } = served("Hello", family);
    const open: Socket = await client(it.to);
    await accepted(it);
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
    await accepted(it);
    const idle = whenIdle([listener], { timeout: TIMEOUT });
    expect(await within(3 * TIMEOUT, idle)).toBe(false);
    open.destroy();
    await happens(idle);
  });
});

test("a connection to serve counts that asks nothing and is open for a third of the timeout", async () => {
  const { server, ...it } = served("Hello");
  const idle = whenIdle(server, { timeout: 1000 });
  await Bun.sleep(400);
  const opened = performance.now();
  const open = await client(it.to);
  await within(350, idle);
  open.destroy();
  await happens(idle);
  expect(performance.now() - opened).toBeGreaterThanOrEqual(1000);
});

test.each(["first", "second"])("a connection to the %s of two servers counts", async (which) => {
  using one = listening("IPv4");
  using other = listening("Unix");
  const server = started(serve({ fd: one.fd, fetch: () => new Response() }));
  const listener = started(listen({ fd: other.fd, socket: { data() {} } }));
  const used = which === "first" ? one : other;
  const open = await client(used.to);
  await accepted(used);
  const idle = whenIdle([server, listener], { timeout: TIMEOUT });
  expect(await within(3 * TIMEOUT, idle)).toBe(false);
  open.destroy();
  await happens(idle);
});

test("each connection to listen counts, however short, and also one that replaces the handlers", async () => {
  using it = listening("IPv4");
  let round = 0;
  const handlers = { data() {} };
  const open = (socket: Bun.Socket<undefined>) => {
    if (round < 2) socket.end("Hello");
    // From then on, nothing is noticed.
    else socket.reload({ socket: handlers });
  };
  const listener = started(listen({ fd: it.fd, socket: { open, ...handlers } }));
  const idle = whenIdle(listener, { timeout: 600 });
  const use = (number: number) => async () => {
    round = number;
    const one = await client(it.to);
    if (round < 2) expect(await text(one)).toBe("Hello");
    else one.destroy();
  };
  await idleAfterUses({ timeout: 600, pause: 400 }, idle, [0, 1, 2].map(use));
});

test("the timeout begins when a connection to listen closes", async () => {
  using it = listening("IPv4");
  const { promise: closed, resolve: close } = Promise.withResolvers<number>();
  const socket = { data() {}, close: () => close(performance.now()) };
  const listener = started(listen({ fd: it.fd, socket }));
  const idle = whenIdle(listener, { timeout: 600 });
  const open = await client(it.to);
  expect(await within(400, idle)).toBe(false);
  open.destroy();
  const begun = await closed;
  await happens(idle);
  // Not at the last look before.
  expect(performance.now() - begun).toBeGreaterThan(595);
});

test.each(["at its limit", "stopped"])(
  "a connection counts whose listener is %s when whenIdle is called",
  async (state) => {
    using it = listening("IPv4");
    const socket = { data() {} };
    const listener = started(listen({ fd: it.fd, socket, maxConnections: 1 }));
    const open = await client(it.to);
    await accepted(it);
    if (state === "stopped") listener.stop();
    const idle = whenIdle(listener, { timeout: TIMEOUT });
    expect(await within(2 * TIMEOUT, idle)).toBe(false);
    open.destroy();
    await happens(idle);
  },
);

test("the timeout begins at the close of a connection whose handlers were replaced", async () => {
  using it = listening("IPv4");
  const handlers = { data() {} };
  const open = (socket: Bun.Socket<undefined>) => socket.reload({ socket: handlers });
  const listener = started(listen({ fd: it.fd, socket: { open, ...handlers } }));
  const idle = whenIdle(listener, { timeout: 1000 });
  const one = await client(it.to);
  expect(await within(800, idle)).toBe(false);
  const ended = performance.now();
  one.destroy();
  await happens(idle);
  // It notices the end when it looks next.
  expect(performance.now() - ended).toBeGreaterThanOrEqual(600);
});
