/** The requests that came since a drain began. */
export interface Requests {
  /** How many the handlers have. */
  handled: number;
  /** When one was answered last whose body had not come, as performance.now() has it. */
  unfinished: number;
}
