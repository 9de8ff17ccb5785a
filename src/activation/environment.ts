import { misconfigured, quote } from "./error.ts";

/** Removes a variable from `process.env` and returns it. A Worker, with its copy, gets none. */
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
export function parseDecimal(name: string, value: string, what: string, max = 2 ** 53 - 1): number {
  // Not a regular expression, here and below: see Start.
  const number = Number(value);
  if (String(number) === value && Number.isInteger(number) && number > 0 && number <= max)
    return number;
  throw misconfigured(
    `${name} is ${quote(value)}, which is not ${what}: do not set ${name} yourself, because systemd sets it`,
  );
}

/** @throws {ActivationError} (78) if the value of a variable is no process id. */
export function isOwnPid(name: string, value: string): boolean {
  return parseDecimal(name, value, "a process id", 0x7fffffff) === process.pid;
}

/** Whether this is a `FileDescriptorName=`: at most 255 printable ASCII characters, and no colon. */
export function isName(name: string): boolean {
  for (let at = 0; at < name.length; at++) {
    const code = name.charCodeAt(at);
    if (code < 0x20 || code > 0x7e || code === 0x3a) return false;
  }
  return name.length <= 255;
}

/**
 * Returns whether this machine was booted with systemd, like sd_booted(3). It says nothing about how
 * this process was started.
 *
 * @returns Whether /run/systemd/system is there.
 */
export function booted(): boolean {
  const { existsSync } = process.getBuiltinModule("node:fs");
  return existsSync("/run/systemd/system/");
}
