/* Sockets of every kind, as raw descriptors, for the tests to pass and to look at. */
import { dlopen, ptr, read } from "bun:ffi";

export const AF_UNIX = 1;
export const AF_INET = 2;
export const AF_INET6 = 10;
export const SOCK_STREAM = 1;
export const SOCK_DGRAM = 2;
export const SOCK_SEQPACKET = 5;

const SOCK_CLOEXEC = 0o2000000;
const SOCK_NONBLOCK = 0o4000;
const MSG_DONTWAIT = 0x40;
const MSG_CMSG_CLOEXEC = 0x40000000;
const EAGAIN = 11;

const { symbols: libc } = dlopen("libc.so.6", {
  __errno_location: { args: [], returns: "ptr" },
  accept4: { args: ["i32", "ptr", "ptr", "i32"], returns: "i32" },
  bind: { args: ["i32", "buffer", "u32"], returns: "i32" },
  close: { args: ["i32"], returns: "i32" },
  connect: { args: ["i32", "buffer", "u32"], returns: "i32" },
  dup2: { args: ["i32", "i32"], returns: "i32" },
  epoll_create1: { args: ["i32"], returns: "i32" },
  fcntl: { args: ["i32", "i32", "i32"], returns: "i32" },
  getsockname: { args: ["i32", "buffer", "buffer"], returns: "i32" },
  getsockopt: { args: ["i32", "i32", "i32", "buffer", "buffer"], returns: "i32" },
  listen: { args: ["i32", "i32"], returns: "i32" },
  open: { args: ["cstring", "i32"], returns: "i32" },
  pipe2: { args: ["buffer", "i32"], returns: "i32" },
  read: { args: ["i32", "buffer", "u64"], returns: "i64" },
  recvmsg: { args: ["i32", "buffer", "i32"], returns: "i64" },
  setsockopt: { args: ["i32", "i32", "i32", "buffer", "u32"], returns: "i32" },
  socket: { args: ["i32", "i32", "i32"], returns: "i32" },
  socketpair: { args: ["i32", "i32", "i32", "buffer"], returns: "i32" },
});

function errno(): number {
  const at = libc.__errno_location();
  return at === null ? 0 : read.i32(at);
}

function check(call: string, result: number | bigint): number {
  if (result < 0) throw new Error(`${call} failed with errno ${errno()}`);
  return Number(result);
}

/** Closes a descriptor. */
export function close(fd: number): void {
  check("close", libc.close(fd));
}

/** An open file, with the flags of open(2). */
export function open(path: string, flags: number): number {
  return check("open", libc.open(path, flags | SOCK_CLOEXEC));
}

/** The two ends of a pipe: the one to read, the one to write. */
export function pipe(): [number, number] {
  const ends = new Int32Array(2);
  check("pipe2", libc.pipe2(ends, SOCK_CLOEXEC));
  return [ends[0] ?? -1, ends[1] ?? -1];
}

/** An epoll instance. */
export function epoll(): number {
  return check("epoll_create1", libc.epoll_create1(SOCK_CLOEXEC));
}

export function socket(family: number, type: number): number {
  return check("socket", libc.socket(family, type | SOCK_CLOEXEC, 0));
}

/** Two connected sockets over AF_UNIX. */
export function socketPair(type = SOCK_STREAM): [number, number] {
  const ends = new Int32Array(2);
  check("socketpair", libc.socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends));
  return [ends[0] ?? -1, ends[1] ?? -1];
}

/** An address as a sockaddr: a path, `@name`, or a port on the loopback of a family. */
function sockaddr(address: string | { family: number; port: number }): Uint8Array {
  if (typeof address === "string") {
    const path = new TextEncoder().encode(address);
    if (path[0] === 0x40) path[0] = 0;
    return Uint8Array.of(AF_UNIX, 0, ...path);
  }
  const { family, port } = address;
  const head = [family, 0, port >> 8, port & 255];
  if (family === AF_INET) return Uint8Array.of(...head, 127, 0, 0, 1, ...Array(8).fill(0));
  const mapped = [...Array(10).fill(0), 255, 255, 127, 0, 0, 1];
  const loopback = hasIPv6 ? [...Array(15).fill(0), 1] : mapped;
  return Uint8Array.of(...head, 0, 0, 0, 0, ...loopback, 0, 0, 0, 0);
}

/** fe80::1 on the first interface, as a sockaddr: an address of one link. */
const LINK_LOCAL = Uint8Array.fromHex(`0a00${"0".repeat(12)}fe80${"0".repeat(27)}101000000`);

/**
 * A socket bound to a path, to an address of one link that need not be there, or to a port of the
 * loopback: a free one if none is given.
 */
export function bound(family: number, type: number, at: string | number = 0): number {
  const fd = socket(family, type);
  let address = sockaddr(typeof at === "string" ? at : { family, port: at });
  if (at === "link") {
    const IPV6_FREEBIND = 78;
    check("setsockopt", libc.setsockopt(fd, 41, IPV6_FREEBIND, Int32Array.of(1), 4));
    address = LINK_LOCAL;
  }
  try {
    check("bind", libc.bind(fd, address, address.length));
    return fd;
  } catch (error) {
    close(fd);
    throw error;
  }
}

/** A socket that listens, with a backlog, where {@link bound} binds it. */
export function listening(
  family: number,
  backlog: number,
  at?: string,
  type = SOCK_STREAM,
): number {
  const fd = bound(family, type, at);
  check("listen", libc.listen(fd, backlog));
  return fd;
}

/** A socket that listens on a free port of every address, over IPv4 as well. */
export function listeningOnAll(): number {
  const fd = socket(AF_INET6, SOCK_STREAM);
  const IPV6_V6ONLY = 26;
  check("setsockopt", libc.setsockopt(fd, 41, IPV6_V6ONLY, Int32Array.of(0), 4));
  const address = Uint8Array.of(AF_INET6, ...Array(27).fill(0));
  check("bind", libc.bind(fd, address, address.length));
  check("listen", libc.listen(fd, 37));
  return fd;
}

/** The port that a socket over IPv4 or IPv6 is bound to. */
export function portOf(fd: number): number {
  const name = new Uint8Array(128);
  check("getsockname", libc.getsockname(fd, name, Uint32Array.of(name.length)));
  return new DataView(name.buffer).getUint16(2);
}

/** Whether there is an ::1: many containers have none. */
export let hasIPv6 = true;
try {
  close(bound(AF_INET6, SOCK_STREAM));
} catch {
  hasIPv6 = false;
}

/** The loopback of IPv6, or that of IPv4 as its sockets have it. */
export const LOOPBACK6 = hasIPv6 ? "::1" : "::ffff:127.0.0.1";

/** A socket connected to a path or to a port of the loopback; undefined where it would block. */
export function connected(
  to: string | { family: number; port: number },
  type = SOCK_STREAM,
): number | undefined {
  const family = typeof to === "string" ? AF_UNIX : to.family;
  // Over AF_UNIX a full backlog is EAGAIN, where a blocking call would wait.
  const fd = socket(family, family === AF_UNIX ? type | SOCK_NONBLOCK : type);
  const address = sockaddr(to);
  if (libc.connect(fd, address, address.length) === 0) return fd;
  const error = errno();
  close(fd);
  if (error === EAGAIN) return undefined;
  throw new Error(`connect failed with errno ${error}`);
}

export function accept(fd: number): number {
  return check("accept4", libc.accept4(fd, null, null, SOCK_CLOEXEC));
}

/** The two ends of a TCP connection over the loopback. */
export function tcpPair(family = AF_INET): [client: number, accepted: number] {
  const listener = listening(family, 1);
  const client = connected({ family, port: portOf(listener) }) ?? -1;
  const accepted = accept(listener);
  close(listener);
  return [client, accepted];
}

/** Reads from a descriptor without waiting. Returns nothing at the end of file, too. */
export function peek(fd: number): string {
  const bytes = new Uint8Array(new ArrayBuffer(4096));
  setNonBlocking(fd);
  const length = Number(libc.read(fd, bytes, BigInt(bytes.length)));
  return new TextDecoder().decode(bytes.subarray(0, Math.max(length, 0)));
}

/** Closes a TCP socket with a reset. */
export function reset(fd: number): void {
  check("setsockopt", libc.setsockopt(fd, 1, 13, Int32Array.of(1, 0), 8));
  close(fd);
}

/** A field of TCP_INFO. */
function tcpInfo(fd: number, offset: number): number {
  const info = new Uint8Array(104);
  check("getsockopt", libc.getsockopt(fd, 6, 11, info, Uint32Array.of(info.length)));
  return new DataView(info.buffer).getUint32(offset, true);
}

/** The backlog of a listening TCP socket: tcpi_sacked. */
export function backlogOf(fd: number): number {
  return tcpInfo(fd, 28);
}

/** The number of connections in the queue of a listening TCP socket: tcpi_unacked. */
export function queueOf(fd: number): number {
  return tcpInfo(fd, 24);
}

/** Another descriptor of the same file. */
export function duplicate(fd: number): number {
  const F_DUPFD_CLOEXEC = 1030;
  return check("fcntl", libc.fcntl(fd, F_DUPFD_CLOEXEC, 0));
}

/** Makes standard input of this process a duplicate of `fd`, or closes it, until it is disposed of. */
export function asStdin(fd: number | undefined): Disposable {
  const before = duplicate(0);
  if (fd === undefined) close(0);
  else check("dup2", libc.dup2(fd, 0));
  return {
    [Symbol.dispose]() {
      check("dup2", libc.dup2(before, 0));
      close(before);
    },
  };
}

export function isOpen(fd: number): boolean {
  return libc.fcntl(fd, 1, 0) >= 0;
}

/** The seals of a file in memory: F_GET_SEALS. */
export function seals(fd: number): number {
  return check("fcntl", libc.fcntl(fd, 1034, 0));
}

export function setNonBlocking(fd: number): void {
  check("fcntl", libc.fcntl(fd, 4, SOCK_NONBLOCK));
}

/** Blocking, as systemd passes a socket. */
export function setBlocking(fd: number): void {
  check("fcntl", libc.fcntl(fd, 4, 0));
}

export function isNonBlocking(fd: number): boolean {
  return (check("fcntl", libc.fcntl(fd, 3, 0)) & SOCK_NONBLOCK) !== 0;
}

export function closesOnExec(fd: number): boolean {
  return (check("fcntl", libc.fcntl(fd, 1, 0)) & 1) !== 0;
}

export function clearCloseOnExec(fd: number): void {
  check("fcntl", libc.fcntl(fd, 2, 0));
}

export function setCloseOnExec(fd: number): void {
  check("fcntl", libc.fcntl(fd, 2, 1));
}

/** One datagram as it arrived. */
export interface Datagram {
  readonly text: string;
  /** Descriptors that came with it (SCM_RIGHTS), to be closed by the receiver. */
  readonly fds: readonly number[];
  /** Its sender (SCM_CREDENTIALS), if the receiver has asked for it: process, user and group. */
  readonly sender: readonly number[];
}

/** Has every datagram come with its sender. */
export function passCredentials(fd: number): void {
  check("setsockopt", libc.setsockopt(fd, 1, 16, Int32Array.of(1), 4));
}

/** The next datagram that is there, if any. */
export function receive(fd: number): Datagram | undefined {
  const payload = new Uint8Array(new ArrayBuffer(65536));
  const control = new Uint8Array(new ArrayBuffer(2048));
  const iovec = BigUint64Array.of(BigInt(ptr(payload)), BigInt(payload.length));
  const message = new BigUint64Array(7);
  message.set([BigInt(ptr(iovec)), 1n, BigInt(ptr(control)), BigInt(control.length)], 2);
  const length = libc.recvmsg(fd, message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (length < 0) {
    if (errno() !== EAGAIN) check("recvmsg", length);
    return undefined;
  }
  const text = new TextDecoder().decode(payload.subarray(0, Number(length)));
  const fds: number[] = [];
  const sender: number[] = [];
  // Messages of cmsg(3): each a header of 16 bytes, its length first and its type last, and data.
  const view = new DataView(control.buffer, 0, Number(message[5]));
  for (let at = 0; at < view.byteLength;) {
    const size = Number(view.getBigUint64(at, true));
    const values = view.getInt32(at + 12, true) === 1 ? fds : sender;
    for (let data = 16; data < size; data += 4) values.push(view.getInt32(at + data, true));
    at += (size + 7) & ~7;
  }
  return { text, fds, sender };
}
