import { type ActivationError, ExitStatus } from "../error.ts";
import { LogLevel, logLine } from "./log.ts";

/**
 * Ends a program on an error that nobody has caught. An {@link ActivationError} becomes one line on
 * stderr, with its level if that is the journal, and its own exit status. Any other error is printed as
 * Bun prints it, and the status is 1.
 *
 * Limitations: Bun does not hand over an error in a promise that nobody awaits: give this function to
 * `unhandledRejection` too. In a Worker, it ends the Worker. Under `bun --hot` it ends the program as well,
 * except for what the evaluation after an edit throws, which Bun prints itself.
 *
 * @param error The thrown value.
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
