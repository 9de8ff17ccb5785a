import type { Socket, SocketHandler } from "bun";

import { describe, phrase } from "./describe.ts";
import { codeOf, misconfigured } from "./error.ts";
import { hasCloseOnExec } from "./layout.ts";
import { available, isDescriptor, wasConnected } from "./libc.ts";
import { requireBun, runtime } from "./runtime.ts";

/**
 * Makes a Bun socket of a passed connection, half-open: the peer's end of file is an `end` event,
 * after which the socket still writes. It opens no FFI library, except to explain an error.
 *
 * @param fd A connected stream socket over IPv4, IPv6 or AF_UNIX.
 * @param handlers As in `Bun.connect`; `open` runs before the promise resolves.
 * @returns The socket, or undefined if `fd` is no socket, which is left as it is.
 * @throws {ActivationError} (78) if `fd` is not open, or a socket that listens, is of another
 *   type, or never had a peer. Nothing was sent then. A peer that is gone is no error.
 */
export async function adoptConnection(
  fd: number,
  handlers: SocketHandler<undefined>,
): Promise<Socket<undefined> | undefined> {
  requireBun();
  if (!(await isSocket(fd))) return undefined;
  let refusal: unknown;
  const socket = await runtime.connect<undefined>({
    fd,
    allowHalfOpen: true,
    socket: {
      ...handlers,
      open(socket) {
        try {
          // Unlike an unconnected IP socket, a Unix datagram socket would send: check that first.
          if (socket.localFamily === undefined && !isUnixStream(fd)) requireConnection(fd);
          handlers.open?.(socket);
          if (socket.bytesWritten === 0) requireConnection(fd);
        } catch (error) {
          refusal = error;
          socket.terminate();
        }
      },
    },
  });
  if (refusal !== undefined) throw refusal;
  return socket;
}

/** Reports whether `fd` is a socket, by the error of Bun when it adopts it for datagrams. */
async function isSocket(fd: number): Promise<boolean> {
  const adopt = async () => (await runtime.udpSocket({ fd })).close();
  const code = isDescriptor(fd) ? await adopt().catch(codeOf) : "EBADF";
  if (code === undefined)
    throw misconfigured(`descriptor ${fd} is a datagram socket, not a connection: pass one`);
  if (code === "EBADF" || (code === "ENOTSOCK" && isOurOwn(fd)))
    throw misconfigured(`descriptor ${fd} is not open: pass a connection on it`);
  return code !== "ENOTSOCK";
}

/** Reports whether Bun itself opened this: what came through exec has no close-on-exec. */
function isOurOwn(fd: number): boolean {
  // Loaded by the call that needs it: node:fs takes 2 to 4 ms.
  const { readFileSync } = process.getBuiltinModule("node:fs");
  return hasCloseOnExec(readFileSync(`/proc/self/fdinfo/${fd}`, "latin1"));
}

/** Reports whether a Unix socket is a stream socket: node:dgram's error then ends in ": PIPE". */
function isUnixStream(fd: number): boolean {
  // Loaded by the call that needs it: node:dgram takes 2 ms.
  const { createSocket } = process.getBuiltinModule("node:dgram");
  try {
    createSocket("udp4").bind({ fd, exclusive: true });
  } catch (error) {
    return error instanceof Error && error.message.endsWith(": PIPE");
  }
  return false;
}

/** @throws {ActivationError} (78) unless `fd` is, or was until its peer reset it, a connection. */
function requireConnection(fd: number): void {
  // Without FFI it looks like a client that has reset, which is normal.
  if (!available()) return;
  const descriptor = describe(fd);
  const isStream = descriptor.kind === "socket" && descriptor.type === "stream";
  if (!isStream || !(descriptor.connected || wasConnected(fd)))
    throw misconfigured(
      `descriptor ${fd} is ${phrase(descriptor)}, not a connection: pass one (Accept=yes)`,
    );
}
