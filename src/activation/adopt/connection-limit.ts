import type { SocketHandler, SocketListener, SocketOptions } from "bun";

import { derive, isHandler, overlay } from "../bun.ts";
import { wrongNumber } from "../error.ts";
import * as libc from "../linux/libc.ts";
import { pause, resume, type Watched } from "./event-loop.ts";

/**
 * How many connections are accepted before other work has its turn. Bun accepts until the queue is
 * empty: clients that come as fast as that would keep timers and the watchdog waiting.
 */
const TURN = 256;

/** Counts the connections of a listener, and has it accept while fewer than `most` are open. */
export class ConnectionLimit<Data> {
  #open = 0;
  #accepted = 0;
  /** Whether other work has its turn, so that nothing is accepted. */
  #isTurn = false;
  /** How the listener is watched, and a second descriptor of its socket, to accept again after a pause. */
  #listening: { readonly watch: Watched; readonly socket: number } | undefined;
  /** Called when a connection is opened or closed. */
  readonly onUse = new Set<() => void>();

  /** @throws {TypeError | RangeError} unless `most` is a whole number from 1 on, or `Infinity`. */
  constructor(
    readonly most: number,
    readonly tls: unknown,
  ) {
    if (!(Number.isInteger(most) && most > 0) && most !== Infinity)
      throw wrongNumber("maxConnections", most, "a whole number from 1 on");
  }

  /** Returns the same options, but the handlers count. For wrong ones, Bun throws the error. */
  counted<Options extends { readonly socket: SocketHandler<Data> }>(options: Options): Options {
    const handlers: unknown = Object(options).socket;
    if (typeof handlers !== "object" || handlers === null) return options;
    return derive(options, { socket: this.#counting(handlers) });
  }

  #counting(handlers: SocketHandler<Data>): SocketHandler<Data> {
    const { open, close, handshake } = handlers;
    if (!isHandler(open) || !isHandler(close)) return handlers;
    // Over TLS with no such handler, Bun calls `open` only after the handshake.
    const isHandshakeLess = Boolean(this.tls) && handshake === undefined;
    const counting: SocketHandler<Data> = {
      open: (socket) => {
        this.#open++;
        if (++this.#accepted % TURN === 0) this.#letOthers();
        else if (this.#open === this.most) this.#pause();
        for (const used of this.onUse) used();
        return isHandshakeLess && isTLS(socket) ? undefined : open?.call(socket, socket);
      },
      close: (socket, error) => {
        if (this.#open-- === this.most && !this.#isTurn) this.#resume();
        for (const used of this.onUse) used();
        return close?.call(socket, socket, error);
      },
    };
    if (isHandshakeLess) counting.handshake = (socket) => open?.call(socket, socket);
    return derive(handlers, counting);
  }

  /** Accepts nothing until the event loop has come round. */
  #letOthers(): void {
    this.#pause();
    this.#isTurn = true;
    setImmediate(() => {
      this.#isTurn = false;
      if (this.#open < this.most) this.#resume();
    });
  }

  #pause(): void {
    if (this.#listening) pause(this.#listening.watch);
  }

  #resume(): void {
    if (this.#listening) resume(this.#listening.watch, this.#listening.socket);
  }

  /** Begins to limit a listener. `socket` is a descriptor of its socket, which this closes in the end. */
  apply(listener: SocketListener<Data>, watch: Watched, socket: number): void {
    if (this.most === Infinity) libc.close(socket);
    else this.#listening = { watch, socket };
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
        reload.call(listener, this.counted(options)),
    });
  }
}

/** Whether a connection uses TLS: with `tls: {}`, for example, Bun does not. */
function isTLS(socket: object): boolean {
  return Object.prototype.toString.call(socket) === "[object TLSSocket]";
}
