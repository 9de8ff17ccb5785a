import type { Socket, SocketHandler } from "bun";

import { describe, phrase } from "./describe.ts";
import { nothingPassed, takePassed } from "./environment.ts";
import { misconfigured } from "./error.ts";
import { hasCloseOnExec } from "./layout.ts";
import { available, isDescriptor, wasConnected } from "./libc.ts";
import { LISTEN_FDS_START } from "./listen-fds.ts";

/**
 * Takes the one connection that the service manager accepted and passed (`Accept=yes`), and the
 * `LISTEN_*` variables out of the environment. Opens no FFI library, unless to explain a failure.
 *
 * @returns The number of its descriptor, for {@link adoptConnection}.
 * @throws {ActivationError} (78) when nothing was passed, or more than one descriptor, or a
 *   variable is malformed.
 */
export function acceptedFd(): number {
  const passed = takePassed();
  if ("reason" in passed) throw nothingPassed(passed.reason);
  if (passed.count !== 1)
    throw misconfigured(
      `LISTEN_FDS is ${passed.count}, but this takes one connection: set Accept=yes in its socket unit`,
    );
  return LISTEN_FDS_START;
}

/**
 * Makes a Bun socket of a passed connection, half-open as `allowHalfOpen`: the peer's end of file
 * is an `end` event, after which the socket still writes. Opens no FFI library, unless to explain
 * why nothing could be written.
 *
 * @param fd A connected stream socket over IPv4, IPv6 or AF_UNIX.
 * @param handlers As in `Bun.connect`; `open` runs before the promise resolves.
 * @returns The socket, or undefined where `fd` is no socket, which is left as it is.
 * @throws {ActivationError} (78) when `fd` is not open, or a socket that listens, is of another
 *   type, or never had a peer. Nothing was sent then. A peer that is gone is no error.
 */
export async function adoptConnection(
  fd: number,
  handlers: SocketHandler<undefined>,
): Promise<Socket<undefined> | undefined> {
  if (!(await isSocket(fd))) return undefined;
  let refusal: unknown;
  const socket = await Bun.connect<undefined>({
    fd,
    allowHalfOpen: true,
    socket: {
      ...handlers,
      open(socket) {
        try {
          // Over IP, anything but a connection refuses to send; over AF_UNIX, datagrams are sent.
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

/** Asks for the type of a socket in the one way that Bun offers: by what it adopts as datagrams. */
async function isSocket(fd: number): Promise<boolean> {
  const notOpen = misconfigured(`descriptor ${fd} is not open: pass a connection on it`);
  if (!isDescriptor(fd)) throw notOpen;
  let code: unknown;
  try {
    (await Bun.udpSocket({ fd })).close();
  } catch (error) {
    code = error instanceof Error && "code" in error ? error.code : undefined;
  }
  if (code === undefined)
    throw misconfigured(`descriptor ${fd} is a datagram socket, not a connection: pass one`);
  if (code === "EBADF" || (code === "ENOTSOCK" && isOurOwn(fd))) throw notOpen;
  return code !== "ENOTSOCK";
}

/**
 * Whether the runtime itself opened this descriptor, on a number that was not passed: it sets
 * close-on-exec, which nothing has that came through exec.
 */
function isOurOwn(fd: number): boolean {
  const { readFileSync } = process.getBuiltinModule("node:fs");
  return hasCloseOnExec(readFileSync(`/proc/self/fdinfo/${fd}`, "latin1"));
}

/** The same for AF_UNIX, by the error that tells the type of what node:dgram does not take. */
function isUnixStream(fd: number): boolean {
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
  // Without FFI the one cannot be told from the other, and a client that resets is normal.
  if (!available()) return;
  const it = describe(fd);
  const isStream = it.kind === "socket" && it.type === "stream";
  if (!isStream || !(it.connected || wasConnected(fd)))
    throw misconfigured(
      `descriptor ${fd} is ${phrase(it)}, not a connection: pass one (Accept=yes)`,
    );
}
