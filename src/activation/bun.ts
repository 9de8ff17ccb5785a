import type { BinaryType, FdSocketOptions, Socket, SocketListener, SocketOptions, udp } from "bun";

import { ActivationError, ExitStatus } from "./error.ts";

/** A listener of `Bun.listen`: over IP it has a port and a hostname, over AF_UNIX a path. */
export interface Listener<Data = undefined> extends SocketListener<Data> {
  readonly hostname: string | undefined;
  readonly port: number | undefined;
  readonly unix: string | undefined;
}

/**
 * The functions of Bun that take descriptors, which bun-types does not declare. Bun makes a descriptor
 * non-blocking and close-on-exec, and closes it in the end.
 */
interface Runtime {
  /** Adopts a listening socket. Bun calls listen(2) on it, with its own backlog of 511. */
  listen<Data>(options: SocketOptions<Data> & { fd?: number | undefined }): Listener<Data> & {
    readonly fd: number;
    getsockname(address: { address?: string; port?: number }): void;
  };

  /** Adopts a connected socket. `open` runs before the promise resolves. */
  connect<Data = undefined>(options: FdSocketOptions<Data>): Promise<Socket<Data>>;

  /**
   * Adopts a datagram socket over IP. Rejects with ENOTSOCK for anything but a socket,
   * and with EINVAL for another socket. Then the descriptor is as it was.
   */
  udpSocket<Data extends BinaryType = "buffer">(
    options: udp.SocketOptions<Data> & { fd?: number | undefined },
  ): Promise<udp.Socket<Data>>;

  /** The parts of the module bun:ffi. */
  readonly FFI: FFI | undefined;
}

/** The part of bun:ffi that is used: `dlopen` returns an error instead of throwing it. */
export type FFI = Pick<typeof import("bun:ffi"), "ptr" | "read"> & {
  dlopen<Signatures extends Record<string, import("bun:ffi").FFIFunction>>(
    name: string,
    signatures: Signatures,
  ): import("bun:ffi").Library<Signatures> | Error;
};

/** An address and a port, as Bun reports them. */
export interface InetEndpoint {
  readonly address: string;
  readonly family: string;
  readonly port: number;
}

/** The address of a server, which bun-types does not declare. Bun reads it once. */
export interface Reported {
  readonly protocol?: string | null;
  /** A path, or NUL and an abstract name, over AF_UNIX; null if the server has stopped. */
  readonly address?: InetEndpoint | string | null;
}

// Not declared in Bun's own types: that would change them for every program that imports this module.
export const runtime = Bun as unknown as Runtime;

/** Whether Bun takes a value as a handler, or as none. For another one, it throws an error. */
export function isHandler(given: unknown): boolean {
  return !given || typeof given === "function";
}

/** The options of a place to listen. Bun would check those that a passed socket replaces. */
export const NOWHERE = { fd: undefined, hostname: undefined, port: undefined, unix: undefined };

/** The longest that a timer waits, in milliseconds: 25 days. With more it fires at once. */
export const LONGEST_TIMER = 0x7fffffff;

/** @throws {ActivationError} (71) if this Bun is older than 1.4.0: some of those ignore `fd`. */
export function requireBun(version: string): void {
  // With one digit each, as here, text compares like numbers.
  if (version[3] === "." && version < "1.4")
    throw new ActivationError(
      ExitStatus.systemCall,
      `Bun ${version} is too old for socket-service/activation: use Bun 1.4.0 or newer`,
    );
}

requireBun(Bun.version);

/** Returns an object that inherits from another one, with other properties. Bun reads inherited ones too. */
export function derive<T extends object>(object: T, properties: object): T {
  const all: PropertyDescriptorMap = Object.getOwnPropertyDescriptors(properties);
  // A getter of a class may use a private field, which only the object itself has.
  const isPlain = Object.getPrototypeOf(object) === Object.prototype;
  for (let from: object | null = isPlain ? null : object; from && from !== Object.prototype;) {
    for (const key of Reflect.ownKeys(from))
      if (!(key in all) && Object.getOwnPropertyDescriptor(from, key)?.get)
        all[key] = { get: (): unknown => Reflect.get(object, key), configurable: true };
    from = Object.getPrototypeOf(from);
  }
  return Object.create(object, all);
}

/** Gives an object of Bun other properties as Bun does: in its prototype, and with read-only values. */
export function overlay<T extends object>(object: T, properties: object): T {
  const descriptors = Object.getOwnPropertyDescriptors(properties);
  for (const descriptor of Object.values(descriptors))
    descriptor.writable = typeof descriptor.value === "function";
  return Object.setPrototypeOf(object, Object.create(Object.getPrototypeOf(object), descriptors));
}
