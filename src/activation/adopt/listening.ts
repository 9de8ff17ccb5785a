import { misconfigured } from "../error.ts";
import { describe, formatDescriptor, isListeningStream } from "../receive/describe.ts";

/** @throws {ActivationError} (78) unless `fd` is a stream socket over IP or AF_UNIX that listens. */
export function requireListening(fd: number): void {
  if (!isListeningStream(fd))
    throw misconfigured(
      `descriptor ${fd} is ${formatDescriptor(describe(fd))}, not a listening stream socket over IP or AF_UNIX: pass one (ListenStream= and Accept=no)`,
    );
}
