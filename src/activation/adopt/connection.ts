import type { Socket, SocketHandler } from "bun";

import { describe, formatDescriptor } from "../receive/describe.ts";
import { codeOf, misconfigured, requireNumber } from "../error.ts";
import { hasCloseOnExec, S_IFMT } from "../linux/layout.ts";
import { canCallLibc, isDescriptor, wasConnected } from "../linux/libc.ts";
import { derive, isHandler, runtime } from "../bun.ts";
import { isStandard, replaceClosed } from "./handover.ts";

const REMEDY = "set ListenStream= and Accept=yes in the socket unit";

/**
 * Makes a Bun socket of a passed connection. With an `end` handler, the socket is half-open: after the
 * peer's end of file, it can still write. Without one, the peer's end of file closes it. A connection
 * over IP needs no FFI.
 *
 * Limitations: without FFI it accepts a socket that listens or has no peer, and then reports that the
 * connection is closed. If the connection is on another descriptor too, as standard output under
 * inetd(8), `end` reaches the peer only when the process ends: call `shutdown`.
 *
 * @param fd A connected stream socket over IPv4, IPv6 or AF_UNIX. The end of the connection closes
 *   this number. /dev/null replaces a descriptor from 0 to 2, unless `socket.reload` was called.
 * @param handlers As in `Bun.connect`. `open` runs before the promise resolves.
 * @returns A promise of the socket. It is undefined if `fd` is a file, a FIFO or a device, which is
 *   left as it is.
 * @throws {ActivationError} (78) if `fd` is not open, is an anonymous file, or is a socket that
 *   listens, has another type, or never had a peer; (71) if a system call fails. `open` was not called
 *   then, and a socket is closed. A peer that is gone is no error.
 * @throws What `open` throws. The connection is closed then, over TCP by a reset: the client does not
 *   take an incomplete answer for a complete one.
 */
export async function adoptConnection(
  fd: number,
  handlers: SocketHandler<undefined>,
): Promise<Socket<undefined> | undefined> {
  if (!(await isSocket(fd))) return undefined;
  let refusal: unknown;
  const { open, close } = handlers;
  const ours = derive(handlers, {
    open(socket: Socket<undefined>) {
      try {
        // Bun knows the peer of a connection over IP. The call to libc takes longer: see Start.
        if (socket.remoteFamily === undefined) requireConnection(fd);
        return open?.call(socket, socket);
      } catch (error) {
        refusal = error;
        socket.terminate();
      }
    },
    close(socket: Socket<undefined>, error?: Error) {
      try {
        replaceClosed(fd);
      } finally {
        close?.call(socket, socket, error);
      }
    },
  });
  const socket = await runtime.connect<undefined>({
    fd,
    allowHalfOpen: true,
    // For wrong ones, Bun throws the error.
    socket: isHandler(open) && isHandler(close) ? ours : handlers,
  });
  if (refusal !== undefined) throw refusal;
  return socket;
}

/** Reports whether `fd` is a socket, by the error of Bun when it adopts `fd` for datagrams. */
async function isSocket(fd: number): Promise<boolean> {
  requireNumber(fd);
  const adopt = async () => (await runtime.udpSocket({ fd })).close();
  const code = isDescriptor(fd) ? await adopt().catch(codeOf) : "EBADF";
  // Bun has adopted it.
  if (code === undefined) {
    replaceClosed(fd);
    throw misconfigured(`descriptor ${fd} is a datagram socket, not a connection: ${REMEDY}`);
  }
  if (code === "EBADF" || (code === "ENOTSOCK" && isStandard(fd) && (await wasClosed(fd))))
    throw misconfigured(`descriptor ${fd} is not open: ${REMEDY}`);
  if (code !== "ENOTSOCK") return true;
  // The first descriptors that Bun opens, such as an epoll instance, have no file type.
  if (((await Bun.file(fd).stat()).mode & S_IFMT) === 0)
    throw misconfigured(
      `descriptor ${fd} is not a socket, because no connection was passed: ${REMEDY}`,
    );
  return false;
}

/** Whether a standard descriptor was closed at exec: Bun opens /dev/null there, with close-on-exec. */
async function wasClosed(fd: number): Promise<boolean> {
  return hasCloseOnExec(await Bun.file(`/proc/self/fdinfo/${fd}`).text());
}

/** @throws {ActivationError} (78) unless `fd` is, or was until its peer reset it, a connection. */
function requireConnection(fd: number): void {
  // Without FFI, it looks like a connection that the client has reset, which is normal.
  if (!canCallLibc()) return;
  const descriptor = describe(fd);
  const isStream = descriptor.kind === "socket" && descriptor.type === "stream";
  if (!isStream || !(descriptor.connected || wasConnected(fd)))
    throw misconfigured(
      `descriptor ${fd} is ${formatDescriptor(descriptor)}, not a connection: ${REMEDY}`,
    );
}
