import { misconfigured } from "./error.ts";
import * as libc from "./libc.ts";

export type SocketType = "stream" | "datagram" | "seqpacket" | "other";

interface AnySocket {
  readonly kind: "socket";
  readonly type: SocketType;
  /** Whether it takes connections: listen(2) was called on it. */
  readonly listening: boolean;
  /** Whether it has a peer. False too for a connection that its peer has reset. */
  readonly connected: boolean;
}

/** A socket over IPv4 or IPv6, and its local address. */
export interface InetSocket extends AnySocket {
  readonly family: "IPv4" | "IPv6";
  /** The address as text, with `%` and the interface's number where it is of one link. */
  readonly address: string;
  readonly port: number;
}

/** A socket over AF_UNIX. */
export interface UnixSocket extends AnySocket {
  readonly family: "Unix";
  /** The path it is bound to, or its abstract name after `@`; empty where it is not bound. */
  readonly path: string;
}

/** A socket of another family, as its number (`AF_VSOCK` is 40). */
export interface OtherSocket extends AnySocket {
  readonly family: number;
}

/** Anything that is not a socket. */
export interface File {
  readonly kind:
    | "fifo"
    | "character device"
    | "block device"
    | "directory"
    | "regular file"
    | "message queue"
    /** An anonymous one, such as an eventfd or an epoll instance. */
    | "other";
}

/** What a descriptor is. */
export type Descriptor = InetSocket | UnixSocket | OtherSocket | File;

const TYPES = new Map<number, SocketType>([
  [libc.SOCK_STREAM, "stream"],
  [libc.SOCK_DGRAM, "datagram"],
  [libc.SOCK_SEQPACKET, "seqpacket"],
]);

/**
 * Tells what a descriptor is: all that sd_is_fifo(3), sd_is_socket(3), sd_is_socket_inet(3),
 * sd_is_socket_unix(3), sd_is_special(3) and sd_is_mq(3) can tell, in one call. To compare paths
 * as sd_is_fifo(3) does, compare `node:fs`' `fstatSync` of the descriptor and `statSync` of yours.
 *
 * @param fd The number of an open descriptor.
 * @throws {ActivationError} (78) when it is not open; (71) when a system call fails otherwise.
 */
export function describe(fd: number): Descriptor {
  if (libc.closesOnExec(fd) === undefined)
    throw misconfigured(`descriptor ${fd} is not open: pass one that is`);
  const type = libc.socketOption(fd, libc.SO_TYPE);
  if (type === undefined) return { kind: fileKind(fd) };

  const domain = libc.socketOption(fd, libc.SO_DOMAIN) ?? 0;
  const socket = {
    kind: "socket",
    type: TYPES.get(type) ?? "other",
    listening: isListening(fd),
    connected: libc.hasPeer(fd),
  } as const;
  if (domain === libc.AF_UNIX)
    return { ...socket, family: "Unix", path: unixPath(libc.socketName(fd).subarray(2)) };
  // Some others have no getsockname(2).
  if (domain !== libc.AF_INET && domain !== libc.AF_INET6) return { ...socket, family: domain };
  const name = libc.socketName(fd);
  const [family, address] =
    domain === libc.AF_INET
      ? (["IPv4", name.subarray(4, 8).join(".")] as const)
      : (["IPv6", ipv6Address(name)] as const);
  return { ...socket, family, address, port: port(name) };
}

function isListening(fd: number): boolean {
  return libc.socketOption(fd, libc.SO_ACCEPTCONN) === 1;
}

/** Whether a descriptor is a stream socket that listens: the one question of a start-up. */
export function isListeningStream(fd: number): boolean {
  return libc.socketOption(fd, libc.SO_TYPE) === libc.SOCK_STREAM && isListening(fd);
}

/** One phrase that names what a descriptor is, for messages and status texts. */
export function phrase(it: Descriptor): string {
  if (it.kind === "other") return "an anonymous file";
  if (it.kind !== "socket") return `a ${it.kind}`;
  const family = typeof it.family === "number" ? `family ${it.family}` : it.family;
  const state = it.listening ? "a listening" : it.connected ? "a connected" : "an unconnected";
  return `${state} ${it.type} socket (${family})`;
}

/** Where a socket listens, as one writes it in `ListenStream=`. */
export function endpoint(it: Descriptor): string {
  if (it.kind !== "socket") return "";
  if ("path" in it) return it.path;
  if (!("port" in it)) return `family ${it.family}`;
  return it.family === "IPv6" ? `[${it.address}]:${it.port}` : `${it.address}:${it.port}`;
}

function fileKind(fd: number): File["kind"] {
  const { fstatSync, statfsSync } = process.getBuiltinModule("node:fs");
  const stat = fstatSync(fd);
  if (stat.isFIFO()) return "fifo";
  if (stat.isCharacterDevice()) return "character device";
  if (stat.isBlockDevice()) return "block device";
  if (stat.isDirectory()) return "directory";
  if (!stat.isFile()) return "other";
  const MQUEUE_MAGIC = 0x19800202;
  const isQueue = statfsSync(`/proc/self/fd/${fd}`).type === MQUEUE_MAGIC;
  return isQueue ? "message queue" : "regular file";
}

function port(name: Uint8Array): number {
  return new DataView(name.buffer).getUint16(2);
}

function unixPath(path: Uint8Array): string {
  const text = new TextDecoder().decode(path);
  // An abstract name begins with a NUL and may hold more; a path ends at its first.
  return text.startsWith("\0") ? `@${text.slice(1)}` : (text.split("\0", 1)[0] ?? "");
}

function ipv6Address(name: Uint8Array): string {
  const view = new DataView(name.buffer);
  const groups = Array.from({ length: 8 }, (_, i) => view.getUint16(8 + 2 * i).toString(16));
  const shortest = new URL(`http://[${groups.join(":")}]`).hostname.slice(1, -1);
  const scope = view.getUint32(24, true);
  return scope === 0 ? shortest : `${shortest}%${scope}`;
}
