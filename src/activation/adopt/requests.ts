/** The requests that came since a drain began. */
export interface Requests {
  /** How many the handlers are answering. */
  handled: number;
  /** When a request was last answered before its body had come, as performance.now() counts. */
  unfinished: number;
}

/**
 * How long a client may take for its first request, or for more of one, in milliseconds. If all
 * processors are busy, a client may not run for some hundred milliseconds.
 */
export const PATIENCE = 500;
