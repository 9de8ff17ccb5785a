/*
 * How Bun accepts from a passed socket.
 *
 * Bun.serve takes no listening socket, and Bun.listen resets its backlog. So each starts on a socket of
 * its own, the placeholder, where nobody comes. Its event loop watches that with epoll. Then the passed
 * socket replaces the placeholder: dup3(2) puts it on the placeholder's number, which also removes the
 * placeholder from epoll, and epoll_ctl(2) adds the number again with what Bun had registered there.
 */
import { ActivationError, ExitStatus } from "../error.ts";
import { EPOLLOUT } from "../linux/layout.ts";
import * as libc from "../linux/libc.ts";

/** How often the event loop looks at every listening socket again, in milliseconds. */
const LOOK_AGAIN = 500;
/** How a socket is watched, and its identity: Bun does not tell when it closes a number. */
export interface Watched extends libc.Watch {
  readonly identity: string;
}
/** The watched sockets, by number. */
const watched = new Map<number, Watched>();
let timer: NodeJS.Timeout | undefined;

/**
 * Puts the listening socket `passed` in the place of the placeholder, on the number of the latter.
 *
 * @throws {ActivationError} (71) if no epoll instance of this process watches the placeholder.
 */
export function substitute(passed: number, placeholder: number): Watched {
  const watch = registration(placeholder);
  // Bun accepts until it would block.
  libc.setNonBlocking(passed);
  return resume(watch, passed);
}

/** Watches a listening socket that Bun has opened, in the way of a passed one. */
export function watchListener(fd: number): Watched {
  return watchEdges(registration(fd));
}

/** Whether Bun still has the watched socket: not if that was closed. */
export function isWatched({ fd, identity }: Watched): boolean {
  return libc.identity(fd) === identity;
}

/** Stops accepting at once. If a handler calls it, no connection is accepted after that handler's. */
export function pause(watch: libc.Watch): void {
  libc.epollControl("delete", watch);
  // Bun would go on accepting from the queue. On the epoll instance, its accept4(2) fails.
  libc.replace(watch.epoll, watch.fd);
}

/** Accepts again. `socket` is another descriptor of the socket that was watched before. */
export function resume(watch: libc.Watch, socket: number): Watched {
  libc.replace(socket, watch.fd);
  libc.epollControl("add", watch);
  return watchEdges(watch);
}

/**
 * Bun watches level-triggered: with no descriptor free, accept4(2) fails, the socket stays ready, and
 * Bun asks again and again, with a whole processor. We watch edge-triggered: Bun asks when a client
 * comes. Looking again finds the clients that still wait when a descriptor becomes free.
 */
function watchEdges(watch: libc.Watch): Watched {
  const known = { ...watch, identity: libc.identity(watch.fd) };
  watched.set(watch.fd, known);
  timer ??= setInterval(lookAgain, LOOK_AGAIN).unref();
  return known;
}

function lookAgain(): void {
  for (const [fd, watch] of watched) {
    // Another file may have the number by now, whose registration must stay as it is.
    if (libc.identity(fd) === watch.identity) libc.epollControl("modify", watch);
    else watched.delete(fd);
  }
  if (watched.size > 0) return;
  clearInterval(timer);
  timer = undefined;
}

/** The epoll instance of Bun's event loop, once it is found. With one passed socket, it is 4. */
let eventLoop = 4;

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
