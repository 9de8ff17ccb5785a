import { codeOf, misconfigured } from "./error.ts";
import { entryLine, type Field, listFields, type LogFields, serializeEntry } from "./journal.ts";
import { sunPath } from "./layout.ts";
import * as libc from "./libc.ts";
import { requireBun } from "./runtime.ts";

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
 * Returns whether stderr is connected to the journal: whether `JOURNAL_STREAM`, which systemd sets,
 * names the device and inode of descriptor 2 (systemd.exec(5)). False if stderr was redirected since,
 * or is closed. It tells a logger of your own whether to format for people or for the journal.
 */
export function stderrIsJournal(): boolean {
  requireBun();
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
 * Logs a message at once, with fields.
 *
 * If stderr is the journal, this is one entry, as sd_journal_send(3) makes it: newlines in the
 * message are kept, each field can be searched for (`journalctl ORDER_ID=4711`), and
 * `SYSLOG_IDENTIFIER` is the name of the script or executable unless you give another. It never
 * waits: an entry for which the journal has no room is dropped.
 *
 * Elsewhere it is one line on stderr: the message, then ` NAME=value` for each field. Control
 * characters, newlines too, become spaces. A journal that cannot be reached (without FFI, as under
 * `MemoryDenyWriteExecute=yes`, without a free descriptor, or without `AF_UNIX`) gets that line on
 * stderr, with `<level>` before it (sd-daemon(3)).
 *
 * Limitations: no code location and no `SyslogIdentifier=` of the unit: give `CODE_FILE` and
 * `SYSLOG_IDENTIFIER` as fields. The journal drops an entry of more than 1,024 values, or 768 MB in
 * one of them, and does not say so. It looks up the unit of an entry when it reads it: if the process
 * has ended by then, the entry is not in `journalctl --unit`. A line waits for room if stderr blocks.
 *
 * @param level How serious it is: 0 to 7, smaller is worse.
 * @param message Text for people, of one or more lines.
 * @param fields What belongs to it, by name.
 * @returns Whether it was written: false if the journal had no room, or stderr is closed or full.
 * @throws {ActivationError} (78) if the level is none, a field's name is not allowed, or a value
 *   is of another type. Nothing else throws.
 *
 * @example
 * ```ts
 * log(LogLevel.warning, "payment refused", { ORDER_ID: 4711, REASON: ["limit", "country"] });
 * ```
 */
export function log(level: LogLevel, message: string, fields: LogFields = {}): boolean {
  requireBun();
  if (!Object.values(LogLevel).includes(level))
    throw misconfigured(`cannot log at level ${level}: give one of LogLevel, 0 to 7`);
  const given = listFields(fields);
  if (stderrIsJournal()) {
    const isNamed = given.some(([name]) => name === "SYSLOG_IDENTIFIER");
    const name: Field[] = isNamed ? [] : [["SYSLOG_IDENTIFIER", programName()]];
    const entry = serializeEntry([["MESSAGE", message], ["PRIORITY", level], ...name, ...given]);
    const written = sendEntry(entry);
    if (written !== undefined) return written;
  }
  return logLine(level, message, given);
}

/**
 * Writes an entry as a line to stderr, with `<level>` before it for the journal, which knows the unit
 * of that even if the process has ended.
 */
export function logLine(level: LogLevel, message: string, fields: readonly Field[] = []): boolean {
  const { writeSync } = process.getBuiltinModule("node:fs");
  const prefix = stderrIsJournal() ? `<${level}>` : "";
  const line = `${prefix}${entryLine(message, fields)}\n`;
  try {
    return writeSync(2, line) === Buffer.byteLength(line);
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
    try {
      libc.sendDatagram(socket, to, entry);
    } catch (error) {
      // Too long for a datagram: then an empty one goes, with a file that holds the entry.
      if (!["EMSGSIZE", "ENOBUFS"].includes(codeOf(error))) throw error;
      const file = opened.adopt(libc.memoryFile("journal-entry"), libc.close);
      process.getBuiltinModule("node:fs").writeFileSync(file, entry);
      libc.seal(file);
      libc.sendDatagram(socket, to, new Uint8Array(), [file]);
    }
    return true;
  } catch (error) {
    // Of descriptors, no more can wait to be received than a process may have open.
    return ["EAGAIN", "ETOOMANYREFS"].includes(codeOf(error)) ? false : undefined;
  }
}

/** The name of the script, or of the executable that it was compiled to. */
function programName(): string {
  // In an executable, Bun.main has the name that it was built with, and execPath ends in " (deleted)"
  // once an upgrade has replaced the file.
  const path = Bun.isStandaloneExecutable ? process.argv0 : Bun.main;
  return path.slice(path.lastIndexOf("/") + 1);
}
