import { misconfigured, quote } from "./error.ts";
import { pidfdId } from "./libc.ts";
import { warnIfWrapped } from "./wrapper.ts";

/** What the environment says was passed, as a count and names, or why nothing was. */
export type Passed =
  | { readonly count: number; readonly names: readonly string[] | undefined }
  | { readonly count: 0; readonly reason: string };

const REMEDY = "start it from a socket unit or with systemd-socket-activate";

/**
 * Removes a variable from `process.env` and returns what it was. A Worker gets a copy of the
 * environment, but what stands there is for the process, of which the main thread alone speaks.
 */
export function takeVariable(name: string): string | undefined {
  if (!Bun.isMainThread) return undefined;
  const value = process.env[name];
  if (value !== undefined) delete process.env[name];
  return value;
}

/**
 * A decimal number from 1 to `max`, without sign, space or leading zero: what systemd writes.
 *
 * @throws {ActivationError} (78) for anything else, naming the variable and `what` it should hold.
 */
export function parseDecimal(
  name: string,
  value: string,
  what: string,
  max = Number.MAX_SAFE_INTEGER,
): number {
  const number = Number(value);
  if (String(number) === value && Number.isInteger(number) && number > 0 && number <= max)
    return number;
  throw misconfigured(
    `${name} is ${quote(value)}, which is not ${what}: leave the variable to the service manager`,
  );
}

/** @throws {ActivationError} (78) when the value of a variable is no process id. */
export function isOwnPid(name: string, value: string): boolean {
  return parseDecimal(name, value, "a process id", 0x7fffffff) === process.pid;
}

/**
 * Reads `LISTEN_PID`, `LISTEN_PIDFDID`, `LISTEN_FDS` and `LISTEN_FDNAMES`, and takes all four out
 * of the environment whatever the outcome. Looks at no descriptor, so that it needs no FFI, but
 * for `LISTEN_PIDFDID`, which is checked where the kernel and the runtime can tell our own.
 *
 * @throws {ActivationError} (78) when a variable is malformed.
 */
export function takePassed(): Passed {
  const pid = takeVariable("LISTEN_PID");
  const pidfd = takeVariable("LISTEN_PIDFDID");
  const fds = takeVariable("LISTEN_FDS");
  const names = takeVariable("LISTEN_FDNAMES");

  if (!Bun.isMainThread)
    return { count: 0, reason: "this is a Worker, and only the main thread is asked" };
  if (pid === undefined) return { count: 0, reason: "LISTEN_PID is not set" };
  if (!isOwnPid("LISTEN_PID", pid)) {
    warnIfWrapped(Number(pid));
    return { count: 0, reason: `LISTEN_PID is ${pid} and this is process ${process.pid}` };
  }

  if (pidfd !== undefined) {
    // A process id comes round again after a while; the id of a pidfd never does.
    const forId = parseDecimal("LISTEN_PIDFDID", pidfd, "a pidfd id");
    const ownId = pidfdId();
    if (ownId !== undefined && forId !== ownId)
      return { count: 0, reason: `LISTEN_PIDFDID is ${pidfd} and this is process ${ownId}` };
  }

  if (fds === undefined) return { count: 0, reason: "LISTEN_FDS is not set" };
  // 2^20 is the most that a process can have open (fs.nr_open) unless somebody raised it.
  const count = parseDecimal("LISTEN_FDS", fds, "a count of descriptors", 1 << 20);
  if (names === undefined) return { count, names };

  const list = names.split(":");
  if (list.length !== count)
    throw misconfigured(
      `LISTEN_FDNAMES ${quote(names)} holds ${list.length} name(s) where LISTEN_FDS is ${count}: ${REMEDY}`,
    );
  for (const name of list)
    if (!isName(name))
      throw misconfigured(`LISTEN_FDNAMES holds ${quote(name)}, which is not a name: ${REMEDY}`);
  return { count, names: list };
}

/** Whether systemd passes a descriptor under this name: up to 255 printable ASCII characters, no colon. */
export function isName(name: string): boolean {
  for (let at = 0; at < name.length; at++) {
    const code = name.charCodeAt(at);
    if (code < 0x20 || code > 0x7e || code === 0x3a) return false;
  }
  return name.length <= 255;
}

/** The error for a service that cannot do without a socket, saying why there is none. */
export function nothingPassed(reason: string): Error {
  return misconfigured(`no socket was passed, ${reason}: ${REMEDY}`);
}
