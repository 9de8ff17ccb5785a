import { misconfigured, quote } from "./error.ts";

/** Removes a variable from `process.env` and returns it. A Worker has a copy of it, and gets nothing. */
export function takeVariable(name: string): string | undefined {
  if (!Bun.isMainThread) return undefined;
  const value = process.env[name];
  if (value !== undefined) delete process.env[name];
  return value;
}

/**
 * Returns a decimal number from 1 to `max`, without sign, space or leading zero, as systemd writes it.
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

/**
 * Reports whether a variable holds the id of this process.
 *
 * @throws {ActivationError} (78) if it holds no process id.
 */
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

/** Returns the text of a file of /proc; empty if it cannot be read. Not for a start: it loads node:fs. */
export function procText(path: string): string {
  const { readFileSync } = process.getBuiltinModule("node:fs");
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
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
