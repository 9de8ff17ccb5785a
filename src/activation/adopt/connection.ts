import type { Socket, SocketHandler } from "bun";

import { describe, formatDescriptor } from "../receive/describe.ts";
import { codeOf, misconfigured } from "../error.ts";
import { hasCloseOnExec, S_IFMT } from "../linux/layout.ts";
import { canCallLibc, isDescriptor, wasConnected } from "../linux/libc.ts";
import { derive, runtime } from "../bun.ts";
import { isStandard, replaceClosed } from "./handover.ts";

const REMEDY = "set ListenStream= and Accept=yes in the socket unit";

/**
 * Makes a Bun socket of a passed connection, half-open: the peer's end of file is an `end` event,
 * after which the socket still writes. It opens no FFI library for a connection over IP.
 *
 * @param fd A connected stream socket over IPv4, IPv6 or AF_UNIX. When the connection ends, /dev/null
 *   replaces a descriptor from 0 to 2, and another number is closed.
 * @param handlers As in `Bun.connect`; `open` runs before the promise resolves.
 * @returns The socket, or undefined if `fd` is no socket but a file, FIFO or device, which is left as
 *   it is.
 * @throws {ActivationError} (78) if `fd` is not open, an anonymous file, or a socket that listens, is
 *   of another type, or never had a peer. Nothing was sent then. A peer that is gone is no error.
 * @throws What `open` throws. The connection is closed then: over TCP by a reset, so that the client
 *   does not take what it got for all of it.
 */
export async function adoptConnection(
  fd: number,
  handlers: SocketHandler<undefined>,
): Promise<Socket<undefined> | undefined> {
  if (!(await isSocket(fd))) return undefined;
  let refusal: unknown;
  const socket = await runtime.connect<undefined>({
    fd,
    allowHalfOpen: true,
    socket: derive(handlers, {
      open(socket: Socket<undefined>) {
        try {
          // Unlike an unconnected IP socket, a Unix datagram socket would send: check that first.
          if (socket.localFamily === undefined) requireConnection(fd);
          handlers.open?.call(socket, socket);
          if (socket.bytesWritten === 0) requireConnection(fd);
        } catch (error) {
          refusal = error;
          socket.terminate();
        }
      },
      close(socket: Socket<undefined>, error?: Error) {
        replaceClosed(fd);
        return handlers.close?.call(socket, socket, error);
      },
    }),
  });
  if (refusal !== undefined) throw refusal;
  return socket;
}

/** Reports whether `fd` is a socket, by the error of Bun when it adopts it for datagrams. */
async function isSocket(fd: number): Promise<boolean> {
  const adopt = async () => (await runtime.udpSocket({ fd })).close();
  const code = isDescriptor(fd) ? await adopt().catch(codeOf) : "EBADF";
  if (code === undefined)
    throw misconfigured(`descriptor ${fd} is a datagram socket, not a connection: ${REMEDY}`);
  if (code === "EBADF" || (code === "ENOTSOCK" && isStandard(fd) && (await wasClosed(fd))))
    throw misconfigured(`descriptor ${fd} is not open: ${REMEDY}`);
  if (code !== "ENOTSOCK") return true;
  // The first descriptors that Bun opens have no type, such as an epoll instance.
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
  // Without FFI it looks like a client that has reset, which is normal.
  if (!canCallLibc()) return;
  const descriptor = describe(fd);
  const isStream = descriptor.kind === "socket" && descriptor.type === "stream";
  if (!isStream || !(descriptor.connected || wasConnected(fd)))
    throw misconfigured(
      `descriptor ${fd} is ${formatDescriptor(descriptor)}, not a connection: ${REMEDY}`,
    );
}
