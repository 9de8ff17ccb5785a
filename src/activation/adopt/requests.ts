/**
 * How long a client may take for its first request, or for more of one, in milliseconds. If all
 * processors are busy, a client may not run for some hundred milliseconds.
 */
export const PATIENCE = 500;

/** The requests that came since a drain began. */
export class Requests {
  readonly #open = new Set<() => boolean>();
  /** Requests that a handler has answered. Bun may still send the response. */
  readonly #sending = new Set<() => boolean>();
  /** Whether requests whose handler ends are noted for `sending`. */
  notesSending = false;
  #isCounting = true;
  #lastEarly = -Infinity;
  /** How many were answered before their body had come. */
  early = 0;

  /**
   * Notes a request, and returns a function to call at the end of its handler. `isCounted` tells whether
   * Bun has it in `pendingRequests`, and `isSending` whether Bun still sends the response.
   */
  begin(isCounted: () => boolean, isSending?: () => boolean): () => void {
    if (this.#isCounting) this.#open.add(isCounted);
    return () => {
      const wasOpen = this.#open.delete(isCounted);
      if (isSending && wasOpen && this.notesSending) this.#sending.add(isSending);
    };
  }

  /** Calls a function without counting the requests that it begins: Bun does not count those of `server.fetch`. */
  uncounted<T>(make: () => T): T {
    this.#isCounting = false;
    try {
      return make();
    } finally {
      this.#isCounting = true;
    }
  }

  /** How many of those that Bun counts have no answer yet. */
  get open(): number {
    let count = 0;
    for (const isCounted of this.#open) if (isCounted()) count++;
    return count;
  }

  /** How many have an answer that Bun still sends. */
  get sending(): number {
    for (const isSending of this.#sending) if (!isSending()) this.#sending.delete(isSending);
    return this.#sending.size;
  }

  /** Notes that a request was answered before its body had come. */
  noteEarly(): void {
    this.early++;
    this.#lastEarly = performance.now();
  }

  /** Whether such a body may still come. */
  get mayHaveMore(): boolean {
    return performance.now() < this.#lastEarly + PATIENCE;
  }
}
