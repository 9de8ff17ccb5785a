import type { FdSocketOptions, TCPSocketListenOptions, UnixSocketOptions } from "bun";

import { derive, type Listener, NOWHERE, overlay, runtime } from "../bun.ts";
import * as libc from "../linux/libc.ts";
import { keepNotifySocket } from "../notify/notify.ts";
import { describe, formatAddress } from "../receive/describe.ts";
import { reportedPath } from "./address.ts";
import { ConnectionLimit } from "./connection-limit.ts";
import { substitute, watchListener, type Watched } from "./event-loop.ts";
import { descriptorForBun, release, supersede, take } from "./handover.ts";
import { keepListening, requireListening } from "./listening.ts";

/**
 * The options of `Bun.listen`, and a descriptor. If it is given, it is used instead of the address.
 */
export type ListenOptions<Data = undefined> = (
  | ((TCPSocketListenOptions<Data> | UnixSocketOptions<Data>) & { fd?: number | undefined })
  | FdSocketOptions<Data>
) & {
  /**
   * The most connections that are open at once, also those in a TLS handshake. Further clients wait in
   * the socket's queue. With a limit, timers have their turn after every 256 connections, however fast
   * clients come. Default: `Infinity`, so the descriptors are the limit. Do not use `socket.reload` with
   * it: then the count is wrong, and clients can wait for ever. Under `bun --hot`, the connections of the
   * code before an edit do not count.
   */
  readonly maxConnections?: number;
};

/**
 * Runs `Bun.listen` on a passed socket: `fd` is the number of a listening stream socket over IPv4,
 * IPv6 or AF_UNIX. The length of the queue does not change (`Bun.listen({ fd })` alone would set it to
 * 511), and no client is turned away. `stop()` closes the socket of this process, systemd keeps its
 * own. /dev/null replaces a descriptor from 0 to 2. Without `fd` it is `Bun.listen`, unchanged.
 *
 * Limitation: `listen` makes the socket non-blocking for every process that shares it. It stays so
 * after `stop()`. systemd sets the flag anew (`NonBlocking=`) for each process that it starts.
 *
 * @param options As for `Bun.listen`, and `maxConnections`. If `fd` is given, `hostname`, `port` and
 *   `unix` are ignored.
 * @returns The listener of Bun, with the address of the passed socket.
 * @throws {ActivationError} (78) if the descriptor is not such a socket; (71) if a system call fails,
 *   or this Bun does not keep its sockets as expected.
 * @throws {TypeError} if `maxConnections` is not a number.
 * @throws {RangeError} if `maxConnections` is a number, but not a whole one from 1 on.
 * @throws What `Bun.listen` throws. After any error the descriptor is as it was.
 *
 * @example
 * ```ts
 * const socket = { open: (socket) => void socket.end("Hello\n"), data() {} };
 * listen({ fd: passedFd(), hostname: "127.0.0.1", port: 4000, socket });
 * ```
 */
export function listen<Data = undefined>(options: ListenOptions<Data>): Listener<Data> {
  const { fd: passed, maxConnections = Infinity, tls } = options;
  if (passed === undefined && maxConnections === Infinity) return runtime.listen(options);
  const limit = new ConnectionLimit<Data>(maxConnections, tls);
  const counted = limit.counted(options);
  if (passed === undefined) {
    const listener = runtime.listen(counted);
    try {
      limit.apply(listener, watchListener(listener.fd), libc.duplicate(listener.fd));
    } catch (error) {
      listener.stop(true);
      throw error;
    }
    return listener;
  }
  requireListening(passed);
  // Now, while a descriptor is free: clients may take all.
  keepNotifySocket();
  return listenOn(passed, counted, limit);
}

/** Starts a listener on a placeholder, and puts the passed socket in its place: see event-loop.ts. */
function listenOn<Data>(
  passed: number,
  options: ListenOptions<Data>,
  limit: ConnectionLimit<Data>,
): Listener<Data> {
  // Bun gets this number. At first, the placeholder is on it.
  const fd = descriptorForBun(passed);
  const socket = libc.duplicate(fd);
  let listener: ReturnType<typeof runtime.listen<Data>> | undefined;
  let watch: Watched;
  try {
    libc.replaceByPlaceholder(fd);
    listener = runtime.listen(derive(options, { ...NOWHERE, fd }));
    watch = substitute(socket, fd);
    keepListening(listener, { watch, onUse: limit.onUse });
    limit.apply(listener, watch, socket);
  } catch (error) {
    listener?.stop();
    libc.replace(socket, fd);
    libc.close(socket);
    if (fd !== passed) libc.close(fd);
    throw error;
  }
  if (fd === passed) take(passed);
  else release(passed);
  supersede(passed, () => listener.stop(), watch);
  // Bun knows it if it is over IP, and `describe` takes longer: see Start.
  const address: { address?: string; port?: number } = {};
  listener.getsockname(address);
  const { address: hostname, port } = address;
  // It leaves out the interface of a link-local address.
  if (port && !hostname?.startsWith("fe80:")) return overlay(listener, { hostname, port });
  const passedTo = describe(fd);
  if ("port" in passedTo) return overlay(listener, { hostname: passedTo.address, port });
  return overlay(listener, { unix: reportedPath(formatAddress(passedTo)) });
}
