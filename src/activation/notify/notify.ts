import { isName, takeVariable } from "../environment.ts";
import { ActivationError, codeOf, misconfigured, quote } from "../error.ts";
import { perProcess } from "../hot.ts";
import { LONGEST_PATH, SCM_MAX_FD, sunPath } from "../linux/layout.ts";
import * as libc from "../linux/libc.ts";
import { log, LogLevel } from "../journal/log.ts";

/** The assignments of sd_notify(3), sent in one datagram. */
export interface Assignments {
  /** `READY=1`: start-up, or a reload, is finished. */
  readonly ready?: true;
  /** `RELOADING=1`, with `MONOTONIC_USEC=` of this moment, as `Type=notify-reload` wants it. */
  readonly reloading?: true;
  /** `STOPPING=1`: shutdown has begun. */
  readonly stopping?: true;
  /** `STATUS=`: one line for people, as `systemctl status` shows it. */
  readonly status?: string;
  /** `NOTIFYACCESS=`: from whom notifications are accepted from now on. */
  readonly notifyAccess?: "none" | "main" | "exec" | "all";
  /** `ERRNO=`: the errno that the service fails with. */
  readonly errno?: number;
  /** `BUSERROR=`: the D-Bus error that it fails with. */
  readonly busError?: string;
  /** `VARLINKERROR=`: the Varlink error that it fails with. */
  readonly varlinkError?: string;
  /** `EXIT_STATUS=`: the exit status of the service (in virtual machines and containers). */
  readonly exitStatus?: number;
  /** `MAINPID=`: the main process, if it is not the one that was started. */
  readonly mainPid?: number;
  /** `MAINPIDFDID=`: the id of its pidfd, beside `mainPid`. */
  readonly mainPidfdId?: bigint;
  /** `MAINPIDFD=1`: the one descriptor sent along is a pidfd of the main process. */
  readonly mainPidfd?: true;
  /** `WATCHDOG=1`: a sign of life; `WATCHDOG=trigger`: act as if there had been none in time. */
  readonly watchdog?: true | "trigger";
  /** `WATCHDOG_USEC=`: a new watchdog interval, in microseconds. */
  readonly watchdogUsec?: number;
  /** `EXTEND_TIMEOUT_USEC=`: microseconds from now in which the next one or the phase's end comes. */
  readonly extendTimeoutUsec?: number;
  /** `FDSTORE=1`: keep the descriptors sent along in the descriptor store. */
  readonly fdStore?: true;
  /** `FDSTOREREMOVE=1`: drop the stored descriptors named `fdName`. */
  readonly fdStoreRemove?: true;
  /** `FDNAME=`: the name to store or drop under: 1 to 255 printable ASCII characters, no colon. */
  readonly fdName?: string;
  /** `FDPOLL=0`: keep stored descriptors even when they hang up or fail. */
  readonly fdPoll?: false;
  /** `RESTART_RESET=1`: count restarts from zero again (`RestartSteps=`). */
  readonly restartReset?: true;
  /** Assignments of your own: names begin with `X_`. */
  readonly custom?: { readonly [name: `X_${string}`]: string };
}

/** How to send a notification. */
export interface NotifyOptions {
  /** The descriptors to send along, at most 253. They stay open in this process. */
  readonly fds?: readonly number[];
  /**
   * The process to send for, as in sd_pid_notify(3). Another process than this one needs
   * CAP_SYS_ADMIN.
   */
  readonly pid?: number;
}

/** In bytes: systemd reads no more of a notification, and drops a longer one whole. */
const LONGEST_NOTIFICATION = 4096;
/** The range of process ids, for a message. */
const PID = "a process id, from 1 on";
/** How long to wait for room in the queue of systemd, in milliseconds. */
const SEND_TIMEOUT = 100;

interface Kept {
  /** The address of systemd. */
  address?: string | undefined;
  /** The socket from which notifications are sent. */
  socket?: number;
  /** Whether the last notification failed, and that was logged. */
  isUnheard?: boolean;
  /** Whether the queue of systemd was full for as long as a notification waits. */
  isFull?: boolean;
  /** Whether `READY=1` was sent. */
  isReady?: boolean;
}

const kept = perProcess<Kept>("notify", () => ({}));

/** Returns the address of systemd. The first call removes it from `process.env`. */
function notifySocket(): string | undefined {
  return (kept.address = takeVariable("NOTIFY_SOCKET") ?? kept.address);
}

/**
 * Returns whether there is a systemd to notify. Like {@link notify}, it removes `NOTIFY_SOCKET` from
 * `process.env`.
 *
 * @returns Whether `NOTIFY_SOCKET` was set. It is false in a Worker.
 */
export function notifyEnabled(): boolean {
  return notifySocket() !== undefined;
}

/** Opens the socket for notifications while a descriptor is free, if there is a systemd to notify. */
export function keepNotifySocket(): void {
  if (!notifyEnabled()) return;
  try {
    kept.socket ??= libc.datagramSocket();
  } catch {
    // The first notification tries again, and logs why it fails.
  }
}

/**
 * Sends a notification to systemd, like sd_notify(3), sd_pid_notify(3) and sd_pid_notify_with_fds(3).
 * The first call removes `NOTIFY_SOCKET` from `process.env`, so that children do not notify in the
 * name of this process (give `Bun.spawn` `env: process.env`).
 *
 * A notification that cannot be sent does not end the program. Only the first failure is logged, as a
 * warning. After a success, the next failure is logged again. Sending fails if `NOTIFY_SOCKET` is
 * malformed, if nobody receives there, if systemd has no room, if this process may not send for `pid`, or
 * without FFI. It fails without a free descriptor, too, unless `serve` or `listen` was called before.
 *
 * Limitations: `notify` does not wait until systemd has handled the message: see
 * {@link notifyBarrier}. If the queue of systemd is full, it waits up to 100 milliseconds for room, and does
 * not wait again until a notification was sent. (sd_notify(3) waits for ever.) It does not support
 * `AF_VSOCK` addresses.
 *
 * @param notification The assignments to send: at least one field.
 * @param options The descriptors to send along, and the process to send for: see
 *   {@link NotifyOptions}.
 * @returns Whether it was sent. If `NOTIFY_SOCKET` is not set, and in a Worker, it is false and
 *   nothing is logged.
 * @throws {TypeError} if a value has the wrong type or cannot be sent, or if a field lacks another
 *   that it needs.
 * @throws {RangeError} if a number is out of range, if a descriptor is not open, if there are more
 *   than 253 descriptors, or if the notification is longer than the 4,096 bytes that systemd reads.
 *
 * @example
 * ```ts
 * notify({ ready: true, status: "Listening on 127.0.0.1:4000" });
 * ```
 */
export function notify(notification: Assignments, options: NotifyOptions = {}): boolean {
  const { fds = [], pid } = options;
  if (notification.fdStore && fds.length === 0)
    throw new TypeError(
      "cannot send FDSTORE=1 without a descriptor: give { fds: [fd] } as the second argument",
    );
  if (notification.fdStoreRemove && notification.fdName === undefined)
    throw new TypeError("cannot send FDSTOREREMOVE=1 without a name: give fdName");
  if (notification.mainPidfd && fds.length !== 1)
    throw new TypeError(
      "cannot send MAINPIDFD=1 without its descriptor: give { fds: [fd] } as the second argument",
    );
  if (notification.mainPidfdId !== undefined && notification.mainPid === undefined)
    throw new TypeError("cannot send MAINPIDFDID= without a process id: give mainPid");
  if (fds.length > SCM_MAX_FD)
    throw new RangeError(
      `cannot send ${fds.length} descriptors at once: give at most ${SCM_MAX_FD}`,
    );
  for (const fd of fds) if (!libc.isDescriptor(fd)) throw notOpen(fd);
  if (pid !== undefined && !isPid(pid)) {
    const Mistake = mistakeOf(pid);
    throw new Mistake(`cannot send for process ${pid}: give ${PID}`);
  }
  const sent = attempt(() => send(serialize(notification), options)) ?? false;
  if (sent && notification.ready && (pid ?? process.pid) === process.pid) kept.isReady = true;
  return sent;
}

/** Whether this process has sent `READY=1`. */
export function wasReady(): boolean {
  return kept.isReady ?? false;
}

/** Sends a notification. Returns undefined after a failure, and logs it unless the one before failed too. */
export function attempt<T>(sending: () => T): T | undefined {
  try {
    const sent = sending();
    if (sent) kept.isUnheard = false;
    return sent;
  } catch (error) {
    if (!(error instanceof ActivationError)) throw error;
    if (!kept.isUnheard) {
      kept.isUnheard = true;
      const where = `NOTIFY_SOCKET ${quote(kept.address ?? "")}`;
      log(LogLevel.warning, `cannot notify systemd at ${where}: ${error.message}`);
    }
    return undefined;
  }
}

/**
 * Sends assignments as they are.
 *
 * @returns Whether there is a systemd to send them to.
 * @throws {ActivationError} (78) if the address is malformed; (71) if sending fails.
 */
export function send(state: string, { fds = [], pid }: NotifyOptions): boolean {
  const datagram = new TextEncoder().encode(state);
  if (datagram.length > LONGEST_NOTIFICATION)
    throw new RangeError(
      `the notification has ${datagram.length} bytes, and systemd reads at most ${LONGEST_NOTIFICATION}: shorten the status or the custom fields`,
    );
  const to = notifySocket();
  if (to === undefined) return false;
  const path = checkedPath(to);
  for (const fd of fds) if (libc.closesOnExec(fd) === undefined) throw notOpen(fd);
  for (let deadline: number | undefined; ;) {
    try {
      kept.socket ??= libc.datagramSocket();
      libc.sendDatagram(kept.socket, path, datagram, fds, pid);
      kept.isFull = false;
      return true;
    } catch (error) {
      if (codeOf(error) !== "EAGAIN") throw error;
      const now = performance.now();
      deadline ??= kept.isFull ? now : now + SEND_TIMEOUT;
      kept.isFull = now >= deadline;
      if (kept.isFull) throw error;
      Bun.sleepSync(1);
    }
  }
}

/** Returns the datagram for a notification: one assignment on each line. */
function serialize(notification: Assignments): string {
  let text = "";
  const add = (
    name: string,
    value: unknown,
    fits: boolean,
    wanted: string,
    Mistake: typeof TypeError | typeof RangeError = TypeError,
  ) => {
    if (value === undefined) return;
    if (!fits) throw new Mistake(`cannot send ${name}=${quote(String(value))}: give ${wanted}`);
    text += `${name}=${typeof value === "boolean" ? Number(value) : value}\n`;
  };
  const flag = (name: string, value: unknown, wanted = true) =>
    add(name, value, value === wanted, String(wanted));
  const count = (name: string, value: unknown) =>
    add(name, value, isCount(value), "a whole number from 0", mistakeOf(value));
  const line = (name: string, value: unknown) =>
    add(name, value, typeof value === "string" && !/[\n\0]/.test(value), "one line of text");

  flag("READY", notification.ready);
  flag("RELOADING", notification.reloading);
  if (notification.reloading && notifyEnabled())
    count("MONOTONIC_USEC", libc.monotonicMicroseconds());
  flag("STOPPING", notification.stopping);
  line("STATUS", notification.status);
  const { notifyAccess, mainPid, watchdog, fdName } = notification;
  const isAccess = ["none", "main", "exec", "all"].includes(notifyAccess ?? "");
  add("NOTIFYACCESS", notifyAccess, isAccess, "none, main, exec or all");
  count("ERRNO", notification.errno);
  line("BUSERROR", notification.busError);
  line("VARLINKERROR", notification.varlinkError);
  count("EXIT_STATUS", notification.exitStatus);
  add("MAINPID", mainPid, isPid(mainPid), PID, mistakeOf(mainPid));
  count("MAINPIDFDID", notification.mainPidfdId);
  flag("MAINPIDFD", notification.mainPidfd);
  if (watchdog === "trigger") line("WATCHDOG", watchdog);
  else flag("WATCHDOG", watchdog);
  count("WATCHDOG_USEC", notification.watchdogUsec);
  count("EXTEND_TIMEOUT_USEC", notification.extendTimeoutUsec);
  flag("FDSTORE", notification.fdStore);
  flag("FDSTOREREMOVE", notification.fdStoreRemove);
  const isNamed = typeof fdName === "string" && fdName !== "" && isName(fdName);
  add("FDNAME", fdName, isNamed, "1 to 255 printable ASCII characters, no colon");
  flag("FDPOLL", notification.fdPoll, false);
  flag("RESTART_RESET", notification.restartReset);
  for (const [name, value] of Object.entries(notification.custom ?? {})) {
    if (!/^X_[A-Z0-9_]+$/.test(name))
      throw new TypeError(`cannot send ${quote(name)}: give a name of X_ and then A-Z, 0-9 or _`);
    line(name, value);
  }
  if (text === "") throw new TypeError("cannot send an empty notification: set at least one field");
  return text;
}

function isCount(value: unknown): boolean {
  if (typeof value === "bigint") return value >= 0n && value < 1n << 64n;
  return Number.isSafeInteger(value) && Number(value) >= 0;
}

function isPid(pid = 0): boolean {
  return Number.isInteger(pid) && pid > 0 && pid <= 0x7fffffff;
}

/** Returns the class of the error for a value where a number is wanted: out of range, or of another type. */
function mistakeOf(value: unknown): typeof TypeError | typeof RangeError {
  return typeof value === "number" || typeof value === "bigint" ? RangeError : TypeError;
}

function notOpen(fd: number): Error {
  const Mistake = mistakeOf(fd);
  return new Mistake(`cannot send descriptor ${fd}: give the number of an open descriptor`);
}

function checkedPath(address: string): Uint8Array {
  if (address.startsWith("vsock")) throw misconfigured("AF_VSOCK is not supported: use AF_UNIX");
  if (!/^[@/]/.test(address))
    throw misconfigured("this is no address: set an absolute path, or @ and a name");
  const path = sunPath(address);
  if (path.length < 2 || path.length > LONGEST_PATH)
    throw misconfigured(`its path has ${path.length} bytes, but it needs 2 to ${LONGEST_PATH}`);
  return path;
}
