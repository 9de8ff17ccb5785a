import type { Socket, SocketHandler } from "bun";

/** How long a connection may stay open after the greeting, in milliseconds. */
const DEADLINE = 5000;

/** Milliseconds since the start, not by `performance.now()`: see Start. */
const now = () => Bun.nanoseconds() / 1e6;

/**
 * All three services treat a connection alike. They send the greeting and a FIN, and drop what the
 * client sends until its end of file, or until the deadline. Closing at once would reset a client that
 * has sent anything.
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
      // If the client is gone this fails, and `close` is called next.
      socket.write(this.greeting);
      socket.shutdown();
      if (!this.#sweeping) this.#sweepIn(DEADLINE);
      this.on.opened?.();
    },
    // Without this handler Bun does not read, and would not close at the client's end of file.
    data() {},
    close: (socket) => {
      this.#open.delete(socket);
      if (this.#open.size === 0) this.on.idle?.();
    },
  };

  /** One timer for all connections, which fires when the oldest one is due. */
  #sweepIn(milliseconds: number): void {
    this.#sweeping = true;
    setTimeout(() => {
      this.#sweeping = false;
      const due = now() - DEADLINE;
      for (const [socket, greeted] of this.#open) {
        if (greeted > due) return this.#sweepIn(greeted - due);
        socket.terminate();
      }
      // This takes 3 ms. Bun itself keeps the memory of a flood for ten seconds and more.
      Bun.gc(true);
    }, milliseconds).unref();
  }
}
