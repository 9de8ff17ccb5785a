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

/** How many entries were lost since the last that was written. */
const kept = perProcess("log", () => ({ lost: 0 }));

/** Where the journal listens (systemd-journald.service(8)). */
const JOURNAL_SOCKET = "/run/systemd/journal/socket";

/**
 * Returns whether stderr is connected to the journal: whether `JOURNAL_STREAM`, which systemd sets,
 * names the device and inode of descriptor 2 (systemd.exec(5)). False if stderr was redirected since,
 * or is closed. It tells a logger of your own whether to format for people or for the journal.
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
 * In milliseconds: the longest wait. A service that feeds a watchdog of ten seconds every five survives
 * it. On a busy machine one process loses none of 20,000 entries in a row. Four that write 5,000 each at
 * once lose up to 774 each with one second, and none with two.
 */
const PATIENCE = 2000;
/** In milliseconds: after so long without a wait, the next may be as long as that again. */
const RECOVERY = 4000;

/**
 * Logs a message at once, with fields.
 *
 * If stderr is the journal, this is one entry, as sd_journal_send(3) makes it: newlines in the
 * message are kept, each field can be searched for (`journalctl ORDER_ID=4711`), and
 * `SYSLOG_IDENTIFIER` is the name of the script or executable unless you give another.
 *
 * Elsewhere it is one line on stderr: the message, then ` NAME=value` for each field. Spaces replace all
 * that a terminal obeys: control characters (newlines and U+0080 to U+009F too), other separators of
 * lines, and what reverses the text after it. A journal that cannot be reached (without FFI, as under
 * `MemoryDenyWriteExecute=yes`, without a free descriptor, or without `AF_UNIX`) gets that line on
 * stderr, with `<level>` before it (sd-daemon(3)).
 *
 * If the journal is busy, or a stderr that is non-blocking is full, this blocks until there is room: for
 * two seconds at most, and in the long run for half of the time. An entry that finds no room in that
 * time is lost. As long as there is no room, later ones are lost without a wait. A warning after the
 * next entry that is written says how many were lost.
 *
 * Limitations: no code location and no `SyslogIdentifier=` of the unit: give `CODE_FILE` and
 * `SYSLOG_IDENTIFIER` as fields. The journal drops an entry of more than 1,024 values, or 768 MB in
 * one of them, and does not say so; it drops, and says so, what is beyond `LogRateLimitBurst=`. It looks
 * up the unit of an entry when it reads it: if the process has ended by then, the entry is not in
 * `journalctl --unit`. A line waits as long as it takes if stderr blocks. Nothing reports the
 * entries that a process loses last, and each Worker counts its own.
 *
 * @param level How serious it is: 0 to 7, smaller is worse.
 * @param message Text for people, of one or more lines.
 * @param fields Further fields of the entry, by name.
 * @returns Whether it was written: false if there was no room, or stderr is closed.
 * @throws {RangeError} if the level is a number that is none.
 * @throws {TypeError} if the level is no number, a field's name is not allowed, or a value is of another
 *   type. Nothing else throws.
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
  const prefix = stderrIsJournal() ? `<${level}>` : "";
  const line = Buffer.from(`${prefix}${entryLine(message, fields)}\n`);
  try {
    for (let done = 0; done < line.length;) {
      const written = patiently(["EAGAIN"], () => writeSync(2, line, done));
      if (written === undefined) return false;
      done += written;
    }
    return true;
  } catch {
    // There is nowhere left to say so.
    return false;
  }
}

/** Returns whether the journal had room for an entry; undefined if it cannot be reached. */
export function sendEntry(entry: Uint8Array, path = JOURNAL_SOCKET): boolean | undefined {
  const to = sunPath(path);
  try {
    using opened = new DisposableStack();
    const socket = opened.adopt(libc.datagramSocket(), libc.close);
    let file: number | undefined;
    const send = () => {
      if (file !== undefined) libc.sendDatagram(socket, to, new Uint8Array(), [file]);
      else libc.sendDatagram(socket, to, entry);
      return true;
    };
    try {
      return patiently(["EAGAIN"], send) ?? false;
    } catch (error) {
      // Too long for a datagram: then an empty one goes, with a file that holds the entry.
      if (!["EMSGSIZE", "ENOBUFS"].includes(codeOf(error))) throw error;
    }
    file = opened.adopt(libc.memoryFile("journal-entry"), libc.close);
    process.getBuiltinModule("node:fs").writeFileSync(file, entry);
    libc.seal(file);
    // Of descriptors, no more can wait to be received than a process may have open.
    return patiently(["EAGAIN", "ETOOMANYREFS"], send) ?? false;
  } catch {
    return undefined;
  }
}

/** What was left of {@link PATIENCE}, when that was, and whether the last entry was lost. */
let patience = PATIENCE;
let counted = 0;
let stuck = false;

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
      stuck = false;
      return result;
    } catch (error) {
      if (!codes.includes(codeOf(error))) throw error;
    }
    const now = performance.now();
    patience = Math.min(patience + ((now - counted) * PATIENCE) / RECOVERY, PATIENCE);
    counted = now;
    stuck ||= patience < 1;
    if (stuck) return undefined;
    Bun.sleepSync(1);
    counted = performance.now();
    patience -= counted - now;
  }
}

/** The name of the script, or of the executable that it was compiled to. */
function programName(): string {
  // In an executable, Bun.main has the name that it was built with, and execPath ends in " (deleted)"
  // once an upgrade has replaced the file.
  const path = Bun.isStandaloneExecutable ? process.argv0 : Bun.main;
  return path.slice(path.lastIndexOf("/") + 1);
}
