/* A program is evaluated again, as under `bun --hot`, here in one process. */
import { afterEach, beforeEach, expect, spyOn, test } from "bun:test";

import { replace } from "../../src/activation/linux/libc.ts";
import { kept, listenFds, takePassed } from "../../src/activation/receive/listen-fds.ts";
import { whenIdle } from "../../src/activation/adopt/idle.ts";
import { listen } from "../../src/activation/adopt/listen.ts";
import { serve } from "../../src/activation/adopt/serve.ts";
import { udpSocket } from "../../src/activation/adopt/udp.ts";
import { descriptors, nothingLeft, refusal, thrown } from "../support/checks.ts";
import { client, listening, text } from "../support/listening.ts";
import { cleansUp, started } from "../support/started.ts";
import { AF_INET, bound, close, isOpen, portOf, SOCK_DGRAM } from "../support/sockets.ts";

const { execArgv } = process;
const setFlags = (value: readonly string[]) =>
  Object.defineProperty(process, "execArgv", { value, configurable: true });
beforeEach(() => void setFlags(["--hot"]));
afterEach(() => void setFlags(execArgv));
cleansUp();

const greet = (line: string) => ({
  socket: { open: (socket: Bun.Socket<undefined>) => void socket.end(line), data() {} },
});

test("a second evaluation finds the passed descriptors again, only with the flag", () => {
  Object.assign(process.env, { LISTEN_PID: String(process.pid), LISTEN_FDS: "2" });
  expect(takePassed()).toEqual({ count: 2, names: undefined });
  for (let i = 0; i < 2; i++)
    expect(takePassed()).toEqual({ count: 2, names: undefined, again: true });
  const named = { LISTEN_PID: String(process.pid), LISTEN_FDS: "2", LISTEN_FDNAMES: "a:b" };
  Object.assign(process.env, named);
  expect(takePassed()).toEqual({ count: 2, names: ["a", "b"] });
  setFlags(["--smol", "--hot"]);
  expect(takePassed()).toEqual({ count: 2, names: ["a", "b"], again: true });
  setFlags([]);
  expect(takePassed()).toMatchObject({ reason: "an earlier call returned it" });
});

test("a second evaluation says why the first found nothing, too", () => {
  delete kept.found;
  const path = "../../src/activation/receive/listen-fds.ts?absent";
  const later: typeof import("../../src/activation/receive/listen-fds.ts") = require(path);
  Object.assign(process.env, { LISTEN_PID: "1", LISTEN_FDS: "1" });
  expect(takePassed()).toMatchObject({
    reason: `LISTEN_PID is 1 and this is process ${process.pid}`,
  });
  expect(later.takePassed()).toEqual(takePassed());
});

test("after a restart by bun --watch, the error names --hot", () => {
  setFlags(["--smol", "--watch"]);
  Object.assign(process.env, { LISTEN_PID: String(process.pid), LISTEN_FDS: "1" });
  // The number is the runtime's own here, too.
  expect(refusal(listenFds)).toMatch(
    /^78: descriptor 3 is not open, though LISTEN_FDS is 1: use bun --hot, because bun --watch closes /,
  );
});

test("a listener replaces that of the former evaluation, which leaves nothing open", async () => {
  using it = listening("IPv4");
  for (const line of ["one", "two", "three"]) {
    listen({ fd: it.fd, ...greet(line) });
    const socket = await client(it.to);
    expect(await text(socket)).toBe(line);
    socket.destroy();
  }
  const server = serve({ fd: it.fd, fetch: () => new Response() });
  const socket = await client(it.to);
  socket.write("GET / HTTP/1.0\r\n\r\n");
  expect(await text(socket)).toStartWith("HTTP/1.1 200 ");
  socket.destroy();
  await server.stop();
  expect(isOpen(it.fd)).toBe(true);
  close(it.fd);
});

test("a later evaluation knows the listeners of the first", () => {
  using it = listening("IPv4");
  const listener = started(listen({ fd: it.fd, ...greet("") }));
  const path = "../../src/activation/adopt/listening.ts?later";
  const later: typeof import("../../src/activation/adopt/listening.ts") = require(path);
  expect(later.listeningOf(listener)?.onUse).toBeInstanceOf(Set);
  listener.stop();
  close(it.fd);
});

test("after an edit, the earlier promise of whenIdle never resolves", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response() });
  let isResolved = false;
  void whenIdle(server, { timeout: 20 }).then(() => (isResolved = true));
  const path = "../../src/activation/adopt/idle.ts?later";
  const later: typeof import("../../src/activation/adopt/idle.ts") = require(path);
  await later.whenIdle(server, { timeout: 60 });
  expect(isResolved).toBe(false);
  await server.stop();
  close(it.fd);
});

test("without the flag, a number that is used again stops no other server", async () => {
  setFlags([]);
  using one = listening("IPv4");
  using other = listening("IPv4");
  const first = serve({ fd: one.fd, fetch: () => new Response("first") });
  // serve has closed the number.
  replace(other.fd, one.fd);
  close(other.fd);
  const second = serve({ fd: one.fd, fetch: () => new Response("second") });
  const bodies = [first, second].map(async ({ url }) => (await fetch(url)).text());
  expect(await Promise.all(bodies)).toEqual(["first", "second"]);
  await Promise.all([first.stop(true), second.stop(true)]);
});

test("a listener replaces a server, which gets no client any more", async () => {
  using it = listening("IPv4");
  serve({ fd: it.fd, fetch: () => new Response("of the server") });
  for (const line of ["one", "two"]) {
    listen({ fd: it.fd, ...greet(line) });
    // With two that accept, each would get some.
    const clients = await Promise.all(Array.from({ length: 20 }, () => client(it.to)));
    expect(await Promise.all(clients.map(text))).toEqual(Array(20).fill(line));
    for (const socket of clients) socket.destroy();
  }
  // The last listener, too, is stopped by this.
  const server = serve({ fd: it.fd, fetch: () => new Response() });
  await server.stop(true);
  close(it.fd);
});

test("an error leaves the passed descriptor and its former server, and opens nothing", async () => {
  using it = listening("IPv4");
  const listener = listen({ fd: it.fd, ...greet("former") });
  const open = descriptors();
  const tls = { key: "no key", cert: "no certificate" };
  expect(thrown(() => listen({ fd: it.fd, ...greet(""), tls }))).toBeInstanceOf(Error);
  expect(thrown(() => serve({ fd: it.fd, fetch: () => new Response(), tls }))).toBeInstanceOf(
    Error,
  );
  await nothingLeft(open);
  const socket = await client(it.to);
  expect(await text(socket)).toBe("former");
  socket.destroy();
  listener.stop();
  close(it.fd);
});

test("a server that Bun has reloaded keeps its socket and its id", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response("one") });
  const native = Bun.serve;
  using spy = spyOn(Bun, "serve");
  const ids: unknown[] = [];
  // As Bun does it for a server of the same id.
  spy.mockImplementation(((options: Bun.Serve.Options<undefined>) => {
    ids.push(options.id);
    return Object.getPrototypeOf(Object.getPrototypeOf(server)).reload.call(server, options);
  }) as typeof native);
  expect(serve({ fd: it.fd, fetch: () => new Response("two") })).toBe(server);
  expect(ids).toEqual([`fd-${it.fd}`]);
  expect(await (await fetch(server.url)).text()).toBe("two");
  await server.stop(true);
  close(it.fd);
});

test("the id that the program gives its server stays", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, id: "mine", fetch: () => new Response() });
  expect(server.id).toBe("mine");
  await server.stop(true);
  close(it.fd);
});

test("a datagram socket replaces the former one, and no error closes the passed one", async () => {
  const fd = bound(AF_INET, SOCK_DGRAM);
  const first = await udpSocket({ fd });
  const second = await udpSocket({ fd });
  expect([first.closed, second.closed]).toEqual([true, false]);
  expect(second.port).toBe(portOf(fd));
  second.close();
  using spy = spyOn(Bun, "udpSocket");
  spy.mockRejectedValue(new Error("on purpose"));
  expect(await udpSocket({ fd }).catch(String)).toBe("Error: on purpose");
  close(fd);
});
