import { ActivationError, type ExitStatus } from "../error.ts";
import { LogLevel, logLine } from "./log.ts";

/**
 * Ends a program on an error that nobody has caught. It writes an {@link ActivationError} as one line
 * to stderr, with its level if stderr is the journal, and exits with the `status` of the error. It
 * prints any other value as `console.error` does, and exits with status 1.
 *
 * Limitations: Bun does not give it an error in a promise that nobody awaits: set it as the handler of
 * `unhandledRejection` too. In a Worker, it ends only the Worker. Under `bun --hot` it ends the
 * program too. An error in the evaluation after an edit does not reach it: Bun prints that.
 *
 * @param error The thrown value.
 * @returns Never.
 *
 * @example
 * ```ts
 * process.on("uncaughtException", exitOnError);
 * const [{ fd }] = requireListenFds();
 * ```
 */
export function exitOnError(error: unknown): never {
  if (error instanceof ActivationError) exit(error.status, error.message);
  console.error(error);
  process.exit(1);
}

/** Writes an error as one line and ends the program. */
export function exit(status: ExitStatus, message: string): never {
  logLine(LogLevel.error, message);
  process.exit(status);
}
