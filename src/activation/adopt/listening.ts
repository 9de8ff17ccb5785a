import { misconfigured, requireNumber } from "../error.ts";
import { perProcess } from "../hot.ts";
import { LONGEST_PATH } from "../linux/layout.ts";
import {
  describe,
  formatAddress,
  formatDescriptor,
  isListeningStream,
} from "../receive/describe.ts";
import type { Watched } from "./event-loop.ts";

/** State that cannot be read from a listener on a passed socket. */
interface Listening {
  /** How the event loop watches the socket. */
  readonly watch: Watched;
  /** Called when a connection is opened or closed. */
  readonly onUse: Set<() => void>;
}

const listeners = perProcess("listeners", () => new WeakMap<object, Listening>());

export function keepListening(listener: object, listening: Listening): void {
  listeners.set(listener, listening);
}

/** Returns undefined for a listener that was not passed its socket. */
export function listeningOf(listener: object): Listening | undefined {
  return listeners.get(listener);
}

/** Whether a descriptor is a socket that listens at an address, as Bun reports that of a server. */
export function listensAt(fd: number, address: string): boolean {
  if (!isListeningStream(fd)) return false;
  const own = formatAddress(describe(fd));
  // Bun binds a long path through a descriptor of its directory.
  if (Buffer.byteLength(address) > LONGEST_PATH)
    return (
      own.startsWith("/proc/self/fd/") && own.endsWith(address.slice(address.lastIndexOf("/")))
    );
  // Bun leaves out the interface of a link-local address.
  return (address.startsWith("[") ? own.replace(/%\d+/, "") : own) === address;
}

/** @throws {ActivationError} (78) unless `fd` is a stream socket over IP or AF_UNIX that listens. */
export function requireListening(fd: number): void {
  requireNumber(fd);
  if (!isListeningStream(fd))
    throw misconfigured(
      `descriptor ${fd} is ${formatDescriptor(describe(fd))}, not a listening stream socket over IP or AF_UNIX: set ListenStream= and Accept=no in the socket unit`,
    );
}
