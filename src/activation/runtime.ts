import type { BinaryType, Socket, SocketListener, SocketOptions, TLSOptions, udp } from "bun";

import { ActivationError, ExitStatus } from "./error.ts";

/** A listener of `Bun.listen`: over IP it has a port and a hostname, over AF_UNIX a path. */
export interface Listener<Data = undefined> extends SocketListener<Data> {
  readonly hostname: string | undefined;
  readonly port: number | undefined;
  readonly unix: string | undefined;
}

/**
 * What Bun accepts and bun-types does not declare: descriptors that the process was handed. Each
 * is adopted: Bun makes it non-blocking and close-on-exec, and closes it in the end.
 */
interface Runtime {
  /** Adopts a listening socket. Bun calls listen(2) on it, with its own backlog of 511. */
  listen<Data>(
    options: SocketOptions<Data> & {
      fd?: number | undefined;
      hostname?: string;
      port?: number;
      unix?: string;
      tls?: TLSOptions | boolean;
    },
  ): Listener<Data> & {
    readonly fd: number;
    getsockname(address: { address?: string; port?: number }): void;
  };

  /** Adopts a connected socket. `open` runs before the promise resolves. */
  connect<Data = undefined>(options: SocketOptions<Data> & { fd: number }): Promise<Socket<Data>>;

  /**
   * Adopts a datagram socket over IPv4 or IPv6. Rejects, and leaves the descriptor alone, with
   * ENOTSOCK if it is no socket and with EINVAL if it is a socket of another kind.
   */
  udpSocket<Data extends BinaryType = "buffer">(
    options: udp.SocketOptions<Data> & { fd?: number | undefined },
  ): Promise<udp.Socket<Data>>;

  /** What the module bun:ffi is made of. Its `dlopen` returns an error instead of throwing it. */
  readonly FFI: FFI | undefined;
}

/** The part of the module bun:ffi that is used. */
export type FFI = Pick<typeof import("bun:ffi"), "ptr" | "read"> & {
  dlopen<Signatures extends Record<string, import("bun:ffi").FFIFunction>>(
    name: string,
    signatures: Signatures,
  ): import("bun:ffi").Library<Signatures> | Error;
};

// The types of Bun itself stay as they are: who imports this module is not to see any of this.
export const runtime = Bun as unknown as Runtime;

/**
 * @throws {ActivationError} (71) if this Bun is older than 1.4.0. An older one ignores `fd`, and
 *   opens another port without a word, or lacks something else that is needed.
 */
export function requireBun(version = Bun.version): void {
  // With one digit each, as here, text compares like numbers. The first call takes 12 µs: with split
  // it would take 25.
  if (version[3] === "." && version < "1.4")
    throw new ActivationError(
      ExitStatus.systemCall,
      `Bun ${version} is too old for socket-service/activation: use Bun 1.4.0 or newer`,
    );
}
