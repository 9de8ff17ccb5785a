import { type ActivationError, ExitStatus } from "../error.ts";
import { LogLevel, logLine } from "./log.ts";

/**
 * Ends a program on an error that nobody has caught. It writes an {@link ActivationError} as one line
 * to stderr, with its level if stderr is the journal, and exits with the `status` of the error. It
 * prints any other value as `console.error` does, and exits with status 1.
 *
 * Limitations: Bun does not give it an error in a promise that nobody awaits: set it as the handler of
 * `unhandledRejection` too. In a Worker, it ends only the Worker. Under `bun --hot` it ends the
 * program as well, except for an error that the evaluation after an edit throws, which Bun prints
 * itself.
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
  if (isActivationError(error)) exit(error.status, error.message);
  console.error(error);
  process.exit(1);
}

/** Writes an error as one line and ends the program. */
export function exit(status: ExitStatus, message: string): never {
  logLine(LogLevel.error, message);
  process.exit(status);
}

/**
 * Recognises the class by its form: under `bun --hot` each evaluation of the program has a class of its
 * own, and the handler of the first one is called first.
 */
function isActivationError(error: unknown): error is ActivationError {
  if (!(error instanceof Error && error.name === "ActivationError" && "status" in error))
    return false;
  return Object.values<unknown>(ExitStatus).includes(error.status);
}
