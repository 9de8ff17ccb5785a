import { afterEach, beforeEach, describe, expect, mock, spyOn, test } from "bun:test";
import fs, { existsSync, fstatSync, ftruncateSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { tmpdir } from "node:os";

import {
  ActivationError,
  booted,
  log,
  type LogFields,
  LogLevel,
  stderrIsJournal,
} from "../../src/activation/index.ts";
import { listFields, serializeEntry } from "../../src/activation/journal.ts";
import * as libc from "../../src/activation/libc.ts";
import { sendEntry } from "../../src/activation/log.ts";
import { descriptors, nothingLeft, refusal, thrown } from "../support/checks.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import { close } from "../support/sockets.ts";

const MODULE = join(import.meta.dir, "../../src/activation/index.ts");

afterEach(() => {
  mock.restore();
  delete process.env["JOURNAL_STREAM"];
});

/** Names stderr as the journal, as systemd does. `log` then needs a stand-in: it would reach ours. */
function makeStderrTheJournal(): void {
  const { dev, ino } = fstatSync(2, { bigint: true });
  process.env["JOURNAL_STREAM"] = `${dev}:${ino}`;
}

/** What `log` writes to stderr where that is not the journal. */
function written(message: string, fields?: LogFields): unknown {
  const write = spyOn(fs, "writeSync").mockImplementation((_, text) => Buffer.byteLength(text));
  expect(log(LogLevel.error, message, fields)).toBe(true);
  const [fd, text] = write.mock.calls[0] ?? [];
  expect(fd).toBe(2);
  write.mockRestore();
  return text;
}

/** Runs a program with `log` in it, its stderr redirected by the shell, which may use `$bun`. */
async function run(program: string, shell: string): Promise<{ out: string; err: string }> {
  const source = `import { log, LogLevel } from ${JSON.stringify(MODULE)}; ${program}`;
  const child = Bun.spawn(["sh", "-c", shell], {
    env: { ...process.env, bun: process.execPath, program: source },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  expect(await child.exited).toBe(0);
  return { out, err };
}

describe("outside of the journal", () => {
  test("a message is one line, with spaces for control characters", () => {
    expect(written("wrong")).toBe("wrong\n");
    expect(written("a\n<0>b\x1b[0m\r\n\tc\x7f")).toBe("a <0>b [0m c \n");
  });

  test("fields follow the message, quoted if they are not one word", () => {
    expect(
      written("refused", {
        ORDER_ID: 4711,
        BIG: 2n ** 64n,
        PAID: false,
        REASON: ["limit", "a b", 'say "no"', "", "x\ny", "ü=1"],
        DIGEST: Uint8Array.of(0, 10, 255),
        ABSENT: undefined,
        NONE: [],
      }),
    ).toBe(
      'refused ORDER_ID=4711 BIG=18446744073709551616 PAID=false REASON=limit REASON="a b"' +
        ' REASON="say \\"no\\"" REASON="" REASON="x\\ny" REASON=ü=1 DIGEST=000aff\n',
    );
  });

  test("a stderr that is closed or full is no error: log returns false", async () => {
    const calls = `console.log(log(LogLevel.error, "x".repeat(100_000)), log(LogLevel.error, "y"));`;
    const full = await run(calls, '"$bun" -e "$program" 2>/dev/full');
    expect(full).toEqual({ out: "false false\n", err: "" });
    // Bun opens /dev/null for what is closed when it starts.
    const closed = await run(`require("node:fs").closeSync(2); ${calls}`, '"$bun" -e "$program"');
    expect(closed).toEqual({ out: "false false\n", err: "" });
  });

  test("a line that a full pipe takes in part was not written", () => {
    const write = spyOn(fs, "writeSync").mockReturnValue(3);
    expect(log(LogLevel.warning, "nowhere")).toBe(false);
    write.mockImplementation(() => {
      throw new Error("EAGAIN");
    });
    expect(log(LogLevel.warning, "nowhere")).toBe(false);
  });
});

test("stderr is the journal if JOURNAL_STREAM names its device and inode", () => {
  expect(stderrIsJournal()).toBe(false);
  makeStderrTheJournal();
  expect(stderrIsJournal()).toBe(true);
  process.env["JOURNAL_STREAM"] += "1";
  expect(stderrIsJournal()).toBe(false);
  makeStderrTheJournal();
  spyOn(fs, "fstatSync").mockImplementation(() => {
    throw new Error("EBADF");
  });
  expect(stderrIsJournal()).toBe(false);
});

describe("where stderr is the journal", () => {
  const decode = (bytes?: Uint8Array) => new TextDecoder().decode(bytes);

  test("log sends it one entry, which is named after the script unless a field says otherwise", () => {
    makeStderrTheJournal();
    const send = spyOn(libc, "sendDatagram").mockReturnValue();
    expect(log(LogLevel.debug, "two\nlines", { N: [1, 2] })).toBe(true);
    expect(log(LogLevel.emergency, "it", { SYSLOG_IDENTIFIER: "other" })).toBe(true);
    send.mockImplementation(() => {
      throw new ActivationError(71, "sendmsg failed", "EAGAIN");
    });
    expect(log(LogLevel.info, "no room", { SYSLOG_IDENTIFIER: undefined })).toBe(false);
    expect(send.mock.calls.map(([, path, entry]) => [decode(path), decode(entry)])).toEqual(
      [
        "MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\nPRIORITY=7\nSYSLOG_IDENTIFIER=log.test.ts\nN=1\nN=2\n",
        "MESSAGE=it\nPRIORITY=0\nSYSLOG_IDENTIFIER=other\n",
        "MESSAGE=no room\nPRIORITY=6\nSYSLOG_IDENTIFIER=log.test.ts\n",
      ].map((entry) => ["/run/systemd/journal/socket", entry]),
    );
  });

  test("a journal that cannot be reached gets the line, with the level before it", () => {
    makeStderrTheJournal();
    spyOn(libc, "datagramSocket").mockImplementation(() => {
      throw new ActivationError(71, "socket failed", "EMFILE");
    });
    const write = spyOn(fs, "writeSync").mockImplementation((_, text) => Buffer.byteLength(text));
    expect(log(LogLevel.emergency, "it", { N: 1 })).toBe(true);
    expect(log(LogLevel.debug, "it")).toBe(true);
    expect(write.mock.calls.map(([, text]) => text)).toEqual(["<0>it N=1\n", "<7>it\n"]);
  });
});

test("where libc cannot be called, the journal gets the line with the level before it", async () => {
  const asJournal =
    'JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) BUN_JSC_useJIT=0 "$bun" -e "$program"';
  const program = `console.log(log(LogLevel.notice, "two\\nlines", { N: 1 }))`;
  expect(await run(program, asJournal)).toEqual({ out: "true\n", err: "<5>two lines N=1\n" });
});

test("a stdout that is the journal makes no journal of stderr", () => {
  const journal = "export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/$$/fd/1)";
  const script = `import { stderrIsJournal } from "${MODULE}"; console.log(stderrIsJournal())`;
  const command = ["/bin/sh", "-c", `${journal}; exec "$0" -e "$1"`, process.execPath, script];
  const { stdout } = Bun.spawnSync(command, { env: process.env });
  expect(stdout.toString()).toBe("false\n");
});

test("a name that the journal does not allow, a value of no kind and a level of none are errors", () => {
  const names = ["", "a", "_PID", "1A", "A-B", "A B", "Ä", "A=", "A\n", "A".repeat(65)];
  for (const name of [...names, "MESSAGE", "PRIORITY"]) {
    const fields = Object.fromEntries([[name, "x"]]);
    expect(thrown(() => log(LogLevel.error, "m", fields))).toEqual(
      refusal(78, /^cannot log the field [^\n]+: (name it with|give it as) /),
    );
  }
  for (const value of [null, {}, [["a"]], Symbol("s"), () => 1, new Date()]) {
    const fields = JSON.parse("{}");
    fields.A = value;
    expect(thrown(() => log(LogLevel.error, "m", fields))).toEqual(
      refusal(78, /^cannot log A, whose value is of type /),
    );
  }
  for (const level of [-1, 8, 1.5, NaN, "3"]) {
    const any = JSON.parse(JSON.stringify({ level }));
    expect(thrown(() => log(any.level, "m"))).toEqual(refusal(78, /^cannot log at level /));
  }
  expect(listFields({ ["A".repeat(64)]: 1, A_9: 2 })).toHaveLength(2);
});

test("wrong fields do not compile", () => {
  const wrong = [
    // @ts-expect-error: a field is named in capitals
    () => log(LogLevel.error, "m", { lower: 1 }),
    // @ts-expect-error: MESSAGE is the message itself
    () => log(LogLevel.error, "m", { MESSAGE: "x" }),
    // @ts-expect-error: PRIORITY is the level
    () => log(LogLevel.error, "m", { PRIORITY: 3 }),
    // @ts-expect-error: null is no value
    () => log(LogLevel.error, "m", { A: null }),
    // @ts-expect-error: there is no level 8
    () => log(8, "m"),
  ];
  for (const call of wrong) expect(thrown(call)).toEqual(refusal(78, /^cannot log /));
});

describe("in the journal's native protocol", () => {
  const bytes = (entry: Uint8Array) => Buffer.from(entry).toString("latin1");

  test("a value is a line of its own, several values are several", () => {
    const fields = listFields({ A: "x=y", B: ["", -1, true, 3n], C: undefined });
    expect(bytes(serializeEntry(fields))).toBe("A=x=y\nB=\nB=-1\nB=true\nB=3\n");
  });

  test("a value with a newline, and every binary one, has its length before it", () => {
    const fields = listFields({
      A: "ü\n",
      B: Uint8Array.of(0, 0xff),
      C: "z",
      D: "x".repeat(300) + "\n",
    });
    expect(bytes(serializeEntry(fields))).toBe(
      "A\n\x03\0\0\0\0\0\0\0\xc3\xbc\n\n" +
        "B\n\x02\0\0\0\0\0\0\0\0\xff\n" +
        `C=z\nD\n\x2d\x01\0\0\0\0\0\0${"x".repeat(300)}\n\n`,
    );
  });
});

describe("an entry is sent", () => {
  const path = join(tmpdir(), `journal-${process.pid}-${crypto.randomUUID()}`);
  const entry = (text: string) => serializeEntry([["MESSAGE", text]]);
  let journal: NotifyReceiver;
  let before: Map<string, number>;
  beforeEach(() => {
    journal = new NotifyReceiver(path);
    before = descriptors();
  });
  afterEach(async () => {
    await nothingLeft(before);
    journal.close();
    fs.rmSync(path);
  });

  test("as one datagram", () => {
    expect(sendEntry(entry("it"), path)).toBe(true);
    expect(journal.poll()).toMatchObject({ text: "MESSAGE=it\n", fds: [] });
  });

  test("as a sealed file if it is too long for one", () => {
    // Above this, a socket refuses a datagram (socket(7)).
    const limit = Number(readFileSync("/proc/sys/net/core/wmem_default", "latin1"));
    const long = entry("x".repeat(limit));
    expect(sendEntry(long, path)).toBe(true);
    const { text, fds } = journal.poll() ?? { text: undefined, fds: [] };
    expect({ text, count: fds.length }).toEqual({ text: "", count: 1 });
    const [fd = -1] = fds;
    expect(readFileSync(`/proc/self/fd/${fd}`).equals(long)).toBe(true);
    for (const change of [
      () => writeSync(fd, "y", 0),
      () => ftruncateSync(fd, 1),
      () => ftruncateSync(fd, 2 * limit),
    ])
      expect(thrown(change)).toMatchObject({ code: "EPERM" });
    close(fd);
  });

  test("at once or not at all: a journal that has no room drops it", () => {
    let sent = 0;
    while (sendEntry(entry(String(sent)), path) === true) sent++;
    expect(sent).toBeGreaterThan(0);
    expect(sendEntry(entry("long".repeat(1 << 20)), path)).toBe(false);
    // Where a notification would wait 100 ms. The fastest of some, because this machine may be busy.
    const durations = Array.from({ length: 10 }, () => {
      const began = performance.now();
      expect(sendEntry(entry("short"), path)).toBe(false);
      return performance.now() - began;
    });
    expect(Math.min(...durations)).toBeLessThan(50);
    expect(journal.poll()?.text).toBe("MESSAGE=0\n");
    expect(sendEntry(entry("room"), path)).toBe(true);
  });

  test("nowhere if there is no journal", () => {
    expect(sendEntry(entry("it"), `${path}.missing`)).toBeUndefined();
  });
});

test("booted tells whether systemd's run-time directory is there", () => {
  expect(booted()).toBe(existsSync("/run/systemd/system"));
});
