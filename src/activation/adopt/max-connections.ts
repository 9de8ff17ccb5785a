import type { SocketHandler, SocketListener, SocketOptions } from "bun";

import { pause, resume } from "./event-loop.ts";
import * as libc from "../linux/libc.ts";
import { derive } from "../bun.ts";

/**
 * Counts the connections of a listener, which accepts while there are fewer than `most`.
 *
 * @throws {RangeError} unless `most` is a whole number from 1.
 */
export function bound<Data>(most: number, tls: unknown) {
  if (!(Number.isInteger(most) && most > 0))
    throw new RangeError(`maxConnections is ${most}: give a whole number from 1`);
  let open = 0;
  let listening: { readonly watch: libc.Watch; readonly socket: number } | undefined;

  /** The handlers, which count. */
  function counting(handlers: SocketHandler<Data>): SocketHandler<Data> {
    // Over TLS with no such handler, Bun calls `open` only after the handshake.
    const afterHandshake = Boolean(tls) && handlers.handshake === undefined;
    const called: SocketHandler<Data> = {
      open(socket) {
        if (++open === most && listening) pause(listening.watch);
        return afterHandshake ? undefined : handlers.open?.call(socket, socket);
      },
      close(socket, error) {
        if (open-- === most && listening) resume(listening.watch, listening.socket);
        return handlers.close?.call(socket, socket, error);
      },
    };
    if (afterHandshake) called.handshake = (socket) => void handlers.open?.call(socket, socket);
    return derive(handlers, called);
  }

  /** @param socket A descriptor of the listening socket, kept while that is not watched. */
  function apply(listener: SocketListener<Data>, watch: libc.Watch, socket: number): void {
    listening = { watch, socket };
    const { stop, reload } = listener;
    const define = (name: string | symbol, value: unknown) =>
      Object.defineProperty(listener, name, { value, configurable: true });
    const end = (closeActiveConnections?: boolean) => {
      if (listening) libc.close(listening.socket);
      listening = undefined;
      stop.call(listener, closeActiveConnections);
    };
    define("stop", end);
    define(Symbol.dispose, () => end());
    define("reload", (options: Pick<SocketOptions<Data>, "socket">) =>
      reload.call(listener, derive(options, { socket: counting(options.socket) })),
    );
  }
  return { counting, apply };
}
