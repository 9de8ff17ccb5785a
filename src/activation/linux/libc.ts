import { ActivationError, ExitStatus, messageOf } from "../error.ts";
import * as layout from "./layout.ts";
import { AF, O_CLOEXEC, SOCK, SOL_SOCKET } from "./layout.ts";
import { remedyForCall, whyNoLibc } from "./libc-errors.ts";
import { type FFI, runtime } from "../bun.ts";

/*
 * The calls to libc: no other file touches bun:ffi. The library is opened at the first call: a
 * process that makes none pays nothing, and runs without the JIT, which bun:ffi needs.
 */

/** A search for a descriptor of Bun ends at this number. The descriptors of Bun are among the first. */
export const SEARCH_LIMIT = 1 << 16;

/** The highest of the standard descriptors. Always open: Bun opens /dev/null there if it is not. */
export const STANDARD_ERROR = 2;

const O_NONBLOCK = 0o4000;
const IPPROTO_TCP = 6;
const TCP_INFO = 11;
const FIONREAD = 0x541b;
const TIOCOUTQ = 0x5411;
const F = { GETFD: 1, SETFD: 2, GETFL: 3, SETFL: 4, DUPFD_CLOEXEC: 1030, ADD_SEALS: 1033 };
/** F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_WRITE: nothing can be changed any more. */
const F_SEAL_ALL = 0xf;
const FD_CLOEXEC = 1;
const MFD = { CLOEXEC: 1, ALLOW_SEALING: 2 };
const MSG = { DONTWAIT: 0x40, NOSIGNAL: 0x4000 };
const EPOLL_CTL = { add: 1, delete: 2, modify: 3 };
const RLIMIT_NOFILE = 7;
const CLOCK_MONOTONIC = 1;
const SYS_pidfd_open = 434;
/** Of errno(3). */
const E = { NOENT: 2, BADF: 9, NOTSOCK: 88, TOOMANYREFS: 109 };

function load() {
  try {
    // Not the module bun:ffi, which is made of Bun.FFI: see Start.
    const { dlopen, ptr, read } = runtime.FFI ?? (process.getBuiltinModule("bun:ffi") as FFI);
    // Every glibc program has mapped it by this name. For another name, Bun looks into the working directory.
    const library = dlopen("libc.so.6", {
      __errno_location: { args: [], returns: "ptr" },
      bind: { args: ["i32", "buffer", "u32"], returns: "i32" },
      clock_gettime: { args: ["i32", "buffer"], returns: "i32" },
      close: { args: ["i32"], returns: "i32" },
      dup3: { args: ["i32", "i32", "i32"], returns: "i32" },
      epoll_ctl: { args: ["i32", "i32", "i32", "buffer"], returns: "i32" },
      fcntl: { args: ["i32", "i32", "i32"], returns: "i32" },
      fstatfs: { args: ["i32", "buffer"], returns: "i32" },
      getenv: { args: ["buffer"], returns: "cstring" },
      getpeername: { args: ["i32", "buffer", "buffer"], returns: "i32" },
      getrlimit: { args: ["i32", "buffer"], returns: "i32" },
      getsockname: { args: ["i32", "buffer", "buffer"], returns: "i32" },
      getsockopt: { args: ["i32", "i32", "i32", "buffer", "buffer"], returns: "i32" },
      ioctl: { args: ["i32", "u64", "buffer"], returns: "i32" },
      memfd_create: { args: ["buffer", "u32"], returns: "i32" },
      open: { args: ["buffer", "i32"], returns: "i32" },
      // The sizes that these return are small here. As an i64, -1 would be a BigInt: see `check`.
      read: { args: ["i32", "buffer", "u64"], returns: "i32" },
      readlink: { args: ["buffer", "buffer", "u64"], returns: "i32" },
      sendmsg: { args: ["i32", "buffer", "i32"], returns: "i32" },
      socket: { args: ["i32", "i32", "i32"], returns: "i32" },
      socketpair: { args: ["i32", "i32", "i32", "buffer"], returns: "i32" },
      syscall: { args: ["i64", "i32", "u32"], returns: "i32" },
    });
    if (library instanceof Error) throw library;
    const { symbols } = library;
    const errno = symbols.__errno_location();
    return { ...symbols, address: ptr, errno: () => (errno === null ? 0 : read.i32(errno)) };
  } catch (cause) {
    throw new ActivationError(ExitStatus.systemCall, whyNoLibc(messageOf(cause)));
  }
}

let loaded: ReturnType<typeof load> | undefined;
function libc() {
  return (loaded ??= load());
}

/** Whether libc can be called: not without the JIT, which bun:ffi needs. */
export function canCallLibc(): boolean {
  try {
    libc();
    return true;
  } catch {
    return false;
  }
}

/**
 * Returns the result of a call; undefined if errno is one of those expected. Throws any other.
 *
 * Nothing may be allocated between the call and the look at errno, such as a rest parameter or a BigInt:
 * the collector opens a file then, and this fails if no descriptor is free.
 */
function check(call: string, result: number): number;
function check(call: string, result: number, one: number, other?: number): number | undefined;
function check(call: string, result: number, one?: number, other?: number): number | undefined {
  if (result >= 0) return result;
  const errno = libc().errno();
  if (errno === one || errno === other) return undefined;
  const { getSystemErrorMap } = process.getBuiltinModule("node:util");
  const unnamed = errno === E.TOOMANYREFS ? "ETOOMANYREFS" : `errno ${errno}`;
  const [code, text] = getSystemErrorMap().get(-errno) ?? [unnamed, "unknown error"];
  const message = `${call} failed, ${text} (${code})${remedyForCall(call, code)}`;
  throw new ActivationError(ExitStatus.systemCall, message, code);
}

/** Whether this can be a descriptor: bun:ffi cuts other numbers to 32 bits, 2^32 + 3 to 3. */
export function isDescriptor(fd: number): boolean {
  return Number.isInteger(fd) && fd >= 0 && fd <= 0x7fffffff;
}

export function close(fd: number): void {
  check("close", libc().close(fd));
}

/** Whether close-on-exec is set; undefined if the descriptor is not open. */
export function closesOnExec(fd: number): boolean | undefined {
  if (!isDescriptor(fd)) return undefined;
  const flags = check("fcntl", libc().fcntl(fd, F.GETFD, 0), E.BADF);
  return flags === undefined ? undefined : (flags & FD_CLOEXEC) !== 0;
}

export function setCloseOnExec(fd: number): void {
  check("fcntl", libc().fcntl(fd, F.SETFD, FD_CLOEXEC));
}

export function setNonBlocking(fd: number): void {
  const flags = check("fcntl", libc().fcntl(fd, F.GETFL, 0));
  check("fcntl", libc().fcntl(fd, F.SETFL, flags | O_NONBLOCK));
}

export function duplicate(fd: number): number {
  return check("fcntl", libc().fcntl(fd, F.DUPFD_CLOEXEC, 0));
}

/** dup3(2): makes `onto` refer to the same open file as `fd`, closing what it referred to before. */
export function replace(fd: number, onto: number): void {
  check("dup3", libc().dup3(fd, onto, O_CLOEXEC));
}

/** An option of SOL_SOCKET that is an int; undefined if `fd` is not an open socket. */
export function socketOption(fd: number, option: number): number | undefined {
  if (!isDescriptor(fd)) return undefined;
  const value = new Int32Array(1);
  const result = libc().getsockopt(fd, SOL_SOCKET, option, value, new Uint32Array([4]));
  return check("getsockopt", result, E.NOTSOCK, E.BADF) === undefined ? undefined : value[0];
}

/** The local address of a socket, as the bytes of a sockaddr; empty if `fd` is not an open socket. */
export function socketName(fd: number): Uint8Array {
  const address = new Uint8Array(layout.SOCKADDR_SIZE);
  const length = new Uint32Array([layout.SOCKADDR_SIZE]);
  const result = libc().getsockname(fd, address, length);
  return check("getsockname", result, E.NOTSOCK, E.BADF) === undefined
    ? new Uint8Array()
    : address.subarray(0, length[0]);
}

/** Whether a socket has a peer. After a reset it has none, and sockets of some families never have one. */
export function hasPeer(fd: number): boolean {
  const length = new Uint32Array([layout.SOCKADDR_SIZE]);
  return libc().getpeername(fd, new Uint8Array(layout.SOCKADDR_SIZE), length) === 0;
}

/** Whether a TCP socket that has no peer now had one once: true if it ever received a segment. */
export function wasConnected(fd: number): boolean {
  return tcpInfo(fd)[layout.TCPI.SEGS_IN] !== 0;
}

/** When a TCP connection last carried data each way, in milliseconds before now. */
export interface Talk {
  /** Since the peer's last data, or since the connection was made. */
  readonly heard: number;
  /** The same for our last data. */
  readonly said: number;
  /** How many segments with data the peer has sent. */
  readonly received: number;
  /** How many we have sent. */
  readonly sent: number;
}

/** Returns undefined if `fd` is not a TCP connection. */
export function talk(fd: number): Talk | undefined {
  const info = tcpInfo(fd);
  if (!info[layout.TCPI.SEGS_IN]) return undefined;
  const heard = info[layout.TCPI.LAST_DATA_RECV] ?? 0;
  const said = info[layout.TCPI.LAST_DATA_SENT] ?? 0;
  const received = info[layout.TCPI.DATA_SEGS_IN] ?? 0;
  const sent = info[layout.TCPI.DATA_SEGS_OUT] ?? 0;
  return { heard, said, received, sent };
}

/** Whether a connection has received something that was not read. */
export function hasUnread(fd: number): boolean {
  return isQueued(fd, FIONREAD);
}

/** Whether something was sent on a connection that the peer has not received. */
export function hasUnsent(fd: number): boolean {
  return isQueued(fd, TIOCOUTQ);
}

function isQueued(fd: number, request: number): boolean {
  const bytes = new Int32Array(1);
  // It fails for a connection that is being closed.
  return libc().ioctl(fd, request, bytes) === 0 && bytes[0] !== 0;
}

/** All zeros if `fd` has no TCP_INFO, for which there are several errors. */
function tcpInfo(fd: number): Uint32Array {
  const info = new Uint32Array(layout.TCPI.DATA_SEGS_OUT + 1);
  libc().getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, new Uint32Array([info.byteLength]));
  return info;
}

/** Replaces `onto` by a placeholder: a Unix stream socket with a name that the kernel chose. */
export function replaceByPlaceholder(onto: number): void {
  const fd = unixSocket(SOCK.STREAM);
  try {
    check("bind", libc().bind(fd, new Uint16Array([AF.UNIX]), 2));
    replace(fd, onto);
  } finally {
    close(fd);
  }
}

function unixSocket(type: number): number {
  return check("socket", libc().socket(AF.UNIX, type | SOCK.CLOEXEC, 0));
}

/** A socket for datagrams over AF_UNIX. */
export function datagramSocket(): number {
  return unixSocket(SOCK.DGRAM);
}

/** The two ends of a connection over AF_UNIX. */
export function socketPair(): [number, number] {
  const ends = new Int32Array(2);
  check("socketpair", libc().socketpair(AF.UNIX, SOCK.STREAM | SOCK.CLOEXEC, 0, ends));
  return [ends[0] ?? -1, ends[1] ?? -1];
}

/**
 * Returns the name of the open file behind a descriptor: `socket:[INODE]` for a socket, and nothing if
 * the descriptor is not open. This needs no free descriptor, and works under qemu-user, which does not know SO_COOKIE.
 */
export function identity(fd: number): string {
  const text = new Uint8Array(32);
  const path = new TextEncoder().encode(`/proc/self/fd/${fd}\0`);
  const length = check("readlink", libc().readlink(path, text, text.length), E.NOENT);
  return new TextDecoder().decode(text.subarray(0, length ?? 0));
}

/** How an epoll instance watches a descriptor: for its events, edge-triggered, and with its data. */
export interface Watch {
  readonly epoll: number;
  readonly fd: number;
  readonly events: number;
  readonly data: layout.EpollData;
}

/**
 * epoll_ctl(2). `modify` reports a descriptor that is ready once more. Returns whether the instance
 * watches the descriptor, or has watched it until now.
 */
export function epollControl(operation: keyof typeof EPOLL_CTL, to: Watch): boolean {
  const event = layout.epollEvent(to.events, to.data);
  const result = libc().epoll_ctl(to.epoll, EPOLL_CTL[operation], to.fd, event);
  return check("epoll_ctl", result, E.NOENT) !== undefined;
}

/** How many descriptors this process may have: each number is less than that. */
export function descriptorLimit(): number {
  // Only the low half of each number: the kernel allows less than 2^31 (fs.nr_open).
  const limit = new Uint32Array(4);
  check("getrlimit", libc().getrlimit(RLIMIT_NOFILE, limit));
  return limit[0] ?? 0;
}

/**
 * Returns how many more descriptors getrlimit(2) allows this process. Use it for `maxConnections` of
 * {@link listen}.
 *
 * Limitation: it counts from the lowest number that is free to the limit. Open descriptors in between
 * count as free.
 *
 * @returns At least 1. It can change at once, for example with the next client.
 * @throws {ActivationError} (71) if a system call fails, for example because no descriptor is free
 *   (`EMFILE`).
 */
export function freeDescriptors(): number {
  // The kernel assigns the lowest number that is free.
  const lowest = duplicate(STANDARD_ERROR);
  close(lowest);
  return descriptorLimit() - lowest;
}

/** A variable with which this process was started: not one of a `.env` file, which Bun adds. */
export function startVariable(name: string): string | undefined {
  return libc()
    .getenv(new TextEncoder().encode(`${name}\0`))
    ?.toString();
}

/** The text of a file of /proc, or undefined if there is none of that name. */
export function readProc(path: string): string | undefined {
  const name = new TextEncoder().encode(`${path}\0`);
  const fd = check("open", libc().open(name, O_CLOEXEC), E.NOENT);
  if (fd === undefined) return undefined;
  try {
    const page = new Uint8Array(4096);
    const decoder = new TextDecoder();
    for (let text = ""; ;) {
      // Another thread may have closed that descriptor meanwhile.
      const length = check("read", libc().read(fd, page, page.length), E.NOENT);
      if (length === undefined) return undefined;
      if (length === 0) return text;
      text += decoder.decode(page.subarray(0, length));
    }
  } finally {
    close(fd);
  }
}

/** Microseconds of CLOCK_MONOTONIC, which counts from the same moment in every process. */
export function monotonicMicroseconds(): bigint {
  const time = new BigInt64Array(2);
  check("clock_gettime", libc().clock_gettime(CLOCK_MONOTONIC, time));
  const [seconds = 0n, nanoseconds = 0n] = time;
  return seconds * 1_000_000n + nanoseconds / 1_000n;
}

/** The id of this process's pidfd; undefined if the kernel has none, or libc cannot be called. */
export function pidfdId(): number | undefined {
  // With no FFI, or no pidfd_open (before Linux 5.3, or filtered), LISTEN_PID alone decides.
  const fd = canCallLibc() ? libc().syscall(SYS_pidfd_open, process.pid, 0) : -1;
  if (fd < 0) return undefined;
  try {
    const filesystem = new BigInt64Array(16);
    check("fstatfs", libc().fstatfs(fd, filesystem));
    // Only on pidfs (Linux 6.9) has each process an inode of its own.
    if (filesystem[0] !== layout.PID_FS_MAGIC) return undefined;
    const [, id = ""] = readProc(`/proc/self/fdinfo/${fd}`)?.split("ino:\t") ?? [];
    return Number.parseInt(id, 10);
  } finally {
    close(fd);
  }
}

/**
 * Sends one datagram from the socket `fd` to the sun_path `path`, with duplicates of `fds` and for
 * the process `pid`. It does not wait for the receiver to have room (EAGAIN).
 */
export function sendDatagram(
  fd: number,
  path: Uint8Array,
  payload: Uint8Array,
  fds: readonly number[] = [],
  pid?: number,
): void {
  const { getuid, getgid } = process;
  const sender = pid === undefined ? [] : [pid, getuid?.() ?? 0, getgid?.() ?? 0];
  const control = layout.controlMessages(fds, sender);
  const datagram = layout.datagram(path, payload, control, libc().address);
  check("sendmsg", libc().sendmsg(fd, datagram, MSG.NOSIGNAL | MSG.DONTWAIT));
}

/** An empty file in memory. */
export function memoryFile(name: string): number {
  // Not MFD_NOEXEC_SEAL: journald takes a file with a fifth seal for unsealed in systemd 252.
  const flags = MFD.CLOEXEC | MFD.ALLOW_SEALING;
  return check("memfd_create", libc().memfd_create(Buffer.from(`${name}\0`), flags));
}

/** Seals a file in memory: nobody can change it any more. */
export function seal(fd: number): void {
  check("fcntl", libc().fcntl(fd, F.ADD_SEALS, F_SEAL_ALL));
}
