/**
 * What Bun takes and bun-types does not declare: descriptors that the process was handed.
 * Each is adopted: Bun makes it non-blocking and close-on-exec, and closes it in the end.
 */
type BunFFI = Pick<typeof import("bun:ffi"), "ptr" | "read"> & {
  dlopen<Signatures extends Record<string, import("bun:ffi").FFIFunction>>(
    name: string,
    signatures: Signatures,
  ): import("bun:ffi").Library<Signatures> | Error;
};

declare module "bun" {
  /** Adopts a listening socket. Bun calls listen(2) on it, with its own backlog of 511. */
  function listen<Data = undefined>(
    options: SocketOptions<Data> & { fd: number; tls?: TLSOptions | boolean },
  ): SocketListener<Data>;

  /** Adopts a connected socket. `open` runs before the promise resolves. */
  function connect<Data = undefined>(
    options: SocketOptions<Data> & { fd: number },
  ): Promise<Socket<Data>>;

  /**
   * Adopts a datagram socket over IPv4 or IPv6. Rejects, and leaves the descriptor alone, with
   * ENOTSOCK when it is no socket and with EINVAL when it is a socket of another kind.
   */
  function udpSocket(
    options: udp.SocketOptions<"buffer"> & { fd: number },
  ): Promise<udp.Socket<"buffer">>;

  /** What the module bun:ffi is made of. Its `dlopen` returns an error instead of throwing it. */
  const FFI: BunFFI | undefined;
}
