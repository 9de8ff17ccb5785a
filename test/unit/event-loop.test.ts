import { expect, spyOn, test } from "bun:test";

import { describe as describeFd } from "../../src/activation/receive/describe.ts";
import {
  exchange,
  isWatched,
  pauseForGood,
  resume,
  substitute,
  unwatch,
  watchListener,
} from "../../src/activation/adopt/event-loop.ts";
import { readProc, replace, socketName } from "../../src/activation/linux/libc.ts";
import { close, socketPair } from "../support/sockets.ts";
import { refusal } from "../support/checks.ts";
import { client, listening, text } from "../support/listening.ts";

test("substitute refuses a descriptor that no event loop watches, and changes nothing", () => {
  using it = listening("IPv4");
  using other = listening("Unix");
  expect(refusal(() => substitute(it.fd, other.fd))).toMatch(
    /^71: Bun \S+ does not watch descriptor \d+ with epoll as expected: use a Bun /,
  );
  expect(describeFd(other.fd)).toMatchObject({ family: "Unix" });
  close(it.fd);
  close(other.fd);
});

/** Returns the descriptor of a listener of Bun. */
const fdOf = (listener: object) => Number(Reflect.get(listener, "fd"));

/** Returns the events for which the epoll instance of this process watches a descriptor, and its data. */
function registration(fd: number): string | undefined {
  for (let epoll = 3; epoll < 64; epoll++) {
    const line = RegExp(`^tfd: +${fd} events: +(\\w+ +data: +\\w+)`, "m").exec(
      readProc(`/proc/self/fdinfo/${epoll}`) ?? "",
    );
    if (line !== null) return line[1];
  }
  return undefined;
}

/** Returns an instance of the module, as a further evaluation under `bun --hot` has one. */
async function evaluation(
  name: string,
): Promise<typeof import("../../src/activation/adopt/event-loop.ts")> {
  const path = `../../src/activation/adopt/event-loop.ts?${name}`;
  return await import(path);
}

/** Has the next evaluation watch nothing yet, until it is disposed of. */
function nothingWatched(): Disposable {
  const states: unknown = Reflect.get(globalThis, Symbol.for("socket-service/activation"));
  if (!(states instanceof Map)) throw new Error("there is no state");
  const looks: unknown = states.get("watched sockets");
  states.delete("watched sockets");
  return { [Symbol.dispose]: () => void states.set("watched sockets", looks) };
}

test("a socket is watched edge-triggered, and looked at again until its number is reused", async () => {
  using _ = nothingWatched();
  const fresh = await evaluation("fresh");
  using interval = spyOn(globalThis, "setInterval");
  using it = listening("IPv4");
  const own = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: { open: (socket) => void socket.end("hello"), data() {} },
  });
  const fd = fdOf(own);
  fresh.substitute(it.fd, fd);
  expect(registration(fd)).toStartWith("8");
  expect(await text(await client(it.to))).toBe("hello");
  const [lookAgain, period] = interval.mock.calls.at(-1) ?? [];
  expect(period).toBe(500);
  if (typeof lookAgain !== "function") throw new Error("there is no timer");

  using end = spyOn(globalThis, "clearInterval");
  lookAgain();
  expect(end).not.toHaveBeenCalled();
  expect(await text(await client(it.to))).toBe("hello");
  own.stop();
  // A socket that nobody watches has the number now.
  const pair = socketPair();
  if (!pair.includes(fd)) replace(pair[0], fd);
  lookAgain();
  expect(end).toHaveBeenCalledTimes(1);
  // Another that is watched later is looked at again, too.
  using next = listening("IPv6");
  const later = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  const timers = interval.mock.calls.length;
  fresh.substitute(next.fd, fdOf(later));
  expect(interval.mock.calls.length).toBe(timers + 1);
  later.stop();
  lookAgain();
  close(next.fd);
  for (const number of new Set([fd, it.fd, ...pair])) close(number);
});

test("after edits, no earlier look restores how Bun watched a former socket of that number", async () => {
  using _ = nothingWatched();
  using interval = spyOn(globalThis, "setInterval");
  using it = listening("IPv4");
  const socket = { open: (socket: Bun.Socket<undefined>) => void socket.end("later"), data() {} };
  const own = () => Bun.listen({ hostname: "127.0.0.1", port: 0, socket });
  const [earlier, later] = [await evaluation("earlier"), await evaluation("later")];
  // In one turn of the event loop, in which Bun has not freed the first yet: the data differs.
  const first = own();
  const fd = fdOf(first);
  const before = earlier.substitute(it.fd, fd);
  const [lookAgain] = interval.mock.calls.at(-1) ?? [];
  if (typeof lookAgain !== "function") throw new Error("there is no timer");
  first.stop();
  const second = own();
  expect(fdOf(second)).toBe(fd);
  const after = later.substitute(it.fd, fd);
  expect(after.data).not.toEqual(before.data);
  lookAgain();
  expect(later.watchListener(fd).data).toEqual(after.data);
  expect(await text(await client(it.to))).toBe("later");
  second.stop();
  lookAgain();
  close(it.fd);
});

test("a socket that is forgotten late does not have the next one of that number forgotten", () => {
  const socket = { data() {} };
  const own = () => Bun.listen({ hostname: "127.0.0.1", port: 0, socket });
  const [passed, first] = [listening("IPv4"), own()];
  const watch = substitute(passed.fd, fdOf(first));
  first.stop();
  const second = own();
  expect(fdOf(second)).toBe(watch.fd);
  const next = substitute(passed.fd, fdOf(second));
  unwatch(watch);
  expect(isWatched(next)).toBe(true);
  unwatch(next);
  expect(isWatched(next)).toBe(false);
  second.stop();
  close(passed.fd);
  passed[Symbol.dispose]();
});

test("a socket that Bun has opened is watched, though a passed one had its number before", () => {
  const own = () => Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  const [passed, first] = [listening("IPv4"), own()];
  const { fd } = substitute(passed.fd, fdOf(first));
  first.stop();
  const second = own();
  expect(fdOf(second)).toBe(fd);
  expect(isWatched(watchListener(fd))).toBe(true);
  second.stop();
  close(passed.fd);
  passed[Symbol.dispose]();
});

test("another socket in the place of a watched one is watched in its stead, with its own address", async () => {
  using it = listening("IPv4");
  using next = listening("IPv4");
  const open = (socket: Bun.Socket<undefined>) => void socket.end("hello");
  const own = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { open, data() {} } });
  const watch = substitute(it.fd, fdOf(own));
  exchange(watch, next.fd);
  expect(await text(await client(next.to))).toBe("hello");
  expect(isWatched(watch)).toBe(true);
  expect(watch.address).toEqual(socketName(next.fd));
  // The former socket, which others keep open, is watched no more.
  const lines = readProc(`/proc/self/fdinfo/${watch.epoll}`) ?? "";
  expect(lines.match(RegExp(`^tfd: +${watch.fd} `, "gm"))).toHaveLength(1);
  own.stop();
  for (const fd of [it.fd, next.fd]) close(fd);
});

test("a socket that is paused for good is not watched again", () => {
  using it = listening("IPv4");
  const own = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  const watch = substitute(it.fd, fdOf(own));
  pauseForGood(watch);
  resume(watch, it.fd);
  expect(isWatched(watch)).toBe(false);
  own.stop();
  close(it.fd);
});

test("each socket is found by its own number, and not by one that ends in the same digits", () => {
  // Numbers up to 200 and more: 13 and 113, 20 and 120.
  const listeners = Array.from({ length: 200 }, () =>
    Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } }),
  );
  const data = new Set<string>();
  for (const listener of listeners) {
    const fd = fdOf(listener);
    const watch = watchListener(fd);
    expect(watch.fd).toBe(fd);
    expect(watch.events).toBeGreaterThan(0);
    data.add(watch.data.join());
  }
  // Bun's own data tells one socket from another.
  expect(data.size).toBe(200);
  for (const listener of listeners) listener.stop();
});
