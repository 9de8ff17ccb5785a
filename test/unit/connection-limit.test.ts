import { describe, expect, test } from "bun:test";
import { once } from "node:events";
import { readlinkSync } from "node:fs";
import { connect as connectTls } from "node:tls";

import { listen } from "../../src/activation/index.ts";
import { close, duplicate, isOpen, pipe, queueOf } from "../support/sockets.ts";
import { cleansUp, started } from "../support/started.ts";
import { EMULATED, until } from "../support/until.ts";
import { descriptors, nothingLeft, refusal } from "../support/checks.ts";
import {
  CERTIFICATE,
  client,
  FAMILIES,
  type Listening,
  listening,
  text,
} from "../support/listening.ts";

cleansUp();

/** Handlers that greet, and the connections that are open, and the most that ever were. */
function greeter() {
  const open = new Set<Bun.Socket<undefined>>();
  const seen = {
    open,
    most: 0,
    accepted: 0,
    /** Ends the connections that are open. */
    end: () => open.forEach((socket) => socket.end()),
  };
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

type Seen = ReturnType<typeof greeter>["seen"];

const accepted = (seen: Seen, count: number) =>
  until(`${count} are accepted`, 5, () => seen.accepted === count);

const tlsClient = (to: Listening["to"]) => connectTls({ ...to, rejectUnauthorized: false });

/** Waits until the event loop has come round, by a client of another socket: it would have accepted the next. */
async function comesRound(other: Listening["to"]): Promise<void> {
  const probe = await client(other);
  await once(probe, "data");
  probe.destroy();
}

/** Ends so many clients when they are accepted, `limit` at a time: all were greeted, and no more at once. */
async function expectTurns(seen: Seen, to: Listening["to"], count: number, limit: number) {
  // All are in the queue before the first is accepted.
  const clients = await Promise.all(Array.from({ length: count }, () => client(to)));
  for (let served = limit; served <= count; served += limit) {
    await accepted(seen, served);
    expect(seen.open.size).toBe(limit);
    seen.end();
  }
  expect(await Promise.all(clients.map(text))).toEqual(Array(count).fill("hello"));
  expect(seen.most).toBe(limit);
}

/** The same with three clients and a limit of one, and no next one is accepted before. */
async function expectOneByOne(seen: Seen, to: Listening["to"], other: Listening["to"]) {
  const clients = [await client(to), await client(to), await client(to)];
  for (const count of [1, 2, 3]) {
    await accepted(seen, count);
    await comesRound(other);
    expect(seen.accepted).toBe(count);
    seen.end();
  }
  expect(await Promise.all(clients.map(text))).toEqual(["hello", "hello", "hello"]);
}

describe.each([
  ["a passed socket", ({ fd }: { fd: number }) => ({ fd })],
  [
    "an address",
    ({ fd }: { fd: number }) => {
      close(fd);
      return { hostname: "127.0.0.1", port: 0 };
    },
  ],
] as const)("maxConnections on %s", (name, where) => {
  const at = (listener: Bun.SocketListener<undefined>, to: Parameters<typeof client>[0]) =>
    name === "an address" && "port" in listener
      ? { port: Number(listener.port), host: "127.0.0.1" }
      : to;

  test("accepts that many, and the others when one closes", async () => {
    using it = listening("IPv4", 64);
    const { seen, socket } = greeter();
    const listener = started(listen({ ...where(it), socket, maxConnections: 3 }));
    await expectTurns(seen, at(listener, it.to), 12, 3);
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
    seen.end();
    expect(await text(first)).toBe("hello");
    second.destroy();
    await nothingLeft(before);
    expect(seen.accepted).toBe(1);
  });
});

test.each(FAMILIES)("maxConnections holds over %s", async (family) => {
  using it = listening(family, 64);
  const { seen, socket } = greeter();
  const listener = started(listen({ fd: it.fd, socket, maxConnections: 2 }));
  await expectTurns(seen, it.to, 6, 2);
  expect("port" in it.to ? it.to.port : undefined).toBe(Reflect.get(listener, "port"));
});

test("maxConnections lets a timer have its turn while clients wait in the queue", async () => {
  using it = listening("IPv4", 1024);
  const { seen, socket } = greeter();
  const clients = await Promise.all(Array.from({ length: 600 }, () => client(it.to)));
  const open = (opened: Bun.Socket<undefined>) => {
    // Long enough for the timer to be due.
    if (seen.accepted === 100) Bun.sleepSync(20);
    socket.open(opened);
  };
  started(listen({ fd: it.fd, socket: { ...socket, open }, maxConnections: 10_000 }));
  await Bun.sleep(10);
  expect(seen.accepted).toBeLessThan(600);
  await accepted(seen, 600);
  seen.end();
  expect(await Promise.all(clients.map(text))).toEqual(Array(600).fill("hello"));
});

test("maxConnections holds where others have their turn", async () => {
  using it = listening("IPv4", 1024);
  using other = listening("IPv4");
  const { seen, socket } = greeter();
  const clients = await Promise.all(Array.from({ length: 260 }, () => client(it.to)));
  started(listen({ fd: it.fd, socket, maxConnections: 256 }));
  started(listen({ fd: other.fd, socket: greeter().socket }));
  await accepted(seen, 256);
  await comesRound(other.to);
  await comesRound(other.to);
  expect(seen.accepted).toBe(256);
  seen.end();
  await accepted(seen, 260);
  seen.end();
  expect(await Promise.all(clients.map(text))).toEqual(Array(260).fill("hello"));
  for (const one of clients) one.destroy();
});

test("maxConnections lets a timer have its turn though each connection ends at once", async () => {
  using it = listening("IPv4", 1024);
  const clients = await Promise.all(Array.from({ length: 600 }, () => client(it.to)));
  let accepted = 0;
  const open = (socket: Bun.Socket<undefined>) => {
    // Long enough for the timer to be due.
    if (++accepted === 100) Bun.sleepSync(20);
    socket.terminate();
  };
  started(listen({ fd: it.fd, socket: { open, data() {} }, maxConnections: 1 }));
  await Bun.sleep(10);
  expect(accepted).toBeLessThan(600);
  await until("all are accepted", 5, () => accepted === 600);
  for (const one of clients) one.destroy();
});

test("a listener that is stopped while it lets others have their turn takes no descriptor of another", async () => {
  using it = listening("IPv4", 1024);
  using other = listening("IPv4");
  const { seen, socket } = greeter();
  const clients = await Promise.all(Array.from({ length: 300 }, () => client(it.to)));
  const files: number[] = [];
  const open = (opened: Bun.Socket<undefined>) => {
    socket.open(opened);
    if (seen.accepted !== 256) return;
    listener.stop();
    for (let n = 0; n < 3; n++) files.push(...pipe());
  };
  const listener = listen({ fd: it.fd, socket: { ...socket, open }, maxConnections: 10_000 });
  await accepted(seen, 256);
  started(listen({ fd: other.fd, socket: greeter().socket }));
  await comesRound(other.to);
  expect(seen.accepted).toBe(256);
  const names = files.map((fd) => readlinkSync(`/proc/self/fd/${fd}`));
  expect(names).toEqual(names.filter((name) => name.startsWith("pipe:")));
  files.forEach(close);
  seen.end();
  for (const one of clients) one.destroy();
});

test("maxConnections holds on a path of the program's own", async () => {
  const path = `\0${crypto.randomUUID()}`;
  const { seen, socket } = greeter();
  started(listen({ unix: path, socket, maxConnections: 1 }));
  await expectTurns(seen, { path }, 2, 1);
});

test("maxConnections holds though the close handler throws", async () => {
  using it = listening("IPv4", 64);
  using other = listening("IPv4");
  const { seen, socket } = greeter();
  const close = (closed: Bun.Socket<undefined>) => {
    socket.close(closed);
    throw new Error("of the handler");
  };
  started(listen({ fd: it.fd, socket: { ...socket, close, error() {} }, maxConnections: 1 }));
  started(listen({ fd: other.fd, socket: greeter().socket }));
  await expectOneByOne(seen, it.to, other.to);
});

test("maxConnections holds though a handler throws", async () => {
  using it = listening("IPv4", 64);
  using other = listening("IPv4");
  const { seen, socket } = greeter();
  const errors: string[] = [];
  let fails = 2;
  const open = (opened: Bun.Socket<undefined>) => {
    if (fails-- > 0) throw new Error("of the handler");
    socket.open(opened);
  };
  const error = (_: unknown, { message }: Error) => void errors.push(message);
  started(listen({ fd: it.fd, socket: { ...socket, open, error }, maxConnections: 1 }));
  started(listen({ fd: other.fd, socket: greeter().socket }));
  // Bun closes the connection of a handler that throws.
  for (let n = 0; n < 2; n++) expect(await text(await client(it.to))).toBe("");
  expect(errors).toEqual(["of the handler", "of the handler"]);
  await expectOneByOne(seen, it.to, other.to);
});

test.each([false, true])(
  "stop(%p) leaves open connections open, or closes them, also while it does not accept",
  async (closes) => {
    for (const maxConnections of [1, 2]) {
      using it = listening("IPv4", 64);
      const { seen, socket } = greeter();
      const listener = listen({ fd: it.fd, socket, maxConnections });
      const one = await client(it.to);
      await accepted(seen, 1);
      listener.stop(closes);
      if (closes) expect(await text(one)).toBe("hello");
      expect(seen.open.size).toBe(closes ? 0 : 1);
      seen.end();
      if (!closes) expect(await text(one)).toBe("hello");
      one.destroy();
    }
  },
);

test("a listener that is stopped twice closes no descriptor of another", async () => {
  using it = listening("IPv4", 64);
  const { socket } = greeter();
  const listener = listen({ fd: it.fd, socket, maxConnections: 1 });
  listener.stop();
  const files = [...pipe(), ...pipe(), ...pipe()];
  listener.stop();
  listener.stop(true);
  listener[Symbol.dispose]();
  expect(files.filter((fd) => !isOpen(fd))).toEqual([]);
  files.forEach(close);
});

test.each([undefined, 1])(
  "with tls that has no certificate Bun uses none, and open is called (maxConnections %p)",
  async (maxConnections) => {
    using it = listening("IPv4", 64);
    const { seen, socket } = greeter();
    const limit = maxConnections === undefined ? {} : { maxConnections };
    started(listen({ fd: it.fd, socket, tls: {}, ...limit }));
    const one = await client(it.to);
    await accepted(seen, 1);
    seen.end();
    expect(await text(one)).toBe("hello");
  },
);

test("over TLS, open and handshake are called once each, as without maxConnections", async () => {
  for (const maxConnections of [undefined, 1])
    for (const has of [false, true]) {
      using it = listening("IPv4", 64);
      const calls: string[] = [];
      const done = Promise.withResolvers<void>();
      const socket = {
        open: () => void calls.push("open"),
        data(socket: Bun.Socket<undefined>) {
          calls.push("data");
          socket.end("bye");
        },
        close: () => done.resolve(),
        ...(has && {
          handshake: (_: unknown, success: boolean) => void calls.push(`handshake ${success}`),
        }),
      };
      const limit = maxConnections === undefined ? {} : { maxConnections };
      started(listen({ fd: it.fd, socket, tls: CERTIFICATE, ...limit }));
      // Two after each other, so that the first has been counted out.
      for (let n = 0; n < 2; n++) {
        const peer = tlsClient(it.to);
        peer.write("hello");
        expect(await text(peer)).toBe("bye");
      }
      await done.promise;
      const each = has ? ["open", "handshake true", "data"] : ["open", "data"];
      expect(calls).toEqual([...each, ...each]);
    }
});

test("over TLS, an error that open returns reaches the error handler, as without maxConnections", async () => {
  for (const maxConnections of [undefined, 1]) {
    using it = listening("IPv4", 64);
    const failed = Promise.withResolvers<string>();
    const socket = {
      open: () => new Error("of the handler"),
      data() {},
      error: (_: unknown, { message }: Error) => failed.resolve(message),
    };
    const limit = maxConnections === undefined ? {} : { maxConnections };
    started(Reflect.apply(listen, undefined, [{ fd: it.fd, socket, tls: CERTIFICATE, ...limit }]));
    const peer = tlsClient(it.to).on("error", () => {});
    expect(await failed.promise).toBe("of the handler");
    peer.destroy();
  }
});

test("a TLS handshake that fails, and clients that reset, leave the others their turn", async () => {
  using it = listening("IPv4", 64);
  const { seen, socket } = greeter();
  started(listen({ fd: it.fd, socket, maxConnections: 1, tls: CERTIFICATE }));
  for (let n = 0; n < 3; n++) {
    const wrong = await client(it.to);
    wrong.on("error", () => {});
    wrong.write("GET / HTTP/1.0\r\n\r\n");
    const gone = await client(it.to);
    gone.resetAndDestroy();
    const next = tlsClient(it.to);
    const [greeting] = await once(next, "data");
    expect(String(greeting)).toBe("hello");
    wrong.destroy();
    next.destroy();
    await until("the connection is closed", 5, () => seen.open.size === 0);
  }
  expect(seen.most).toBe(1);
});

test("handlers get the arguments and the `this` of Bun", async () => {
  using it = listening("IPv4");
  const calls: unknown[] = [];
  const done = Promise.withResolvers<void>();
  // Inherited ones, as of a class, too.
  class Handlers {
    open(this: unknown, ...given: unknown[]) {
      calls.push(["open", this === given[0], given.length]);
    }
    data(socket: Bun.Socket<undefined>, data: Buffer) {
      calls.push(["data", String(data)]);
      socket.end();
    }
    close(this: unknown, ...given: unknown[]) {
      calls.push(["close", this === given[0], given.slice(1)]);
      done.resolve();
    }
  }
  const socket = new Handlers();
  started(listen({ fd: it.fd, socket, maxConnections: 1 }));
  const peer = await client(it.to);
  peer.end("hello");
  await done.promise;
  const counted = calls.splice(0);
  const bun = started(Bun.listen({ hostname: "127.0.0.1", port: 0, socket }));
  const other = await client({ host: "127.0.0.1", port: Number(Reflect.get(bun, "port")) });
  other.end("hello");
  await until("it is closed too", 5, () => calls.length === 3);
  expect(counted).toEqual(calls);
});

test("the close handler gets the error of a connection that was reset", async () => {
  using it = listening("Unix");
  using tcp = listening("IPv4");
  const ends: unknown[] = [];
  const socket = { data() {}, close: (_: unknown, error: unknown) => void ends.push(error) };
  started(listen({ fd: tcp.fd, socket, maxConnections: 1 }));
  started(listen({ fd: it.fd, socket, maxConnections: 1 }));
  (await client(it.to)).destroy();
  await until("the first has ended", 5, () => ends.length === 1);
  (await client(tcp.to)).resetAndDestroy();
  await until("the second has ended", 5, () => ends.length === 2);
  expect(ends).toEqual([undefined, expect.objectContaining({ code: "ECONNRESET" })]);
});

test("maxConnections leaves clients in the queue to the next listener", async () => {
  using it = listening("IPv4", 64);
  const { seen, socket } = greeter();
  const listener = listen({ fd: it.fd, socket, maxConnections: 1 });
  const clients = [await client(it.to), await client(it.to)];
  await accepted(seen, 1);
  listener.stop();
  started(listen({ fd: duplicate(it.kept), socket, maxConnections: 1 }));
  await accepted(seen, 2);
  seen.end();
  expect(await Promise.all(clients.map(text))).toEqual(["hello", "hello"]);
});

// qemu-user returns four bytes of TCP_INFO.
test.skipIf(EMULATED)(
  "maxConnections counts connections in their TLS handshake, before open is called",
  async () => {
    using it = listening("IPv4", 64);
    using other = listening("IPv4");
    const { seen, socket } = greeter();
    started(listen({ fd: it.fd, socket, maxConnections: 1, tls: CERTIFICATE }));
    started(listen({ fd: other.fd, socket: greeter().socket }));
    const silent = await client(it.to);
    await until("the silent one is accepted", 5, () => queueOf(it.kept) === 0);
    const next = tlsClient(it.to);
    await comesRound(other.to);
    expect(queueOf(it.kept)).toBe(1);
    expect(seen.accepted).toBe(0);
    silent.destroy();
    const [greeting] = await once(next, "data");
    expect(String(greeting)).toBe("hello");
    next.destroy();
  },
);

test("maxConnections holds after the handlers were reloaded", async () => {
  using it = listening("IPv4", 64);
  const [old, fresh] = [greeter(), greeter()];
  const listener = started(listen({ fd: it.fd, socket: old.socket, maxConnections: 2 }));
  const clients = [await client(it.to)];
  await accepted(old.seen, 1);
  listener.reload({ socket: fresh.socket });
  for (let n = 0; n < 3; n++) clients.push(await client(it.to));
  await accepted(fresh.seen, 1);
  old.seen.end();
  await accepted(fresh.seen, 2);
  expect(fresh.seen.most).toBe(2);
  fresh.seen.end();
  for (const socket of clients) socket.destroy();
});

test("a reload with wrong options says the same as without maxConnections", () => {
  const options = { hostname: "127.0.0.1", port: 0, socket: { data() {} } };
  const native = started(listen(options));
  const limited = started(listen({ ...options, maxConnections: 1 }));
  for (const text of [
    "null",
    "1",
    "{}",
    `{ "socket": null }`,
    `{ "socket": 1 }`,
    `{ "socket": {} }`,
    `{ "socket": { "open": 1, "data": 1 } }`,
  ]) {
    const error = refusal(() => native.reload(JSON.parse(text)));
    expect(error).not.toBe("no error");
    expect(refusal(() => limited.reload(JSON.parse(text)))).toBe(error);
  }
});
