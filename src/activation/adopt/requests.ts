/** The requests that came since a drain began. */
export interface Requests {
  /** How many the handlers have. */
  handled: number;
  /** When one was answered last whose body had not come, as performance.now() has it. */
  unfinished: number;
}

/**
 * How long a client may take for its first request, or for more of one, in milliseconds. If all
 * processors are busy, it may not get to run for some hundred.
 */
export const PATIENCE = 500;
