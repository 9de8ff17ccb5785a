import type { SocketHandler, SocketListener, SocketOptions } from "bun";

import { derive, overlay } from "../bun.ts";
import { wrongNumber } from "../error.ts";
import * as libc from "../linux/libc.ts";
import { pause, resume } from "./event-loop.ts";

/** Counts the connections of a listener, and has it accept while fewer than `most` are open. */
export class ConnectionLimit<Data> {
  #open = 0;
  /** How the listener is watched, and a second descriptor of its socket, to accept again after a pause. */
  #listening: { readonly watch: libc.Watch; readonly socket: number } | undefined;

  /** @throws {TypeError | RangeError} unless `most` is a whole number from 1 on. */
  constructor(
    readonly most: number,
    readonly tls: unknown,
  ) {
    if (!(Number.isInteger(most) && most > 0))
      throw wrongNumber("maxConnections", most, "a whole number from 1 on");
  }

  /** Returns handlers that count, and call the given ones. */
  counted(handlers: SocketHandler<Data>): SocketHandler<Data> {
    // Over TLS with no such handler, Bun calls `open` only after the handshake.
    const isHandshakeLess = Boolean(this.tls) && handlers.handshake === undefined;
    const counting: SocketHandler<Data> = {
      open: (socket) => {
        if (++this.#open === this.most && this.#listening) pause(this.#listening.watch);
        return isHandshakeLess ? undefined : handlers.open?.call(socket, socket);
      },
      close: (socket, error) => {
        if (this.#open-- === this.most && this.#listening)
          resume(this.#listening.watch, this.#listening.socket);
        return handlers.close?.call(socket, socket, error);
      },
    };
    if (isHandshakeLess) counting.handshake = (socket) => void handlers.open?.call(socket, socket);
    return derive(handlers, counting);
  }

  /** Begins to limit a listener. `socket` is a descriptor of its socket, and is closed when it stops. */
  apply(listener: SocketListener<Data>, watch: libc.Watch, socket: number): void {
    this.#listening = { watch, socket };
    const { stop, reload } = listener;
    const end = (closeActiveConnections?: boolean) => {
      if (this.#listening) libc.close(this.#listening.socket);
      this.#listening = undefined;
      stop.call(listener, closeActiveConnections);
    };
    overlay(listener, {
      stop: end,
      [Symbol.dispose]: () => end(),
      reload: (options: Pick<SocketOptions<Data>, "socket">) =>
        reload.call(listener, derive(options, { socket: this.counted(options.socket) })),
    });
  }
}
