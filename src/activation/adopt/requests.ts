/** What a drain has to know of the requests that came since it began. */
export interface Requests {
  /** How many the handlers have. */
  handled: number;
  /** When one was answered last whose body had not come, as performance.now() has it. */
  unfinished: number;
}
