import type { BinaryType, udp } from "bun";

import { derive, runtime } from "../bun.ts";
import { misconfigured } from "../error.ts";
import { close } from "../linux/libc.ts";
import { describe, formatDescriptor } from "../receive/describe.ts";
import { descriptorForBun, release, supersede } from "./handover.ts";

/**
 * The options of `Bun.udpSocket`, and a descriptor. If it is given, it is used instead of the address.
 */
export type UdpSocketOptions<Data extends BinaryType = "buffer"> = udp.SocketOptions<Data> & {
  readonly fd?: number | undefined;
};

/**
 * Runs `Bun.udpSocket` on a passed datagram socket over IPv4 or IPv6. `close()` closes the socket of
 * this process, systemd keeps its own. /dev/null replaces a descriptor from 0 to 2. Without `fd` it is
 * `Bun.udpSocket`, unchanged.
 *
 * Limitations: it takes no datagram socket over AF_UNIX. It makes the socket non-blocking for every
 * process that shares it. The handler `error` does not learn that a datagram was refused (ECONNREFUSED),
 * because Bun asks for that (IP_RECVERR) only on sockets that it opens.
 *
 * @param options As for `Bun.udpSocket`. If `fd` is given, `hostname` and `port` are ignored.
 * @returns A promise of the socket of Bun.
 * @throws {ActivationError} (78) if the descriptor is not such a socket; (71) if a system call fails,
 *   or without FFI.
 * @throws {TypeError} if `connect` is given with `fd`.
 * @throws What `Bun.udpSocket` throws. After any error the descriptor is as it was.
 *
 * @example
 * ```ts
 * const socket = { data: (socket, data, port, address) => void socket.send(data, port, address) };
 * await udpSocket({ fd: passedFd(), hostname: "127.0.0.1", port: 4000, socket });
 * ```
 */
export async function udpSocket<Data extends BinaryType = "buffer">(
  options: UdpSocketOptions<Data>,
): Promise<udp.Socket<Data>> {
  const { fd: passed } = options;
  if (passed === undefined) return await runtime.udpSocket(options);
  if ("connect" in options && options.connect)
    throw new TypeError(
      "udpSocket cannot connect a passed socket, because systemd holds this socket too: leave connect out",
    );
  const descriptor = describe(passed);
  if (!("port" in descriptor) || descriptor.type !== "datagram")
    throw misconfigured(
      `descriptor ${passed} is ${formatDescriptor(descriptor)}, not a datagram socket over IP: set ListenDatagram= with a port in the socket unit`,
    );
  const fd = descriptorForBun(passed);
  try {
    const place = { hostname: descriptor.address, port: undefined, fd };
    const socket = await runtime.udpSocket(derive(options, place));
    if (fd !== passed) release(passed);
    supersede(passed, () => socket.close());
    return socket;
  } catch (error) {
    if (fd !== passed) close(fd);
    throw error;
  }
}
