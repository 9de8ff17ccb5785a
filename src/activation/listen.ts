import type { SocketListener, SocketOptions, TLSOptions } from "bun";

import { describe, isListeningStream, phrase } from "./describe.ts";
import { misconfigured } from "./error.ts";
import { adopt, substitute, unexpectedRuntime } from "./event-loop.ts";
import * as libc from "./libc.ts";
import { MaxConnections } from "./max-connections.ts";
import { keepNotifySocket } from "./notify.ts";

/** Where a service of one's own is reached from this machine only. */
export const LOOPBACK = "127.0.0.1";

/** Where to listen when no socket was passed: an address of one's own. */
export type Address =
  | {
      readonly port: number;
      /** Default: `127.0.0.1`, which is reached from this machine only. */
      readonly hostname?: string;
    }
  | { readonly unix: string };

/** What `Bun.listen` takes, but for the address: that comes with the socket. */
export interface ListenOptions<Data> extends SocketOptions<Data> {
  /** As in `Bun.listen`: the certificate and key of a server over TLS. */
  readonly tls?: TLSOptions | boolean;
  /**
   * The most connections open at once, those in a TLS handshake too. At that many it stops
   * accepting, and whoever comes then waits in the socket's queue. Default: as many as there are
   * descriptors. Handlers given to `socket.reload` are not counted, those of `listener.reload` are.
   */
  readonly maxConnections?: number;
}

/**
 * `Bun.listen` on a passed listening socket, which stays as it is: same backlog, no moment at
 * which a client is turned away, and open in systemd when `stop()` closes our copy.
 *
 * `Bun.listen({ fd })` alone calls listen(2) on the socket that systemd shares, and so makes its
 * backlog 511. Here Bun gets a throw-away socket under that number, which then gives way.
 *
 * @param where The number of a listening stream socket over IPv4, IPv6 or AF_UNIX, which becomes
 *   the listener's; or an address, which is bound as `Bun.listen` does it.
 * @throws {ActivationError} (78) when the descriptor is anything else; (71) when a system call
 *   fails, or the event loop of this Bun does not keep its sockets as it should.
 * @throws What `Bun.listen` throws. After any error the descriptor is as it was.
 *
 * @example
 * ```ts
 * listen(passedFd() ?? { port: 4000 }, { socket: { open: (socket) => void socket.end("Hello\n") } });
 * ```
 */
export function listen<Data = undefined>(
  where: number | Address,
  { maxConnections, ...options }: ListenOptions<Data>,
): SocketListener<Data> {
  const bound =
    maxConnections === undefined
      ? undefined
      : new MaxConnections<Data>(maxConnections, options.tls);
  const socket = bound?.counting(options.socket) ?? options.socket;
  if (typeof where !== "number") {
    const listener =
      "unix" in where
        ? Bun.listen({ ...options, socket, unix: where.unix })
        : Bun.listen({
            ...options,
            socket,
            hostname: where.hostname ?? LOOPBACK,
            port: where.port,
          });
    if (bound !== undefined) {
      if (!("fd" in listener && typeof listener.fd === "number"))
        throw unexpectedRuntime("does not tell the descriptor of a listener");
      bound.apply(listener, adopt(listener.fd), libc.duplicate(listener.fd));
    }
    return listener;
  }
  requireListening(where);
  // Before clients have taken all descriptors.
  keepNotifySocket();
  const passed = libc.duplicate(where);
  let listener: SocketListener<Data> | undefined;
  try {
    libc.replaceByPlaceholder(where);
    listener = Bun.listen({ ...options, socket, fd: where });
    const watch = substitute(passed, where);
    if (bound === undefined) libc.close(passed);
    else bound.apply(listener, watch, passed);
    return listener;
  } catch (error) {
    listener?.stop();
    libc.replace(passed, where);
    libc.close(passed);
    throw error;
  }
}

/** @throws {ActivationError} (78) unless `fd` is a stream socket that listens. */
export function requireListening(fd: number): void {
  if (!isListeningStream(fd))
    throw misconfigured(
      `descriptor ${fd} is ${phrase(describe(fd))}, not a listening stream socket: pass one (Accept=no)`,
    );
}
