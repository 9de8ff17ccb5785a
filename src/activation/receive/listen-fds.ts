import { isName, isOwnPid, parseDecimal, takeVariable } from "../environment.ts";
import { misconfigured, quote } from "../error.ts";
import { isHot, perProcess } from "../hot.ts";
import { closesOnExec, pidfdId, setCloseOnExec } from "../linux/libc.ts";
import { type Needed, notPassed, type NotPassed, stdinSocket } from "./not-passed.ts";
import { warnIfWrapped } from "./wrapper.ts";

/** The number of the first passed descriptor (`SD_LISTEN_FDS_START` of sd-daemon.h). */
export const LISTEN_FDS_START = 3;

/** A descriptor as systemd passed it. */
export interface PassedDescriptor {
  /** Its number, counted from {@link LISTEN_FDS_START} without gaps, in the order of the units. */
  readonly fd: number;
  /**
   * Its `FileDescriptorName=`; `connection` for an accepted one, the `FDNAME=` or `stored` for one
   * from the descriptor store, `unknown` if no names were sent.
   */
  readonly name: string;
}

/** The passed descriptors, by the environment. */
interface Passed {
  readonly count: number;
  readonly names: readonly string[] | undefined;
  /** Whether it was found before: `bun --hot` has evaluated the program again. */
  readonly again?: boolean;
}

/** The remedies if the variables do not fit together, and if they are for another process. */
const LEAVE = "do not set LISTEN_* yourself, because systemd sets it";
const ITSELF = "write this program itself in ExecStart=, and do not set LISTEN_* yourself";

interface Kept {
  /** The descriptors that were found, for the next evaluation under `bun --hot`. */
  found?: Passed;
  /** Why the last call found nothing; undefined if it found something. */
  absence?: NotPassed | undefined;
  /** Whether it is for the preload alone. */
  isReserved?: boolean;
}

export const kept = perProcess<Kept>("passed", () => ({}));
let returnedStdin = false;

/**
 * Returns the descriptors that systemd passed, if `LISTEN_PID` and (with pidfs in the kernel)
 * `LISTEN_PIDFDID` name this process, like sd_listen_fds_with_names(3). It removes the `LISTEN_*` variables from
 * `process.env`, and makes the descriptors close-on-exec.
 *
 * A second call returns an empty list; under `bun --hot` the same descriptors again. In a Worker the
 * list is empty.
 *
 * Limitation: if descriptor 4 or a later one is missing, `listenFds` returns one of Bun's own.
 *
 * @returns The descriptors in order, from 3 on. The list is empty if nothing was passed to this
 *   process.
 * @throws {ActivationError} (78) if a variable is malformed, if there are not as many names as
 *   descriptors, or if a descriptor is not open; (71) if libc cannot be called.
 *
 * @example
 * ```ts
 * for (const { fd, name } of listenFds()) console.log(name, describe(fd));
 * ```
 */
export function listenFds(): PassedDescriptor[] {
  const passed = takePassed();
  return "reason" in passed ? [] : inherit(passed);
}

/**
 * Like {@link listenFds}, but throws if nothing was passed.
 *
 * @returns The descriptors in order: at least one.
 * @throws {ActivationError} as {@link listenFds} does, and (78) if nothing was passed. The message has
 *   the reason.
 */
export function requireListenFds(): [PassedDescriptor, ...PassedDescriptor[]] {
  return inherit(requirePassed("socket"));
}

/**
 * Returns the one descriptor that was passed: listening or not, of any name. If none was passed, but
 * standard input is a listening socket or a bound datagram socket (`StandardInput=socket` with
 * `Accept=no`, or `wait` in inetd(8)), it returns 0. Like {@link listenFds}, it removes the `LISTEN_*`
 * variables from `process.env`, and makes a passed descriptor close-on-exec.
 *
 * Limitation: without FFI it does not look at standard input.
 *
 * @returns The number of the descriptor. It is undefined if nothing was passed to this process, for
 *   example without systemd, at a second call, and in a Worker.
 * @throws {ActivationError} as {@link listenFds} does, and (78) if several were passed.
 */
export function passedFd(): number | undefined {
  const passed = listenFds();
  if (passed.length > 1)
    throw misconfigured(
      `LISTEN_FDS is ${passed.length}, but passedFd takes one descriptor: keep only one Listen...= line in the socket units, or use listenFds`,
    );
  return passed[0]?.fd ?? stdinFd();
}

/** Returns standard input if systemd passed it and nothing else: once. */
function stdinFd(): 0 | undefined {
  if (returnedStdin || kept.found !== undefined || !Bun.isMainThread) return undefined;
  const it = stdinSocket();
  if (it === undefined || it.connected || !(it.listening || it.type === "datagram"))
    return undefined;
  returnedStdin = true;
  return 0;
}

/**
 * Returns the one connection that systemd accepted and passed (`Accept=yes`), like sd_listen_fds(3).
 * It removes the `LISTEN_*` variables from `process.env`. It needs no FFI, except to explain an error.
 *
 * Limitation: it does not look at the descriptor. {@link adoptConnection} checks that it is a
 * connection.
 *
 * @returns The number of the descriptor, for {@link adoptConnection}.
 * @throws {ActivationError} (78) if nothing was passed, if more than one descriptor was passed, or if
 *   a variable is malformed.
 */
export function acceptedFd(): number {
  const { count } = requirePassed("connection");
  if (count !== 1)
    throw misconfigured(
      `LISTEN_FDS is ${count}, but the program takes one connection: set Accept=yes in the socket unit`,
    );
  return LISTEN_FDS_START;
}

/**
 * Reads the four variables and removes them, whatever the outcome. It returns what was passed, or why
 * nothing was. It looks at no descriptor.
 *
 * @throws {ActivationError} (78) if a variable is malformed.
 */
export function takePassed(): Passed | NotPassed {
  const passed = readPassed();
  kept.absence = "reason" in passed ? passed : undefined;
  return passed;
}

function readPassed(): Passed | NotPassed {
  const pid = takeVariable("LISTEN_PID");
  const pidfd = takeVariable("LISTEN_PIDFDID");
  const fds = takeVariable("LISTEN_FDS");
  const names = takeVariable("LISTEN_FDNAMES");

  if (!Bun.isMainThread)
    return { reason: "this is a Worker", remedy: "call this function in the main thread" };
  if (pid === undefined) {
    // An earlier call removed the variables.
    if (kept.found === undefined) return kept.absence ?? { reason: "LISTEN_PID is not set" };
    if (isHot() && !kept.isReserved) return { ...kept.found, again: true };
    const remedy =
      "keep the result of that call; with the preload socket-service/register, make no such call";
    return { reason: "an earlier call returned it", remedy };
  }
  if (!isOwnPid("LISTEN_PID", pid)) {
    const reason = `LISTEN_PID is ${pid} and this is process ${process.pid}`;
    return { reason, remedy: warnIfWrapped(Number(pid)) ?? ITSELF };
  }

  if (pidfd !== undefined) {
    // Process ids are reused, pidfd ids are not. Not every kernel knows them.
    const forId = parseDecimal("LISTEN_PIDFDID", pidfd, "a pidfd id");
    const ownId = pidfdId();
    if (ownId !== undefined && forId !== ownId)
      return {
        reason: `LISTEN_PIDFDID is ${pidfd}, and that of this process is ${ownId}`,
        remedy: ITSELF,
      };
  }

  if (fds === undefined) return { reason: "LISTEN_FDS is not set", remedy: LEAVE };
  // The kernel allows a process no more descriptors, unless somebody raised fs.nr_open.
  const count = parseDecimal("LISTEN_FDS", fds, "a count of descriptors", 1 << 20);
  const list = names?.split(":");
  if (names !== undefined && list?.length !== count)
    throw misconfigured(
      `LISTEN_FDNAMES ${quote(names)} holds ${list?.length} name(s), but LISTEN_FDS is ${count}: ${LEAVE}`,
    );
  for (const name of list ?? [])
    if (!isName(name))
      throw misconfigured(`LISTEN_FDNAMES holds ${quote(name)}, which is not a name: ${LEAVE}`);
  return (kept.found = { count, names: list });
}

function requirePassed(needed: Needed): Passed {
  const passed = takePassed();
  if ("reason" in passed) throw notPassed(passed, needed);
  return passed;
}

/** Has later calls return nothing, under `bun --hot` either: the preload gives the sockets to Bun's functions. */
export function reservePassed(): void {
  kept.isReserved = true;
}

/** @throws {ActivationError} (78) if the last call found nothing, saying why. */
export function throwIfNothingPassed(): void {
  if (kept.absence !== undefined) throw notPassed(kept.absence, "socket");
}

function inherit({ count, names, again }: Passed): [PassedDescriptor, ...PassedDescriptor[]] {
  const descriptor = (index: number): PassedDescriptor => {
    const fd = LISTEN_FDS_START + index;
    const closes = closesOnExec(fd);
    // A descriptor that came through exec has no close-on-exec: if 3 has it, Bun opened it. From 4 up the
    // flag says nothing, because Bun sets it on all that it inherits there.
    if (closes === undefined || (closes && fd === LISTEN_FDS_START && again !== true))
      throw misconfigured(
        `descriptor ${fd} is not open, though LISTEN_FDS is ${count}: ${
          process.execArgv.includes("--watch")
            ? "use bun --hot, because bun --watch closes the passed descriptors at each edit"
            : "start the program directly in ExecStart=, because a program in between closes the passed descriptors"
        }`,
      );
    setCloseOnExec(fd);
    return { fd, name: names?.[index] ?? "unknown" };
  };
  const descriptors: [PassedDescriptor, ...PassedDescriptor[]] = [descriptor(0)];
  for (let index = 1; index < count; index++) descriptors.push(descriptor(index));
  return descriptors;
}
