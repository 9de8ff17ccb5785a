/*
 * How Bun accepts from a passed socket.
 *
 * Bun.serve takes no listening socket, and Bun.listen resets its backlog. So each starts on a socket of
 * its own, the placeholder, where nobody comes. Its event loop watches that with epoll. Then the passed
 * socket replaces the placeholder: dup3(2) puts it on the placeholder's number, which also removes the
 * placeholder from epoll, and epoll_ctl(2) adds the number again with what Bun had registered there.
 */
import { ActivationError, ExitStatus } from "../error.ts";
import { perProcess } from "../hot.ts";
import { EPOLLOUT } from "../linux/layout.ts";
import * as libc from "../linux/libc.ts";

/** How often the event loop looks at every listening socket again, in milliseconds. */
const LOOK_AGAIN = 500;

/** How a listening socket is watched. */
export interface Watched extends libc.Watch {
  /** Bun does not tell when it closes a number, which another file can have then. */
  identity: string;
  /** A sockaddr. */
  address: Uint8Array;
  /** Whether nothing is accepted any more. */
  isOver?: boolean;
}

/** The watched sockets by number, and the timer that looks at them again. */
const watching: { readonly sockets: Map<number, Watched>; timer?: NodeJS.Timeout | undefined } =
  perProcess("watched sockets", () => ({ sockets: new Map() }));

/**
 * Puts the listening socket `passed` in the place of the placeholder, on the number of the latter.
 *
 * @throws {ActivationError} (71) if no epoll instance of this process watches the placeholder.
 */
export function substitute(passed: number, placeholder: number): Watched {
  const watch = registration(placeholder);
  // Bun accepts until it would block.
  libc.setNonBlocking(passed);
  libc.replace(passed, watch.fd);
  libc.epollControl("add", watch);
  return noteWatch(watch);
}

/** Watches a listening socket that Bun has opened, in the way of a passed one. */
export function watchListener(fd: number): Watched {
  const known = watching.sockets.get(fd);
  // With the preload, another copy of this module has put a passed one there.
  return known && isWatched(known) ? known : noteWatch(registration(fd));
}

/** Whether Bun still has the watched socket: not if that was closed, is paused, or was replaced. */
export function isWatched(watch: Watched): boolean {
  const { fd, identity } = watch;
  return watching.sockets.get(fd) === watch && libc.identity(fd) === identity;
}

/** Forgets a socket that is about to be closed: another descriptor of it can get the same number. */
export function unwatch(watch: Watched): void {
  if (watching.sockets.get(watch.fd) === watch) watching.sockets.delete(watch.fd);
}

/**
 * Stops accepting at once, unless the socket was closed already. If a handler calls it, no connection
 * is accepted after that handler's.
 */
export function pause(watch: Watched): void {
  if (!isWatched(watch) || !libc.epollControl("delete", watch)) return;
  // Bun would go on accepting from the queue. On the epoll instance, its accept4(2) fails.
  libc.replace(watch.epoll, watch.fd);
}

/** Stops accepting, and has `resume` do nothing. */
export function pauseForGood(watch: Watched): void {
  watch.isOver = true;
  pause(watch);
}

/** Accepts again. `socket` is another descriptor of the socket that was watched before. */
export function resume(watch: Watched, socket: number): void {
  if (watch.isOver) return;
  libc.replace(socket, watch.fd);
  libc.epollControl("add", watch);
  keepLooking(watch);
}

/** Puts another listening socket in the place of the watched one. */
export function exchange(watch: Watched, socket: number): void {
  pause(watch);
  resume(watch, socket);
  watch.identity = libc.identity(watch.fd);
  watch.address = libc.socketName(watch.fd);
}

function noteWatch(watch: libc.Watch): Watched {
  const { fd } = watch;
  const watched = { ...watch, identity: libc.identity(fd), address: libc.socketName(fd) };
  keepLooking(watched);
  return watched;
}

/**
 * Bun watches level-triggered: with no descriptor free, accept4(2) fails, the socket stays ready, and
 * Bun asks again and again, with a whole processor. We watch edge-triggered (`epollControl`): Bun asks
 * when a client comes. Looking again finds the clients that still wait when a descriptor becomes free.
 */
function keepLooking(watch: Watched): void {
  watching.sockets.set(watch.fd, watch);
  watching.timer ??= setInterval(lookAgain, LOOK_AGAIN).unref();
}

function lookAgain(): void {
  for (const watch of watching.sockets.values()) {
    // Another file may have the number by now, whose registration must stay as it is.
    if (!isWatched(watch) || !libc.epollControl("modify", watch)) unwatch(watch);
  }
  if (watching.sockets.size > 0) return;
  clearInterval(watching.timer);
  watching.timer = undefined;
}

/**
 * Returns the descriptors to which Bun has more to write than the kernel takes now; undefined if no
 * descriptor is free to read it with.
 */
export function pendingWrites(epoll: number): ReadonlySet<number> | undefined {
  let lines: string | undefined;
  try {
    lines = libc.readProc(`/proc/self/fdinfo/${epoll}`);
  } catch {
    return undefined;
  }
  const fds = new Set<number>();
  for (const [, fd, events] of (lines ?? "").matchAll(/^tfd: +(\d+) events: +([0-9a-f]+)/gm))
    if (Number.parseInt(events ?? "", 16) & EPOLLOUT) fds.add(Number(fd));
  return fds;
}

/** The epoll instance of Bun's event loop, once it is found. With one passed socket, it is 4. */
let eventLoop = 4;

function registration(fd: number): libc.Watch {
  // A line of it in proc_pid_fdinfo(5): "tfd: %8d events: %8x data: %16llx ...".
  const target = ` ${fd} events: `;
  // The epoll instance has one of the lowest numbers. The likeliest one comes first: see Start.
  for (let candidate = -1; candidate < libc.SEARCH_LIMIT; candidate++) {
    const epoll = candidate < 0 ? eventLoop : candidate;
    const text = libc.readProc(`/proc/self/fdinfo/${epoll}`);
    const at = text?.indexOf(target) ?? -1;
    if (text === undefined || at < 0) continue;
    const columns = text.slice(at + target.length);
    if (columns.slice(8, 15) !== " data: ") break;
    eventLoop = epoll;
    const hex = (from: number) => Number.parseInt(columns.slice(from, from + 8), 16) || 0;
    return { fd, epoll, events: hex(0), data: [hex(23), hex(15)] };
  }
  throw unexpectedRuntime(`does not watch descriptor ${fd} with epoll`);
}

/** The error for a runtime that is not as this module knows it. */
export function unexpectedRuntime(what: string): ActivationError {
  const message = `Bun ${Bun.version} ${what} as expected: use a Bun version with which this module was tested`;
  return new ActivationError(ExitStatus.systemCall, message);
}
