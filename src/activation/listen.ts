import type { SocketListener, SocketOptions, TLSOptions } from "bun";

import { describe, phrase } from "./describe.ts";
import { ActivationError, ExitStatus, misconfigured } from "./error.ts";
import * as libc from "./libc.ts";

/** What `Bun.listen` takes, but for the address: that comes with the socket. */
export interface ListenOptions<Data> extends SocketOptions<Data> {
  /** As in `Bun.listen`: the certificate and key of a server over TLS. */
  readonly tls?: TLSOptions | boolean;
}

/**
 * `Bun.listen` on a passed listening socket, which stays as it is: same backlog, no moment at
 * which a client is turned away, and open in systemd when `stop()` closes our copy.
 *
 * `Bun.listen({ fd })` alone calls listen(2) on the socket that systemd shares, and so makes its
 * backlog 511. Here Bun gets a throw-away socket under that number, which then gives way.
 *
 * @param fd A listening stream socket over IPv4, IPv6 or AF_UNIX.
 * @throws {ActivationError} (78) when `fd` is anything else; (71) when a system call fails, or
 *   the event loop of this Bun does not keep its sockets as it should: then nothing has changed.
 */
export function listen<Data = undefined>(
  fd: number,
  options: ListenOptions<Data>,
): SocketListener<Data> {
  const it = describe(fd);
  if (it.kind !== "socket" || it.type !== "stream" || !it.listening)
    throw misconfigured(
      `descriptor ${fd} is ${phrase(it)}, not a listening stream socket: pass one (Accept=no)`,
    );

  const passed = libc.duplicate(fd);
  try {
    const throwAway = libc.autoboundSocket();
    libc.replace(throwAway, fd);
    libc.close(throwAway);
    const listener = Bun.listen({ ...options, fd });
    try {
      substitute(passed, fd);
    } catch (error) {
      listener.stop();
      libc.replace(passed, fd);
      throw error;
    }
    return listener;
  } finally {
    libc.close(passed);
  }
}

/**
 * Puts the socket `passed` in the place of the listening socket `fd` in Bun's event loop: on the
 * same number, and registered in the same epoll instance for the same events with the same data.
 *
 * @throws {ActivationError} (71) when no epoll instance of this process, or more than one
 *   registration, watches `fd`.
 */
export function substitute(passed: number, fd: number): void {
  const { epoll, events, data } = registration(fd);
  // Bun accepts until it would block.
  libc.setNonBlocking(passed);
  // The last reference to the old socket goes, and its registration with it.
  libc.replace(passed, fd);
  libc.epollAdd(epoll, fd, events, data);
}

function registration(fd: number) {
  const target = new RegExp(`^tfd: +${fd} events: +([0-9a-f]+) data: +([0-9a-f]+) `, "m");
  // Bun's own descriptors are among the first; nothing passes 2^20 (fs.nr_open).
  for (let epoll = 0; epoll < 1024; epoll++) {
    const [, events, data] = target.exec(libc.readProc(`/proc/self/fdinfo/${epoll}`) ?? "") ?? [];
    if (events !== undefined && data !== undefined)
      return { epoll, events: Number.parseInt(events, 16), data: BigInt(`0x${data}`) };
  }
  throw new ActivationError(
    ExitStatus.systemCall,
    `Bun ${Bun.version} does not watch descriptor ${fd} with epoll as expected: use the Bun that this was made for`,
  );
}
