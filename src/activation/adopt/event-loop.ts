import { ActivationError, ExitStatus } from "../error.ts";
import { EPOLLOUT } from "../linux/layout.ts";
import * as libc from "../linux/libc.ts";

/** The longest that a timer waits, in milliseconds: 25 days. With more it fires at once. */
export const LONGEST_TIMER = 0x7fffffff;
/** How often the event loop looks at every listening socket again, in milliseconds. */
const LOOK_AGAIN = 500;
/** How a socket is watched, and its identity: Bun closes a number without telling. */
export interface Watched extends libc.Watch {
  readonly referent: string;
}
/** The watched sockets, by number. */
const watched = new Map<number, Watched>();
let timer: NodeJS.Timeout | undefined;

/**
 * Puts the listening socket `passed` in the place of the listening socket `fd` in Bun's event loop.
 *
 * @throws {ActivationError} (71) if no epoll instance of this process watches `fd`.
 */
export function substitute(passed: number, fd: number): Watched {
  const watch = registration(fd);
  // Bun accepts until it would block.
  libc.setNonBlocking(passed);
  // With the last reference to the old socket goes its registration.
  return resume(watch, passed);
}

/** Watches a listening socket of Bun's own as a passed one. */
export function adopt(fd: number): Watched {
  return remember(registration(fd));
}

/** Whether Bun still has the socket that it was given to watch: not if that was closed. */
export function isWatched({ fd, referent }: Watched): boolean {
  return libc.referent(fd) === referent;
}

/** Stops accepting at once: in the handler of a connection just accepted, it is the last one. */
export function pause(watch: libc.Watch): void {
  libc.epollControl("delete", watch);
  // Bun would still accept whoever is in the queue: accept4(2) fails on what is no socket.
  libc.replace(watch.epoll, watch.fd);
}

/** Accepts from `socket`, another descriptor of which was watched before. */
export function resume(watch: libc.Watch, socket: number): Watched {
  libc.replace(socket, watch.fd);
  libc.epollControl("add", watch);
  return remember(watch);
}

/**
 * Bun watches level-triggered: with no descriptor free, accept4(2) fails, the socket stays ready, and
 * Bun asks again and again, with a whole processor. Edge-triggered, it asks when a client comes; who
 * is left in the queue when a descriptor comes free is found by looking again.
 */
function remember(watch: libc.Watch): Watched {
  const known = { ...watch, referent: libc.referent(watch.fd) };
  watched.set(watch.fd, known);
  timer ??= setInterval(lookAgain, LOOK_AGAIN).unref();
  return known;
}

function lookAgain(): void {
  for (const [fd, watch] of watched) {
    // Another file may have the number by now, whose registration must stay as it is.
    if (libc.referent(fd) === watch.referent) libc.epollControl("modify", watch);
    else watched.delete(fd);
  }
  if (watched.size > 0) return;
  clearInterval(timer);
  timer = undefined;
}

/** The epoll instance of Bun's event loop, once it was found. With one socket passed, it is 4. */
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
  // It is among the first that were free. Reading five files instead of the right one takes 0.1 ms
  // of a start, and is so many calls that the just-in-time compiler starts its threads: 0.4 ms more.
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
  const message = `Bun ${Bun.version} ${what} as expected: use the Bun that this was made for`;
  return new ActivationError(ExitStatus.systemCall, message);
}
