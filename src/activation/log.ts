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

/**
 * Writes a message to stderr at once, as one line: control characters in it, newlines too, become
 * spaces. Where stderr is the journal, `<N>` stands before it, from which the journal takes the
 * level (sd-daemon(3)).
 * A stderr that is closed or full is no error.
 */
export function log(level: LogLevel, message: string): void {
  const { fstatSync, writeSync } = process.getBuiltinModule("node:fs");
  try {
    const { dev, ino } = fstatSync(2, { bigint: true });
    const prefix = process.env["JOURNAL_STREAM"] === `${dev}:${ino}` ? `<${level}>` : "";
    writeSync(2, `${prefix}${message.replaceAll(/[\x00-\x1f\x7f]+/g, " ")}\n`);
  } catch {
    // There is nowhere left to say it.
  }
}
