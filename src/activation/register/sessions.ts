import type { EventEmitter } from "node:events";

import { PATIENCE } from "../adopt/requests.ts";

/** A session of `node:http2`. */
interface Session extends EventEmitter {
  /** Sends GOAWAY. Requests under way are answered. */
  close(): void;
}

/** How long their answers may take, and how often to look, in milliseconds. */
const TIMEOUT = 5000;
const LOOK = 5;

/** The open sessions of `node:http2`: each one is told to end before the program does. */
export class Sessions {
  readonly #open = new Map<Session, { hasAsked: boolean }>();
  #areClosing = false;

  /** Notes the sessions of a server, each one once, even if the server listens several times. */
  watch(server: EventEmitter): void {
    server.off("session", this.#note).on("session", this.#note);
  }

  readonly #note = (session: Session): void => {
    const noted = { hasAsked: false };
    this.#open.set(session, noted);
    session.once("stream", () => {
      noted.hasAsked = true;
      if (this.#areClosing) session.close();
    });
    session.once("close", () => this.#open.delete(session));
    if (this.#areClosing) closeLate(session);
  };

  /**
   * Ends the sessions, and waits for the answers under way. One that has asked nothing yet has a moment to
   * do so.
   *
   * @param connections Returns how many connections are open: one with no session may be in its TLS
   *   handshake.
   */
  async close(connections: () => number): Promise<void> {
    this.#areClosing = true;
    for (const [session, { hasAsked }] of this.#open)
      if (hasAsked) session.close();
      else closeLate(session);
    const begun = performance.now();
    for (let waited = 0; waited < TIMEOUT; waited = performance.now() - begun) {
      const mayBegin = waited < PATIENCE && connections() > this.#open.size;
      if (this.#open.size === 0 && !mayBegin) return;
      await Bun.sleep(LOOK);
    }
  }
}

function closeLate(session: Session): void {
  setTimeout(() => session.close(), PATIENCE).unref();
}
