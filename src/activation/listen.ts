import type { SocketListener, SocketOptions, TLSOptions } from "bun";

import { describe, isListeningStream, phrase } from "./describe.ts";
import { ActivationError, ExitStatus, misconfigured } from "./error.ts";
import * as libc from "./libc.ts";

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
  options: ListenOptions<Data>,
): SocketListener<Data> {
  if (typeof where !== "number")
    return "unix" in where
      ? Bun.listen({ ...options, unix: where.unix })
      : Bun.listen({ ...options, hostname: where.hostname ?? LOOPBACK, port: where.port });
  requireListening(where);
  const passed = libc.duplicate(where);
  let listener: SocketListener<Data> | undefined;
  try {
    libc.replaceByThrowAway(where);
    listener = Bun.listen({ ...options, fd: where });
    substitute(passed, where);
    return listener;
  } catch (error) {
    listener?.stop();
    libc.replace(passed, where);
    throw error;
  } finally {
    libc.close(passed);
  }
}

/** @throws {ActivationError} (78) unless `fd` is a stream socket that listens. */
export function requireListening(fd: number): void {
  if (!isListeningStream(fd))
    throw misconfigured(
      `descriptor ${fd} is ${phrase(describe(fd))}, not a listening stream socket: pass one (Accept=no)`,
    );
}

/**
 * Puts the socket `passed` in the place of the listening socket `fd` in Bun's event loop: on the
 * same number, and registered in the same epoll instance for the same events with the same data.
 *
 * @throws {ActivationError} (71) when no epoll instance of this process watches `fd`.
 */
export function substitute(passed: number, fd: number): void {
  const { epoll, events, data } = registration(fd);
  // Bun accepts until it would block.
  libc.setNonBlocking(passed);
  // The last reference to the old socket goes, and its registration with it.
  libc.replace(passed, fd);
  libc.epollAdd(epoll, fd, events, data);
}

function registration(fd: number): { epoll: number; events: number; data: bigint } {
  // A line of it in proc_pid_fdinfo(5): "tfd: %8d events: %8x data: %16llx ...".
  const target = `tfd: ${String(fd).padStart(8)} events: `;
  // Below are stdin, stdout and stderr; the event loop's is among the first free ones after.
  for (let epoll = 3; epoll < libc.DESCRIPTORS; epoll++) {
    const text = libc.readProc(`/proc/self/fdinfo/${epoll}`);
    const at = text?.indexOf(target) ?? -1;
    if (text === undefined || at < 0) continue;
    const columns = text.slice(at + target.length);
    if (columns.slice(8, 15) !== " data: ") break;
    const events = Number(`0x${columns.slice(0, 8).trim()}`);
    return { epoll, events, data: BigInt(`0x${columns.slice(15, 31).trim()}`) };
  }
  throw unexpectedRuntime(`does not watch descriptor ${fd} with epoll`);
}

/** The error for a runtime that is not as this module knows it, before it has served anybody. */
export function unexpectedRuntime(what: string): ActivationError {
  return new ActivationError(
    ExitStatus.systemCall,
    `Bun ${Bun.version} ${what} as expected: use the Bun that this was made for`,
  );
}
