import { afterEach, describe, expect, test } from "bun:test";
import { once } from "node:events";
import { connect as connectTls } from "node:tls";

import { listen } from "../../src/activation/index.ts";
import { close, duplicate, queueOf } from "../support/sockets.ts";
import { until } from "../support/until.ts";
import { descriptors, nothingLeft, thrown } from "../support/checks.ts";
import { CERTIFICATE, client, listening, text } from "../support/listening.ts";

const listeners: Bun.SocketListener<undefined>[] = [];
afterEach(() => {
  for (const listener of listeners.splice(0)) listener.stop(true);
});

function started(listener: Bun.SocketListener<undefined>): Bun.SocketListener<undefined> {
  listeners.push(listener);
  return listener;
}

/** Handlers that greet, and the connections that are open, and the most that ever were. */
function greeter() {
  const open = new Set<Bun.Socket<undefined>>();
  const seen = { open, most: 0, accepted: 0 };
  const socket = {
    open(socket: Bun.Socket<undefined>) {
      open.add(socket);
      seen.accepted++;
      seen.most = Math.max(seen.most, open.size);
      socket.write("hello");
    },
    data() {},
    close: (socket: Bun.Socket<undefined>) => void open.delete(socket),
  };
  return { seen, socket };
}

const accepted = (seen: { readonly accepted: number }, count: number) =>
  until(`${count} are accepted`, 5, () => seen.accepted === count);

describe.each([
  ["a passed socket", ({ fd }: { fd: number }) => ({ fd })],
  ["an address", () => ({ hostname: "127.0.0.1", port: 0 })],
] as const)("maxConnections on %s", (name, where) => {
  const at = (listener: Bun.SocketListener<undefined>, to: Parameters<typeof client>[0]) =>
    name === "an address" && "port" in listener
      ? { port: Number(listener.port), host: "127.0.0.1" }
      : to;

  test("accepts that many and no more, and the others as those close", async () => {
    using it = listening("IPv4", 64);
    const { seen, socket } = greeter();
    const listener = started(listen({ ...where(it), socket, maxConnections: 3 }));
    // All are in the queue before the first is accepted.
    const clients = await Promise.all(
      Array.from({ length: 12 }, () => client(at(listener, it.to))),
    );
    for (let served = 3; served < 12; served += 3) {
      await accepted(seen, served);
      expect(seen.open.size).toBe(3);
      for (const socket of seen.open) socket.end();
    }
    await accepted(seen, 12);
    for (const socket of seen.open) socket.end();
    expect(await Promise.all(clients.map(text))).toEqual(Array(12).fill("hello"));
    expect(seen.most).toBe(3);
  });

  test.each([
    ["stop", (listener: Bun.SocketListener<undefined>) => listener.stop()],
    ["using", (listener: Bun.SocketListener<undefined>) => listener[Symbol.dispose]()],
  ] as const)("leaves nothing behind when %s ends it while it does not accept", async (_, end) => {
    using it = listening("IPv4", 64);
    const { seen, socket } = greeter();
    const before = descriptors();
    const listener = listen({ ...where(it), socket, maxConnections: 1 });
    const [first, second] = [await client(at(listener, it.to)), await client(at(listener, it.to))];
    await accepted(seen, 1);
    end(listener);
    // The connection that is open goes on, and its end does not start it again.
    for (const socket of seen.open) socket.end();
    expect(await text(first)).toBe("hello");
    second.destroy();
    await nothingLeft(before);
    expect(seen.accepted).toBe(1);
  });
});

test("maxConnections leaves whoever waits in the queue to the next that listens", async () => {
  using it = listening("IPv4", 64);
  const { seen, socket } = greeter();
  const listener = listen({ fd: it.fd, socket, maxConnections: 1 });
  const clients = [await client(it.to), await client(it.to)];
  await accepted(seen, 1);
  listener.stop();
  started(listen({ fd: duplicate(it.kept), socket, maxConnections: 1 }));
  await accepted(seen, 2);
  for (const socket of seen.open) socket.end();
  expect(await Promise.all(clients.map(text))).toEqual(["hello", "hello"]);
});

test("maxConnections counts connections in their TLS handshake, before open is called", async () => {
  using it = listening("IPv4", 64);
  using other = listening("IPv4");
  const { seen, socket } = greeter();
  started(listen({ fd: it.fd, socket, maxConnections: 1, tls: CERTIFICATE }));
  started(listen({ fd: other.fd, socket: greeter().socket }));
  const silent = await client(it.to);
  await until("the silent one is accepted", 5, () => queueOf(it.kept) === 0);
  const next = connectTls({ ...it.to, rejectUnauthorized: false });
  // The event loop has come round, and would have accepted it.
  const probe = await client(other.to);
  await once(probe, "data");
  probe.destroy();
  expect(queueOf(it.kept)).toBe(1);
  expect(seen.accepted).toBe(0);
  silent.destroy();
  const [greeting] = await once(next, "data");
  expect(String(greeting)).toBe("hello");
  next.destroy();
});

test("maxConnections holds after the handlers were reloaded", async () => {
  using it = listening("IPv4", 64);
  const [old, fresh] = [greeter(), greeter()];
  const listener = started(listen({ fd: it.fd, socket: old.socket, maxConnections: 2 }));
  const clients = [await client(it.to)];
  await accepted(old.seen, 1);
  listener.reload({ socket: fresh.socket });
  for (let n = 0; n < 3; n++) clients.push(await client(it.to));
  await accepted(fresh.seen, 1);
  for (const socket of old.seen.open) socket.end();
  await accepted(fresh.seen, 2);
  expect(fresh.seen.most).toBe(2);
  for (const { seen } of [fresh]) for (const socket of seen.open) socket.end();
  for (const socket of clients) socket.destroy();
});

test.each([0, -1, 1.5, Number.NaN, Infinity])(
  "maxConnections of %d is refused",
  (maxConnections) => {
    using it = listening("IPv4");
    const { socket } = greeter();
    expect(thrown(() => listen({ fd: it.fd, socket, maxConnections }))).toEqual(
      RangeError(`maxConnections is ${maxConnections}: give a whole number from 1`),
    );
    close(it.fd);
  },
);
