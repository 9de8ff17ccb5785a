import type { FdSocketOptions, TCPSocketListenOptions, UnixSocketOptions } from "bun";

import { describe, endpoint, isListeningStream, phrase } from "../receive/describe.ts";
import { misconfigured } from "../error.ts";
import { adopt, substitute } from "./event-loop.ts";
import { disposable, isHot, supersede } from "../hot.ts";
import * as libc from "../linux/libc.ts";
import { bound } from "./max-connections.ts";
import { keepNotifySocket } from "../notify/notify.ts";
import { derive, type Listener, requireBun, runtime } from "../bun.ts";
import { isStandard, release } from "./standard.ts";

/** The options of `Bun.listen`, with a descriptor that wins over the address if there is one. */
export type ListenOptions<Data = undefined> = (
  | ((TCPSocketListenOptions<Data> | UnixSocketOptions<Data>) & { fd?: number | undefined })
  | FdSocketOptions<Data>
) & {
  /**
   * The most connections open at once, those in a TLS handshake too: whoever comes then waits in the
   * socket's queue. Default: as many as there are descriptors. Handlers given to `socket.reload` are
   * not counted, those of `listener.reload` are.
   */
  readonly maxConnections?: number;
};

/**
 * `Bun.listen` with an `fd` that works: the number of a listening stream socket over IPv4, IPv6 or
 * AF_UNIX. The socket keeps its backlog, which `Bun.listen({ fd })` alone would make 511, no client
 * is turned away, and it stays open in systemd when `stop()` closes our copy. /dev/null replaces a
 * descriptor from 0 to 2. With no `fd` it is `Bun.listen`, unchanged.
 *
 * Limitation: the socket is non-blocking from then on, for all who share it, after `stop()` too.
 * systemd sets the flag anew (`NonBlocking=`) for each process that it starts.
 *
 * @param options As for `Bun.listen`. If `fd` is given, `hostname`, `port` and `unix` are ignored.
 * @throws {ActivationError} (78) if the descriptor is anything else; (71) if a system call
 *   fails, or the event loop of this Bun does not keep its sockets as it should.
 * @throws {RangeError} unless `maxConnections` is a whole number from 1.
 * @throws What `Bun.listen` throws. After any error the descriptor is as it was.
 *
 * @example
 * ```ts
 * const socket = { open: (socket) => void socket.end("Hello\n"), data() {} };
 * listen({ fd: passedFd(), hostname: "127.0.0.1", port: 4000, socket });
 * ```
 */
export function listen<Data = undefined>(options: ListenOptions<Data>): Listener<Data> {
  requireBun();
  const { maxConnections, socket, tls } = options;
  const limit = maxConnections === undefined ? undefined : bound<Data>(maxConnections, tls);
  const counted = limit ? derive(options, { socket: limit.counting(socket) }) : options;
  if (options.fd === undefined) {
    const listener = runtime.listen(counted);
    limit?.apply(listener, adopt(listener.fd), libc.duplicate(listener.fd));
    return listener;
  }
  requireListening(options.fd);
  const fd = disposable(options.fd);
  // Bun calls listen(2) on a placeholder, which then gives way.
  const passed = libc.duplicate(fd);
  let listener: ReturnType<typeof runtime.listen<Data>> | undefined;
  try {
    libc.replaceByPlaceholder(fd);
    listener = runtime.listen(derive(counted, { fd }));
    const watch = substitute(passed, fd);
    if (limit) limit.apply(listener, watch, passed);
    else libc.close(passed);
  } catch (error) {
    listener?.stop();
    libc.replace(passed, fd);
    libc.close(passed);
    if (fd !== options.fd) libc.close(fd);
    throw error;
  }
  if (isStandard(options.fd) && !isHot()) release(options.fd);
  supersede(options.fd, () => listener.stop());
  // Bun knows it if it is over IP: `describe` takes 0.2 ms of a cold start.
  const at: { address?: string; port?: number } = {};
  listener.getsockname(at);
  const { address: hostname, port } = at;
  return overlay(listener, port ? { hostname, port } : { unix: endpoint(describe(fd)) });
}

/**
 * Opens the socket for notifications too, before clients have taken all descriptors.
 *
 * @throws {ActivationError} (78) unless `fd` is a stream socket over IP or AF_UNIX that listens.
 */
export function requireListening(fd: number): void {
  if (!isListeningStream(fd))
    throw misconfigured(
      `descriptor ${fd} is ${phrase(describe(fd))}, not a listening stream socket over IP or AF_UNIX: pass one (ListenStream= and Accept=no)`,
    );
  keepNotifySocket();
}

/** Gives an object other properties, as Bun does: by its prototype, and values read-only. */
export function overlay<T extends object>(object: T, properties: object): T {
  const descriptors = Object.getOwnPropertyDescriptors(properties);
  for (const it of Object.values(descriptors)) it.writable = typeof it.value === "function";
  return Object.setPrototypeOf(object, Object.create(Object.getPrototypeOf(object), descriptors));
}
