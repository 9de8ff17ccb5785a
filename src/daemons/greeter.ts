import type { Socket, SocketHandler } from "bun";

/** How long a connection may stay open after the greeting, in milliseconds. */
const DEADLINE = 5000;

/** Milliseconds since the start, not by `performance.now()`: see Start. */
const now = () => Bun.nanoseconds() / 1e6;

/**
 * How all three services treat a connection: the greeting, then FIN, then what the client sends is
 * dropped until its own end of file, or the deadline. To close at once would reset a client that has
 * sent anything.
 */
export class Greeter {
  /** When each open connection was greeted, oldest first. */
  readonly #open = new Map<Socket<undefined>, number>();
  #sweeping = false;
  /** How many connections were accepted. */
  accepted = 0;

  constructor(
    readonly greeting: string,
    readonly on: { readonly opened?: () => unknown; readonly idle?: () => unknown } = {},
  ) {}

  get open(): number {
    return this.#open.size;
  }

  readonly handlers: SocketHandler<undefined> = {
    open: (socket) => {
      this.accepted++;
      this.#open.set(socket, now());
      // If the client is gone this fails, and the close follows.
      socket.write(this.greeting);
      socket.shutdown();
      if (!this.#sweeping) this.#sweepIn(DEADLINE);
      this.on.opened?.();
    },
    // Without it Bun does not read, and never sees the client's end of file, at which it closes.
    data() {},
    close: (socket) => {
      this.#open.delete(socket);
      if (this.#open.size === 0) this.on.idle?.();
    },
  };

  /** One timer for all, which sleeps until the oldest connection is due. */
  #sweepIn(milliseconds: number): void {
    this.#sweeping = true;
    setTimeout(() => {
      this.#sweeping = false;
      const due = now() - DEADLINE;
      for (const [socket, greeted] of this.#open) {
        if (greeted > due) return this.#sweepIn(greeted - due);
        socket.terminate();
      }
      // Takes 3 ms. Bun itself keeps what a flood leaves for ten seconds and more.
      Bun.gc(true);
    }, milliseconds).unref();
  }
}
