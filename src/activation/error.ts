/** Exit statuses that the errors of this module map to, from sysexits.h(3head). */
export const ExitStatus = {
  /** An unknown option, or a bad value for one (EX_USAGE). */
  usage: 64,
  /** A system call failed (EX_OSERR). */
  systemCall: 71,
  /** A passed descriptor, or a variable, is missing or wrong (EX_CONFIG). */
  configuration: 78,
} as const;

export type ExitStatus = (typeof ExitStatus)[keyof typeof ExitStatus];

/**
 * The error of this module for everything but a wrong argument. Its message is one line, with the cause
 * and the remedy.
 */
export class ActivationError extends Error {
  override readonly name = "ActivationError";

  /** The exit status for a service that cannot go on. */
  readonly status: ExitStatus;
  /** The symbolic errno of a failed system call, such as `ENOENT`. */
  readonly code: string | undefined;

  constructor(status: ExitStatus, message: string, code?: string) {
    super(message);
    this.status = status;
    this.code = code;
  }

  /** By its form: the preload, and each evaluation under `bun --hot`, have a class of their own. */
  static override [Symbol.hasInstance](it: unknown): it is ActivationError {
    if (this !== ActivationError) return Function.prototype[Symbol.hasInstance].call(this, it);
    if (!(it instanceof Error && it.name === "ActivationError" && "status" in it)) return false;
    return Object.values<unknown>(ExitStatus).includes(it.status);
  }
}

/** Returns the error for something that is wrong with what was passed (78). */
export function misconfigured(message: string): ActivationError {
  return new ActivationError(ExitStatus.configuration, message);
}

/** Returns the error for an argument that is a number out of range, or no number. */
export function wrongNumber(name: string, value: unknown, wanted: string): Error {
  const Mistake = typeof value === "number" ? RangeError : TypeError;
  const isJson = typeof value === "string" || typeof value === "object";
  const given = isJson ? JSON.stringify(value) : String(value);
  return new Mistake(`${name} is ${given}: give ${wanted}`);
}

/** @throws {TypeError} unless `fd` is a number. */
export function requireNumber(fd: unknown): void {
  if (typeof fd !== "number") throw wrongNumber("fd", fd, "the number of a descriptor");
}

/** The message of a thrown value, which may not be an `Error`. */
export function messageOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}

/** The symbolic errno of a thrown value; empty if it has none. */
export function codeOf(thrown: unknown): string {
  return thrown instanceof Error && "code" in thrown ? String(thrown.code) : "";
}

/** Quotes a value for a message, cut at 80 characters. */
export function quote(value: string): string {
  return printableJson(value.length > 80 ? `${value.slice(0, 77)}...` : value);
}

/**
 * The characters that a terminal or a reader of lines acts on: C0 and C1 controls (U+009B begins an
 * escape sequence), separators of lines, and the ones that reverse the text after them.
 */
const ACTING = "\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069";

/**
 * Returns text that is safe to show in a terminal, on one line.
 *
 * @param text Text from elsewhere, such as the name of a socket.
 * @param by The replacement for each run of characters that act on a terminal or end a line.
 * @returns The text with those characters replaced.
 */
export function printable(text: string, by: string): string {
  return text.replaceAll(RegExp(`[${ACTING}]+`, "g"), () => by);
}

/**
 * Returns text as JSON, with every character escaped that acts on a terminal. JSON itself escapes only
 * C0.
 */
export function printableJson(text: string): string {
  return JSON.stringify(text).replaceAll(
    RegExp(`[${ACTING}]`, "g"),
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
