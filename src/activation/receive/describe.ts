import { misconfigured, requireNumber } from "../error.ts";
import { AF, inetAddress, inetPort, MQUEUE_MAGIC, SO, SOCK, unixPath } from "../linux/layout.ts";
import * as libc from "../linux/libc.ts";
import type { InetEndpoint } from "../bun.ts";

/** The type of a socket: `SOCK_STREAM`, `SOCK_DGRAM`, `SOCK_SEQPACKET` or another. */
export type SocketType = "stream" | "datagram" | "seqpacket" | "other";

/** The properties of all sockets. */
export interface AnySocket {
  readonly kind: "socket";
  readonly type: SocketType;
  /** Whether it accepts connections: listen(2) was called on it. */
  readonly listening: boolean;
  /** Whether it has a peer. False too for a connection that its peer has reset. */
  readonly connected: boolean;
}

/** A socket over IPv4 or IPv6, and its local address. */
export interface InetSocket extends AnySocket {
  readonly family: "IPv4" | "IPv6";
  /** The address as text. A link-local address has `%` and the number of the interface at its end. */
  readonly address: string;
  readonly port: number;
}

/** A socket over AF_UNIX. */
export interface UnixSocket extends AnySocket {
  readonly family: "Unix";
  /** The path it is bound to, or its abstract name after `@`; empty if it is not bound. */
  readonly path: string;
}

/** A socket of another family. The family is its number (`AF_VSOCK` is 40). */
export interface OtherSocket extends AnySocket {
  readonly family: number;
}

/** Anything that is not a socket. */
export interface NonSocket {
  readonly kind:
    | "fifo"
    | "character device"
    | "block device"
    | "directory"
    | "regular file"
    | "message queue"
    /** Such as an eventfd or an epoll instance. */
    | "other";
}

/** The kind of a descriptor: a union that narrows by `kind`, and for a socket by `family`. */
export type Descriptor = InetSocket | UnixSocket | OtherSocket | NonSocket;

const TYPES: Readonly<Record<number, SocketType>> = {
  [SOCK.STREAM]: "stream",
  [SOCK.DGRAM]: "datagram",
  [SOCK.SEQPACKET]: "seqpacket",
};

/**
 * Returns what a descriptor is. The result answers what sd_is_fifo(3), sd_is_socket(3),
 * sd_is_socket_inet(3), sd_is_socket_unix(3), sd_is_special(3) and sd_is_mq(3) answer. To compare
 * paths as sd_is_fifo(3) does, compare `node:fs`' `fstatSync` of the descriptor and `statSync` of your
 * path.
 *
 * Limitations: a connection that its peer has reset is not `connected`. A descriptor that was opened
 * with `O_PATH` is never a socket: its kind is that of the file, and `other` for the path of a socket.
 *
 * @param fd The number of an open descriptor.
 * @returns The kind of the descriptor. For a socket also its type, its family, its local address, and
 *   whether it listens or is connected.
 * @throws {ActivationError} (78) if it is not open; (71) if another system call fails, or without FFI.
 * @throws {TypeError} if `fd` is not a number.
 */
export function describe(fd: number): Descriptor {
  requireNumber(fd);
  if (libc.closesOnExec(fd) === undefined)
    throw misconfigured(`descriptor ${fd} is not open: give the number of an open descriptor`);
  const type = libc.socketOption(fd, SO.TYPE);
  if (type === undefined) return { kind: fileKind(fd) };

  const domain = libc.socketOption(fd, SO.DOMAIN) ?? 0;
  const socket = {
    kind: "socket",
    type: TYPES[type] ?? "other",
    listening: libc.socketOption(fd, SO.ACCEPTCONN) === 1,
    // Of netlink, the kernel itself is the peer of each socket.
    connected: domain !== AF.NETLINK && libc.hasPeer(fd),
  } as const;
  if (domain === AF.UNIX) return { ...socket, family: "Unix", path: unixPath(libc.socketName(fd)) };
  // Some others have no getsockname(2).
  if (domain !== AF.INET && domain !== AF.INET6) return { ...socket, family: domain };
  const name = libc.socketName(fd);
  const family = domain === AF.INET ? "IPv4" : "IPv6";
  return { ...socket, family, address: inetAddress(name), port: inetPort(name) };
}

/**
 * Reports whether a descriptor is a listening stream socket over IP or AF_UNIX. It asks no more than a
 * start needs.
 */
export function isListeningStream(fd: number): boolean {
  const families = [AF.UNIX, AF.INET, AF.INET6];
  return (
    libc.socketOption(fd, SO.TYPE) === SOCK.STREAM &&
    libc.socketOption(fd, SO.ACCEPTCONN) === 1 &&
    families.includes(libc.socketOption(fd, SO.DOMAIN) ?? 0)
  );
}

/**
 * Returns a descriptor in words, for a message or a status.
 *
 * @param descriptor What {@link describe} returned.
 * @returns For example `a listening stream socket (IPv4)`, `a fifo` or `an anonymous file`.
 */
export function formatDescriptor(descriptor: Descriptor): string {
  if (descriptor.kind === "other") return "an anonymous file";
  if (descriptor.kind !== "socket") return `a ${descriptor.kind}`;
  const { family, type, listening, connected } = descriptor;
  const state = listening ? "a listening" : connected ? "a connected" : "an unconnected";
  return `${state} ${type} socket (${typeof family === "number" ? `family ${family}` : family})`;
}

/**
 * Returns the local address of a socket as `ListenStream=` has it.
 *
 * Limitation: a path or a name may hold control characters. Use {@link printable} before you show it.
 *
 * @param descriptor What {@link describe} returned.
 * @returns For example `127.0.0.1:3000`, `[::1]:3000`, `[fe80::1]:3000%2`, `/run/app.sock` or `@name`.
 *   It is `family 40` for a socket of another family (with its number), and empty for a Unix socket that
 *   is not bound, and for anything but a socket.
 */
export function formatAddress(descriptor: Descriptor): string {
  if (descriptor.kind !== "socket") return "";
  if ("path" in descriptor) return descriptor.path;
  if (!("port" in descriptor)) return `family ${descriptor.family}`;
  // systemd has the interface after the port.
  const [address = "", scope] = descriptor.address.split("%");
  return formatEndpoint({ ...descriptor, address }) + (scope === undefined ? "" : `%${scope}`);
}

/** Returns an address and a port as `ListenStream=` has them. */
export function formatEndpoint({ family, address, port }: InetEndpoint): string {
  return family === "IPv6" ? `[${address}]:${port}` : `${address}:${port}`;
}

function fileKind(fd: number): NonSocket["kind"] {
  const { fstatSync, statfsSync } = process.getBuiltinModule("node:fs");
  const stat = fstatSync(fd);
  if (stat.isFIFO()) return "fifo";
  if (stat.isCharacterDevice()) return "character device";
  if (stat.isBlockDevice()) return "block device";
  if (stat.isDirectory()) return "directory";
  if (!stat.isFile()) return "other";
  const isQueue = statfsSync(`/proc/self/fd/${fd}`).type === MQUEUE_MAGIC;
  return isQueue ? "message queue" : "regular file";
}
