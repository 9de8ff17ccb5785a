import { nothingPassed, takePassed } from "./environment.ts";
import { misconfigured } from "./error.ts";
import { closesOnExec, setCloseOnExec } from "./libc.ts";

/** The first passed descriptor (SD_LISTEN_FDS_START of sd-daemon.h). */
export const LISTEN_FDS_START = 3;

/** A descriptor as the service manager passed it. */
export interface PassedDescriptor {
  /** Its number, counted from {@link LISTEN_FDS_START} without gaps, in the order of the units. */
  readonly fd: number;
  /** Its `FileDescriptorName=`; `connection` for an accepted one, `unknown` where none was sent. */
  readonly name: string;
}

/**
 * Takes the descriptors that the service manager passed, as sd_listen_fds_with_names(3), and the
 * `LISTEN_*` variables out of the environment. It makes the descriptors close-on-exec: children
 * inherit neither. A second call finds nothing.
 *
 * @returns The descriptors in order; none where nothing was passed to this process.
 * @throws {ActivationError} (78) when a variable is malformed, the names are not as many as the
 *   descriptors, or a descriptor is not open; (71) when libc cannot be called.
 *
 * @example
 * ```ts
 * for (const { fd, name } of listenFds()) console.log(name, describe(fd));
 * ```
 */
export function listenFds(): PassedDescriptor[] {
  const passed = takePassed();
  return "reason" in passed ? [] : inherit(passed.count, passed.names);
}

/**
 * The same for a service that cannot do without.
 *
 * @throws {ActivationError} As {@link listenFds}, and (78) when nothing was passed, saying why.
 */
export function requireListenFds(): PassedDescriptor[] {
  const passed = takePassed();
  if ("reason" in passed) throw nothingPassed(passed.reason);
  return inherit(passed.count, passed.names);
}

function inherit(count: number, names: readonly string[] | undefined): PassedDescriptor[] {
  const descriptors: PassedDescriptor[] = [];
  for (let index = 0; index < count; index++) {
    const fd = LISTEN_FDS_START + index;
    const closes = closesOnExec(fd);
    // Nothing that came through exec closes on exec: where the first does, nothing was passed, and
    // the runtime took its number. (From 4 on Bun sets it itself on all that it finds.)
    if (closes === undefined || (closes && fd === LISTEN_FDS_START))
      throw misconfigured(
        `descriptor ${fd} is not open, though LISTEN_FDS is ${count}: pass as many as it says`,
      );
    setCloseOnExec(fd);
    descriptors.push({ fd, name: names?.[index] ?? "unknown" });
  }
  return descriptors;
}
