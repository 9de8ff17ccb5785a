/* Byte layouts and constants of libc on 64-bit little-endian Linux, in pure functions. */

export const AF = { UNIX: 1, INET: 2, INET6: 10, NETLINK: 16 };
export const SOCK = { STREAM: 1, DGRAM: 2, SEQPACKET: 5, CLOEXEC: 0o2000000 };
export const SO = { TYPE: 3, ACCEPTCONN: 30, DOMAIN: 39 };
export const SOL_SOCKET = 1;
export const O_CLOEXEC = 0o2000000;
/** The bits of a file's mode that are its type (inode(7)). */
export const S_IFMT = 0o170000;

/** The types of two file systems, as statfs(2) returns them. */
export const MQUEUE_MAGIC = 0x19800202;
export const PID_FS_MAGIC = 0x50494446n;

const SCM = { RIGHTS: 1, CREDENTIALS: 2 };
export const EPOLLOUT = 4;
const EPOLLET = 0x80000000;
/** The most descriptors that the kernel sends at once (unix(7)). */
export const SCM_MAX_FD = 253;
/** The size of a sockaddr_storage, which holds an address of any family. */
export const SOCKADDR_SIZE = 128;
/** In bytes: a sun_path except the NUL that ends it, which libsystemd wants after a name too. */
export const LONGEST_PATH = 107;
/**
 * Indices of 32-bit numbers in a struct tcp_info: milliseconds since data was last sent and received, the
 * segments that were received, and the segments with data that were received and sent.
 */
export const TCPI = {
  LAST_DATA_SENT: 11,
  LAST_DATA_RECV: 13,
  SEGS_IN: 35,
  DATA_SEGS_IN: 38,
  DATA_SEGS_OUT: 39,
} as const;

/** Returns the sun_path for a path, or for an abstract name after `@`. */
export function sunPath(address: string): Uint8Array {
  const path = new TextEncoder().encode(address);
  if (address.startsWith("@")) path[0] = 0;
  return path;
}

/** Returns the path of a sockaddr_un, or its abstract name after `@`; empty if it has none. */
export function unixPath(sockaddr: Uint8Array): string {
  const text = new TextDecoder().decode(sockaddr.subarray(2));
  // An abstract name begins with a NUL and may hold more; a path ends at its first.
  return text.startsWith("\0") ? `@${text.slice(1)}` : (text.split("\0", 1)[0] ?? "");
}

/** Returns the address of a sockaddr_in, or of a sockaddr_in6 with `%` and the number of its link. */
export function inetAddress(sockaddr: Uint8Array): string {
  if (sockaddr[0] === AF.INET) return sockaddr.subarray(4, 8).join(".");
  const groups = sockaddr
    .subarray(8, 24)
    .toHex()
    .replaceAll(/.{4}(?=.)/g, "$&:");
  // A URL has the IPv4 address in it as two groups, and Bun and inet_ntop(3) as IPv4 does.
  const shortest = groups.startsWith("0000:0000:0000:0000:0000:ffff:")
    ? `::ffff:${sockaddr.subarray(20, 24).join(".")}`
    : new URL(`http://[${groups}]`).hostname.slice(1, -1);
  const [scope = 0] = new Uint32Array(sockaddr.slice(24, 28).buffer);
  return scope === 0 ? shortest : `${shortest}%${scope}`;
}

/** Returns the port of a sockaddr_in or sockaddr_in6. */
export function inetPort(sockaddr: Uint8Array): number {
  return Number.parseInt(sockaddr.subarray(2, 4).toHex(), 16);
}

/** Whether a socket with the local address `local` can be a connection of one that listens at `at`. */
export function isAcceptedAt(local: Uint8Array, at: Uint8Array): boolean {
  const family = at[0];
  if (family !== local[0]) return false;
  if (family !== AF.INET && family !== AF.INET6) return Buffer.compare(local, at) === 0;
  if (inetPort(local) !== inetPort(at)) return false;
  const [from, to] = family === AF.INET ? [4, 8] : [8, 24];
  const address = at.subarray(from, to);
  // All zeros: it listens on every address.
  return !address.some(Boolean) || Buffer.compare(local.subarray(from, to), address) === 0;
}

/** Whether close-on-exec is set, by the text of proc_pid_fdinfo(5): `flags:`, in octal. */
export function hasCloseOnExec(fdinfo: string): boolean {
  const flags = /^flags:\s+([0-7]+)$/m.exec(fdinfo)?.[1];
  return (Number.parseInt(flags ?? "0", 8) & O_CLOEXEC) !== 0;
}

/** The 64 bits of an epoll_data_t, not as a BigInt: see Start. */
export type EpollData = readonly [low: number, high: number];

/** Returns a struct epoll_event: these events, but edge-triggered. */
export function epollEvent(events: number, data: EpollData, arch = process.arch): Uint32Array {
  // Packed on x86-64 and nowhere else.
  const padding = arch === "x64" ? [] : [0];
  return new Uint32Array([events | EPOLLET, ...padding, ...data]);
}

/** Returns a message of ancillary data, as cmsg(3) lays it out, or nothing if it has no values. */
function controlMessage(type: number, values: readonly number[]): Uint8Array {
  if (values.length === 0) return new Uint8Array();
  const HEADER = 16;
  const length = HEADER + 4 * values.length;
  const view = new DataView(new ArrayBuffer((length + 7) & ~7));
  view.setBigUint64(0, BigInt(length), true);
  [SOL_SOCKET, type, ...values].forEach((value, at) => view.setInt32(8 + 4 * at, value, true));
  return new Uint8Array(view.buffer);
}

/** Returns the ancillary data of a datagram: descriptors, and the ids of process, user and group. */
export function controlMessages(fds: readonly number[], sender: readonly number[] = []) {
  return Buffer.concat([controlMessage(SCM.RIGHTS, fds), controlMessage(SCM.CREDENTIALS, sender)]);
}

/** Returns a datagram as sendmsg(2) takes it: a struct msghdr, and behind it all it points to. */
export function datagram(
  path: Uint8Array,
  payload: Uint8Array,
  control: Uint8Array,
  addressOf: (buffer: ArrayBuffer) => number,
): Uint8Array {
  const MSGHDR = 56;
  const IOVEC = 16;
  const name = MSGHDR + IOVEC;
  const nameLength = 2 + path.length;
  const controlAt = name + nameLength;
  const payloadAt = controlAt + control.length;
  // One buffer holds all parts, and their addresses. Bun would move that of a plain Uint8Array when
  // `.buffer` is first read.
  const buffer = new ArrayBuffer(payloadAt + payload.length);
  const at = addressOf(buffer);
  const header = [at + name, nameLength, at + MSGHDR, 1, at + controlAt, control.length, 0];
  const iovec = [at + payloadAt, payload.length];
  new BigUint64Array(buffer, 0, name / 8).set([...header, ...iovec].map(BigInt));
  const bytes = new Uint8Array(buffer);
  bytes.set([AF.UNIX, 0, ...path], name);
  bytes.set(control, controlAt);
  bytes.set(payload, payloadAt);
  return bytes;
}
