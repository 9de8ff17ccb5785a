import { afterEach, expect, mock, spyOn, test } from "bun:test";
import fs, { fstatSync } from "node:fs";

import { log, LogLevel } from "../../src/activation/index.ts";

afterEach(() => {
  mock.restore();
  delete process.env["JOURNAL_STREAM"];
});

/** What `log` writes to stderr. */
function written(level: LogLevel, message: string): unknown {
  const write = spyOn(fs, "writeSync").mockReturnValue(0);
  log(level, message);
  const [fd, text] = write.mock.calls[0] ?? [];
  expect(fd).toBe(2);
  write.mockRestore();
  return text;
}

test("log writes one line, with spaces for control characters", () => {
  expect(written(LogLevel.error, "wrong")).toBe("wrong\n");
  expect(written(LogLevel.error, "a\n<0>b\x1b[0m\r\n\tc\x7f")).toBe("a <0>b [0m c \n");
});

test("log puts the level before it where stderr is the journal", () => {
  const { dev, ino } = fstatSync(2, { bigint: true });
  process.env["JOURNAL_STREAM"] = `${dev}:${ino}`;
  expect(written(LogLevel.emergency, "it")).toBe("<0>it\n");
  expect(written(LogLevel.debug, "it")).toBe("<7>it\n");
  process.env["JOURNAL_STREAM"] = `${dev}:${ino + 1n}`;
  expect(written(LogLevel.debug, "it")).toBe("it\n");
});

test("log does not mind a stderr that is closed or full", () => {
  spyOn(fs, "writeSync").mockImplementation(() => {
    throw new Error("EAGAIN");
  });
  log(LogLevel.warning, "nowhere");
});
