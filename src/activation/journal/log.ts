import { codeOf } from "../error.ts";
import { perProcess } from "../hot.ts";
import { entryLine, type Field, listFields, type LogFields, serializeEntry } from "./entry.ts";
import { sunPath } from "../linux/layout.ts";
import * as libc from "../linux/libc.ts";

/** The levels of sd-daemon(3), which are those of syslog(3). */
export const LogLevel = {
  emergency: 0,
  alert: 1,
  critical: 2,
  error: 3,
  warning: 4,
  notice: 5,
  info: 6,
  debug: 7,
} as const;

export type LogLevel = (typeof LogLevel)[keyof typeof LogLevel];

/** Where the journal listens (systemd-journald.service(8)). */
const JOURNAL_SOCKET = "/run/systemd/journal/socket";

/**
 * Returns whether stderr is the stream of the journal that systemd names in `JOURNAL_STREAM`
 * (systemd.exec(5)). A logger of your own learns from it whether to format for people or for the
 * journal.
 *
 * @returns Whether `JOURNAL_STREAM` names the device and inode of descriptor 2. It is false if stderr
 *   was redirected since, or is closed.
 */
export function stderrIsJournal(): boolean {
  const stream = process.env["JOURNAL_STREAM"];
  if (stream === undefined) return false;
  const { fstatSync } = process.getBuiltinModule("node:fs");
  try {
    const { dev, ino } = fstatSync(2, { bigint: true });
    return stream === `${dev}:${ino}`;
  } catch {
    // A closed stderr is not the journal.
    return false;
  }
}

/**
 * The longest wait, in milliseconds. A service with `WatchdogSec=10` survives it. On a busy machine one
 * process loses none of 20,000 entries in a row. Four processes that write 5,000 each at once lose up to 774
 * each with one second, and none with two.
 */
const LONGEST_WAIT = 2000;
/** In milliseconds: after so long without a wait, the next one may take the longest time again. */
const RECOVERY = 4000;

const kept = perProcess("log", () => ({
  /** How many entries were lost since the last that was written. */
  lost: 0,
  /** Whether only a part of a line was written. */
  isCut: false,
  /** How much of {@link LONGEST_WAIT} was left, and when that was. */
  patience: LONGEST_WAIT,
  counted: 0,
  /** Whether the last entry was lost. */
  isStuck: false,
}));

/**
 * Logs a message at once, with fields.
 *
 * If stderr is the journal, `log` sends it one entry, like sd_journal_send(3). Newlines in the message
 * are kept. You can search for each field (`journalctl ORDER_ID=4711`). `SYSLOG_IDENTIFIER` is the
 * name of the script or executable unless you give another.
 *
 * If stderr is not the journal, `log` writes one line to it: the message, then ` NAME=value` for each
 * field. In the message, a space replaces each run of characters that act on a terminal: control
 * characters (also newlines and U+0080 to U+009F), other separators of lines, and characters that
 * reverse the text after them. A value with such characters is quoted and escaped as in JSON. If the
 * journal cannot be reached (without FFI, without a free descriptor, or without `AF_UNIX`), that
 * line goes to stderr with `<level>` before it (sd-daemon(3)).
 *
 * If the journal is full, or stderr is non-blocking and full, `log` waits for room: two seconds a call at
 * most, and half of the time over many calls. An entry that finds no room in that time is lost. As
 * long as there is no room, later entries are lost without a wait. After the next entry that is
 * written, a warning says how many were lost.
 *
 * Limitations:
 *
 * - It adds no code location, and does not know `SyslogIdentifier=` of the unit: give `CODE_FILE` and
 *   `SYSLOG_IDENTIFIER` as fields.
 * - The journal drops an entry of more than 1,024 values, or with a value of more than 768 MB, and
 *   does not say so.
 * - The journal drops entries beyond `LogRateLimitBurst=`, and says so.
 * - The journal looks up the unit of an entry when it reads the entry. If the process has ended by
 *   then, `journalctl --unit` does not show the entry.
 * - If stderr is blocking, a line waits for room without a limit.
 * - Nobody reports the entries that a process loses last. Each Worker counts its own.
 *
 * Only a wrong argument makes it throw.
 *
 * @param level The severity: 0 to 7, smaller is worse.
 * @param message Text for people, of one or more lines.
 * @param fields Further fields of the entry, by name.
 * @returns Whether the entry was written. It is false if there was no room, or if stderr is closed.
 * @throws {RangeError} if the level is a number that is not one of {@link LogLevel}.
 * @throws {TypeError} if the level is not a number, a field's name is not allowed, or a value has
 *   another type.
 *
 * @example
 * ```ts
 * log(LogLevel.warning, "payment refused", { ORDER_ID: 4711, REASON: ["limit", "country"] });
 * ```
 */
export function log(level: LogLevel, message: string, fields: LogFields = {}): boolean {
  if (!Object.values(LogLevel).includes(level)) {
    const text = `cannot log at level ${level}: give one of LogLevel, 0 to 7`;
    throw typeof level === "number" ? new RangeError(text) : new TypeError(text);
  }
  const given = listFields(fields);
  if (!write(level, message, given)) {
    kept.lost++;
    return false;
  }
  // Not before the entry, because there may be room for one of them only.
  const loss = `log entries were lost, because the journal or stderr was full: ${kept.lost}`;
  if (kept.lost > 0 && write(LogLevel.warning, loss)) kept.lost = 0;
  return true;
}

function write(level: LogLevel, message: string, fields: readonly Field[] = []): boolean {
  if (stderrIsJournal()) {
    const isNamed = fields.some(([name]) => name === "SYSLOG_IDENTIFIER");
    const name: Field[] = isNamed ? [] : [["SYSLOG_IDENTIFIER", programName()]];
    const entry = serializeEntry([["MESSAGE", message], ["PRIORITY", level], ...name, ...fields]);
    const written = sendEntry(entry);
    if (written !== undefined) return written;
  }
  return logLine(level, message, fields);
}

/**
 * Writes an entry as a line to stderr, with `<level>` before it for the journal, which knows the unit
 * of that even if the process has ended.
 */
export function logLine(level: LogLevel, message: string, fields: readonly Field[] = []): boolean {
  const { writeSync } = process.getBuiltinModule("node:fs");
  const prefix = (kept.isCut ? "\n" : "") + (stderrIsJournal() ? `<${level}>` : "");
  const line = Buffer.from(`${prefix}${entryLine(message, fields)}\n`);
  try {
    for (let done = 0; done < line.length;) {
      const written = patiently(["EAGAIN"], () => writeSync(2, line, done));
      if (written === undefined) return false;
      done += written;
      kept.isCut = done < line.length;
    }
    return true;
  } catch {
    // There is nowhere left to report this.
    return false;
  }
}

/** Returns whether the journal had room for an entry; undefined if it cannot be reached. */
export function sendEntry(entry: Uint8Array, path = JOURNAL_SOCKET): boolean | undefined {
  const to = sunPath(path);
  try {
    using opened = new DisposableStack();
    const socket = opened.adopt(libc.datagramSocket(), libc.close);
    const send = (codes: readonly string[], bytes: Uint8Array, fds?: readonly number[]) =>
      patiently(codes, () => {
        libc.sendDatagram(socket, to, bytes, fds);
        return true;
      }) ?? false;
    try {
      return send(["EAGAIN"], entry);
    } catch (error) {
      // Too long for a datagram: then an empty one goes, with a file that holds the entry.
      if (!["EMSGSIZE", "ENOBUFS"].includes(codeOf(error))) throw error;
    }
    const file = opened.adopt(libc.memoryFile("journal-entry"), libc.close);
    process.getBuiltinModule("node:fs").writeFileSync(file, entry);
    libc.seal(file);
    // Descriptors that wait to be received are limited, to the number that a process may have open.
    return send(["EAGAIN", "ETOOMANYREFS"], new Uint8Array(), [file]);
  } catch {
    return undefined;
  }
}

/**
 * Calls again each millisecond while that fails with one of these codes, because there is no room. If
 * there was none for the entry before, it calls only once: a journal that stands still stops a
 * program once, and not at each entry.
 *
 * @returns What the call returns; undefined if there was no room in time.
 */
function patiently<T>(codes: readonly string[], call: () => T): T | undefined {
  for (;;) {
    try {
      const result = call();
      kept.isStuck = false;
      return result;
    } catch (error) {
      if (!codes.includes(codeOf(error))) throw error;
    }
    const now = performance.now();
    const recovered = ((now - kept.counted) * LONGEST_WAIT) / RECOVERY;
    kept.patience = Math.min(kept.patience + recovered, LONGEST_WAIT);
    kept.counted = now;
    kept.isStuck ||= kept.patience < 1;
    if (kept.isStuck) return undefined;
    Bun.sleepSync(1);
    kept.counted = performance.now();
    kept.patience -= kept.counted - now;
  }
}

/** The name of the script, or of the executable that it was compiled to. */
function programName(): string {
  // In an executable, Bun.main has the name that it was built with, and execPath ends in " (deleted)"
  // once an upgrade has replaced the file.
  const path = Bun.isStandaloneExecutable ? process.argv0 : Bun.main;
  return path.slice(path.lastIndexOf("/") + 1);
}
