import { misconfigured } from "../error.ts";
import { perProcess } from "../hot.ts";
import { describe, formatDescriptor, isListeningStream } from "../receive/describe.ts";
import type { Watched } from "./event-loop.ts";

/** How the event loop watches the passed sockets of `listen`. */
const watches = perProcess("listeners", () => new WeakMap<object, Watched>());

export function keepWatch(listener: object, watch: Watched): void {
  watches.set(listener, watch);
}

/** Returns undefined for a listener that was not passed its socket. */
export function watchOfListener(listener: object): Watched | undefined {
  return watches.get(listener);
}

/** @throws {ActivationError} (78) unless `fd` is a stream socket over IP or AF_UNIX that listens. */
export function requireListening(fd: number): void {
  if (!isListeningStream(fd))
    throw misconfigured(
      `descriptor ${fd} is ${formatDescriptor(describe(fd))}, not a listening stream socket over IP or AF_UNIX: set ListenStream= and Accept=no in the socket unit`,
    );
}
