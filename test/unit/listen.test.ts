import { afterEach, describe, expect, spyOn, test } from "bun:test";
import { connect } from "node:tls";

import { describe as describeFd } from "../../src/activation/describe.ts";
import { closesOnExec, duplicate } from "../../src/activation/libc.ts";
import { listen, substitute } from "../../src/activation/listen.ts";
import { backlogOf, bound, close, pipe, SOCK_STREAM, AF_INET } from "../support/sockets.ts";
import { eventually } from "../support/until.ts";
import {
  certificate,
  client,
  FAMILIES,
  listening,
  openDescriptors,
  refusal,
  text,
  thrown,
} from "../support/listening.ts";

const listeners: Bun.SocketListener<undefined>[] = [];
afterEach(() => {
  for (const listener of listeners.splice(0)) listener.stop(true);
});

function started(listener: Bun.SocketListener<undefined>): Bun.SocketListener<undefined> {
  listeners.push(listener);
  return listener;
}

const greet = (greeting: string) => ({
  socket: { open: (socket: Bun.Socket<undefined>) => void socket.end(greeting), data() {} },
});

const TLS = certificate();

describe.each(FAMILIES)("listen on a listening socket over %s", (family) => {
  test("accepts, and leaves the socket with its passer when it stops", async () => {
    using it = listening(family);
    const before = openDescriptors();
    const listener = listen(it.fd, greet("first"));
    expect(openDescriptors()).toBe(before);
    // No child inherits it.
    expect(closesOnExec(it.fd)).toBe(true);
    expect(closesOnExec(it.kept)).toBe(true);
    expect(await text(await client(it.to))).toBe("first");
    listener.stop();
    expect(thrown(() => describeFd(it.fd))).toEqual(refusal(78, /not open/));
    const queued = await client(it.to);
    started(listen(duplicate(it.kept), greet("second")));
    expect(await text(queued)).toBe("second");
  });

  test("accepts over TLS", async () => {
    using it = listening(family);
    started(listen(it.fd, { ...greet("over TLS"), tls: TLS }));
    const socket = connect({ ...it.to, rejectUnauthorized: false });
    expect(await text(socket)).toBe("over TLS");
  });
});

test.each([1, 37, 511, 4096])("listen keeps a backlog of %i", (backlog) => {
  using it = listening("IPv4", backlog);
  started(listen(it.fd, greet("")));
  expect(backlogOf(it.kept)).toBe(backlog);
});

test("listen listens on an address where no socket was passed", async () => {
  const { port } = started(listen({ port: 0 }, greet("mine"))) as Bun.TCPSocketListener<undefined>;
  expect(await text(await client({ port, host: "127.0.0.1" }))).toBe("mine");
  const path = `\0socket-service-${crypto.randomUUID()}`;
  started(listen({ unix: path }, greet("mine")));
  expect(await text(await client({ path }))).toBe("mine");
});

test("listen refuses what is no listening stream socket, and leaves it open", () => {
  const socket = bound(AF_INET, SOCK_STREAM);
  expect(thrown(() => listen(socket, greet("")))).toEqual(
    refusal(78, /^descriptor \d+ is an unconnected stream socket \(IPv4\), not a listening /),
  );
  close(socket);
  const [reads, writes] = pipe();
  expect(thrown(() => listen(reads, greet("")))).toEqual(refusal(78, /is a fifo, not a listening/));
  close(reads);
  close(writes);
  expect(thrown(() => listen(987654, greet("")))).toEqual(refusal(78, /987654 is not open/));
});

test("listen leaves the socket as it was where Bun.listen refuses the options", async () => {
  using it = listening("IPv4");
  const before = openDescriptors();
  const tls = { key: "no key", cert: "no certificate" };
  expect(thrown(() => listen(it.fd, { ...greet(""), tls }))).toBeInstanceOf(Error);
  await eventually(() => openDescriptors() === before);
  expect(describeFd(it.fd)).toMatchObject({ listening: true, family: "IPv4" });
  expect(backlogOf(it.fd)).toBe(37);
  started(listen(it.fd, greet("still")));
  expect(await text(await client(it.to))).toBe("still");
});

test("listen refuses a runtime that listens elsewhere, and leaves the socket as it was", async () => {
  using it = listening("IPv4");
  const elsewhere = Bun.listen({ hostname: "127.0.0.1", port: 0, ...greet("") });
  const { port } = elsewhere;
  using native = spyOn(Bun, "listen");
  native.mockImplementationOnce((() => elsewhere) as unknown as typeof Bun.listen);
  expect(thrown(() => listen(it.fd, greet("")))).toEqual(refusal(71, /does not watch descriptor/));
  expect(await client({ port, host: "127.0.0.1" }).catch(() => "refused")).toBe("refused");
  native.mockRestore();
  expect(backlogOf(it.fd)).toBe(37);
  started(listen(it.fd, greet("still")));
  expect(await text(await client(it.to))).toBe("still");
});

test("substitute refuses a descriptor that no event loop watches, and changes nothing", () => {
  using it = listening("IPv4");
  using other = listening("IPv6");
  expect(thrown(() => substitute(it.fd, other.fd))).toEqual(
    refusal(71, /^Bun \S+ does not watch descriptor \d+ with epoll as expected: use the Bun /),
  );
  expect(describeFd(other.fd)).toMatchObject({ family: "IPv6" });
  close(it.fd);
  close(other.fd);
});
