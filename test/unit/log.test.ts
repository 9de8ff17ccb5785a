import { afterEach, beforeEach, describe, expect, mock, spyOn, test } from "bun:test";
import fs, { fstatSync, ftruncateSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { tmpdir } from "node:os";

import { ActivationError, log } from "../../src/activation/index.ts";
import { type LogFields, LogLevel, stderrIsJournal } from "../../src/activation/index.ts";
import { listFields, serializeEntry } from "../../src/activation/journal/entry.ts";
import { sunPath } from "../../src/activation/linux/layout.ts";
import * as libc from "../../src/activation/linux/libc.ts";
import { sendEntry } from "../../src/activation/journal/log.ts";
import { descriptors, nothingLeft, refusal, thrown } from "../support/checks.ts";
import { lines } from "../support/lines.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import { close, peek, pipe, seals } from "../support/sockets.ts";
import { cleansUp } from "../support/started.ts";
import { until } from "../support/until.ts";

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

/** Returns the text that `log` writes to stderr if that is not the journal. */
function written(message: string, fields?: LogFields): unknown {
  const write = spyOn(fs, "writeSync").mockImplementation((_, text) => Buffer.byteLength(text));
  expect(log(LogLevel.error, message, fields)).toBe(true);
  const [fd, text] = write.mock.calls[0] ?? [];
  expect(fd).toBe(2);
  write.mockRestore();
  return String(text);
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

  test("no character that a terminal acts on reaches it", () => {
    // Both ends of each range, and then their neighbours.
    const acting = "\0\x1f\x7f\x80\x85\x9b\x9f\u2028\u2029\u202a\u202e\u2066\u2069";
    for (const character of acting) {
      const escaped = `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
      const readable = character === "\0" ? "\\u0000" : escaped;
      expect(written(`a${character}b`, { A: character })).toBe(`a b A="${readable}"\n`);
    }
    // The last two only mark text that is written from right to left.
    const text = "~\xa0\xad\u2027\u202f\u2065\u206a👍\u200e\u200f";
    expect(written(text, { A: text })).toBe(`${text} A=${text}\n`);
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
    // Bun opens /dev/null in place of a stderr that is closed when it starts.
    const closed = await run(`require("node:fs").closeSync(2); ${calls}`, '"$bun" -e "$program"');
    expect(closed).toEqual({ out: "false false\n", err: "" });
  });

  describe("a pipe that is non-blocking and full", () => {
    /** Starts a program that logs to a pipe. `read` empties the pipe, and returns its text. */
    function start(program: string) {
      const [reads, writes] = pipe();
      // Bun.spawn makes the descriptors that it passes blocking.
      const source = `
        import { log, LogLevel } from "${MODULE}";
        import { setNonBlocking } from "${join(MODULE, "../linux/libc.ts")}";
        setNonBlocking(2);
        // The size of a page, of which a pipe has some: nothing shorter finds room when it is full.
        const entry = (n) => log(LogLevel.info, String(n).padEnd(4095, "x"));
        const continued = async () => { for await (const _ of console) return; };
        ${program}`;
      const child = Bun.spawn([process.execPath, "-e", source], {
        env: process.env,
        stdin: "pipe",
        stdout: "pipe",
        stderr: writes,
      });
      close(writes);
      const read = () => {
        let text = "";
        for (let more = peek(reads); more !== ""; more = peek(reads)) text += more;
        return text;
      };
      const output = lines(child.stdout);
      const next = async () => JSON.parse((await output.next()).value ?? "null");
      return {
        read,
        readPage: () => peek(reads),
        /** To the program's end, in a process of its own, which a busy test does not stop. */
        readAll: () => Bun.$`cat </proc/${process.pid}/fd/${reads}`.text(),
        next,
        continue() {
          child.stdin.write("\n");
          child.stdin.end();
        },
        async [Symbol.asyncDispose]() {
          child.kill("SIGKILL");
          await child.exited;
          close(reads);
        },
      };
    }

    test("is waited for, for two seconds, and while it stays full not again", async () => {
      await using program = start(`
        let written = 0, began = 0;
        do began = performance.now(); while (entry(written) && ++written);
        const first = performance.now() - began;
        began = performance.now();
        for (let n = 0; n < 300; n++) entry(n);
        console.log(JSON.stringify([written, first, performance.now() - began]));
        await continued();
        console.log(JSON.stringify([entry("y"), entry("z")]));`);
      const [written, first, others] = await program.next();
      expect(first).toBeWithin(1900, 5000);
      expect(others).toBeLessThan(1900);
      expect(program.read().split("\n").length - 1).toBe(written);
      program.continue();
      expect(await program.next()).toEqual([true, true]);
      const [y, warning, z, ...more] = program.read().split("\n");
      expect([y?.[0], z?.[0], more]).toEqual(["y", "z", [""]]);
      expect(warning).toBe("log entries were lost, because the journal or stderr was full: 301");
    });

    test("never has an entry behind the half of a lost one", async () => {
      await using program = start(`
        for (let n = 0; entry(n); n++);
        console.log(true);
        await continued();
        console.log(log(LogLevel.info, "y".repeat(6000)));
        while (!log(LogLevel.info, "after")) await Bun.sleep(10);`);
      expect(await program.next()).toBe(true);
      // Room for one page.
      let text = program.readPage();
      program.continue();
      expect(await program.next()).toBe(false);
      await until("an entry fits", 10, () => (text += program.read()).includes("after"));
      const [half, whole] = text.split("\n").slice(-4);
      expect(half).toMatch(/^y+$/);
      expect(whole).toBe("after");
    });

    test("is waited for while somebody reads, so that nothing is lost or cut", async () => {
      await using program = start(`
        let written = 0;
        for (let n = 0; n < 500; n++) if (entry(n)) written++;
        console.log(JSON.stringify([written, log(LogLevel.info, "y".repeat(300_000))]));`);
      const text = program.readAll();
      expect(await program.next()).toEqual([500, true]);
      const expected = Array.from({ length: 500 }, (_, n) => `${String(n).padEnd(4095, "x")}\n`);
      expect((await text) === `${expected.join("")}${"y".repeat(300_000)}\n`).toBe(true);
    });
  });
});

test("stderr is the journal if JOURNAL_STREAM names its device and inode", () => {
  expect(stderrIsJournal()).toBe(false);
  makeStderrTheJournal();
  expect(stderrIsJournal()).toBe(true);
  process.env["JOURNAL_STREAM"] += "1";
  expect(stderrIsJournal()).toBe(false);
  makeStderrTheJournal();
  process.env["JOURNAL_STREAM"] = `1${process.env["JOURNAL_STREAM"]}`;
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
    expect(log(LogLevel.info, "third", { SYSLOG_IDENTIFIER: undefined })).toBe(true);
    expect(send.mock.calls.map(([, path, entry]) => [decode(path), decode(entry)])).toEqual(
      [
        "MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\nPRIORITY=7\nSYSLOG_IDENTIFIER=log.test.ts\nN=1\nN=2\n",
        "MESSAGE=it\nPRIORITY=0\nSYSLOG_IDENTIFIER=other\n",
        "MESSAGE=third\nPRIORITY=6\nSYSLOG_IDENTIFIER=log.test.ts\n",
      ].map((entry) => ["/run/systemd/journal/socket", entry]),
    );
  });

  test("an entry that it has no room for is no line, and the next one says that it was lost", () => {
    makeStderrTheJournal();
    const write = spyOn(fs, "writeSync");
    const sent: string[] = [];
    let room = (_: string) => false;
    spyOn(libc, "sendDatagram").mockImplementation((_fd, _path, bytes) => {
      const [entry = ""] = decode(bytes).split("\nSYSLOG_IDENTIFIER");
      if (!room(entry)) throw new ActivationError(71, "sendmsg failed", "EAGAIN");
      sent.push(entry);
    });
    const entry = (message: string) => log(LogLevel.info, message);
    expect([entry("one"), entry("two")]).toEqual([false, false]);
    // For one only: the warning has to wait.
    room = (text) => text.startsWith("MESSAGE=three");
    expect(entry("three")).toBe(true);
    room = () => true;
    expect([entry("four"), entry("five")]).toEqual([true, true]);
    expect(sent).toEqual([
      "MESSAGE=three\nPRIORITY=6",
      "MESSAGE=four\nPRIORITY=6",
      "MESSAGE=log entries were lost, because the journal or stderr was full: 2\nPRIORITY=4",
      "MESSAGE=five\nPRIORITY=6",
    ]);
    expect(write).not.toHaveBeenCalled();
  });

  test("a journal that cannot be reached gets the line, with the level before it", () => {
    makeStderrTheJournal();
    spyOn(libc, "datagramSocket").mockImplementation(() => {
      throw new ActivationError(71, "socket failed", "EMFILE");
    });
    const write = spyOn(fs, "writeSync").mockImplementation((_, text) => Buffer.byteLength(text));
    expect(log(LogLevel.emergency, "it", { N: 1 })).toBe(true);
    expect(log(LogLevel.debug, "it")).toBe(true);
    expect(write.mock.calls.map(([, text]) => String(text))).toEqual(["<0>it N=1\n", "<7>it\n"]);
  });
});

test("where libc cannot be called, the journal gets the line with the level before it", async () => {
  const asJournal =
    'JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) BUN_JSC_useJIT=0 "$bun" -e "$program"';
  const program = `console.log(log(LogLevel.notice, "two\\nlines", { N: 1 }))`;
  expect(await run(program, asJournal)).toEqual({ out: "true\n", err: "<5>two lines N=1\n" });
});

test("only stderr counts, not a stdout that is the journal", () => {
  const journal = "export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/$$/fd/1)";
  const script = `import { stderrIsJournal } from "${MODULE}"; console.log(stderrIsJournal())`;
  const command = ["/bin/sh", "-c", `${journal}; exec "$0" -e "$1"`, process.execPath, script];
  const { stdout } = Bun.spawnSync(command, { env: process.env });
  expect(stdout.toString()).toBe("false\n");
});

test("a wrong name of a field, a wrong value and a wrong level are errors", () => {
  const names = ["", "a", "_PID", "1A", "A-B", "A B", "Ä", "A=", "A\n", "A".repeat(65)];
  for (const name of [...names, "MESSAGE", "PRIORITY"]) {
    const fields = Object.fromEntries([[name, "x"]]);
    expect(refusal(() => log(LogLevel.error, "m", fields))).toMatch(
      /^TypeError: cannot log the field [^\n]+: (use at most|give it as the (first|second) argument of log)/,
    );
  }
  for (const value of [null, {}, [["a"]], Symbol("s"), () => 1, new Date()]) {
    const fields = JSON.parse("{}");
    fields.A = value;
    expect(refusal(() => log(LogLevel.error, "m", fields))).toMatch(
      /^TypeError: cannot log A, whose value is of type /,
    );
  }
  for (const level of [-1, 8, 1.5, NaN, "3"]) {
    const any = JSON.parse(JSON.stringify({ level }));
    const name = typeof any.level === "number" ? "RangeError" : "TypeError";
    expect(refusal(() => log(any.level, "m"))).toStartWith(`${name}: cannot log at level `);
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
  for (const call of wrong)
    expect(refusal(call)).toMatch(
      call === wrong.at(-1) ? /^RangeError: cannot log / : /^TypeError: cannot log /,
    );
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
  beforeEach(() => void (journal = new NotifyReceiver(path)));
  afterEach(() => {
    journal.close();
    fs.rmSync(path);
  });
  cleansUp();

  test("as one datagram", () => {
    expect(sendEntry(entry("it"), path)).toBe(true);
    expect(journal.poll()).toMatchObject({ text: "MESSAGE=it\n", fds: [] });
  });

  test("as a sealed file if it is too long for one", () => {
    // Above this, a socket refuses a datagram (socket(7)).
    const limit = Number(readFileSync("/proc/sys/net/core/wmem_default", "latin1"));
    const long = entry("x".repeat(limit));
    expect(sendEntry(long, path)).toBe(true);
    const { text, fds: [fd = -1, ...more] = [] } = journal.poll() ?? {};
    expect({ text, more }).toEqual({ text: "", more: [] });
    expect(readFileSync(`/proc/self/fd/${fd}`).equals(long)).toBe(true);
    // F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_WRITE: journald takes no other.
    expect(seals(fd)).toBe(0b1111);
    for (const change of [
      () => writeSync(fd, "y", 0),
      () => ftruncateSync(fd, 1),
      () => ftruncateSync(fd, 2 * limit),
    ])
      expect(thrown(change)).toMatchObject({ code: "EPERM" });
    close(fd);
  });

  /** An instance of the module that has not waited for anything yet. */
  async function fresh(): Promise<typeof import("../../src/activation/journal/log.ts")> {
    const states: unknown = Reflect.get(globalThis, Symbol.for("socket-service/activation"));
    if (states instanceof Map) states.delete("log");
    return await import(`${join(MODULE, "../journal/log.ts")}?${crypto.randomUUID()}`);
  }

  /** Fills the journal's queue. Each entry comes from a socket of its own, which never is full. */
  function fill(): void {
    const send = () => {
      const socket = libc.datagramSocket();
      try {
        libc.sendDatagram(socket, sunPath(path), entry("full"));
      } finally {
        close(socket);
      }
    };
    while (thrown(send) === undefined);
  }

  /** Another process that reads one entry after each pause in milliseconds, as a slow journal does. */
  const reader = (pause: number) => {
    const script = `
      import { receive } from "${join(import.meta.dir, "../support/sockets.ts")}";
      for (;;) {
        Bun.sleepSync(${pause});
        receive(0)?.fds.forEach((fd) => require("node:fs").closeSync(fd));
      }`;
    return Bun.spawn([process.execPath, "-e", script], { stdin: journal.fd });
  };

  test("and waits for room while the journal reads", async () => {
    fill();
    const { sendEntry } = await fresh();
    await using _ = reader(10);
    for (let n = 0; n < 20; n++) expect(sendEntry(entry(String(n)), path)).toBe(true);
    expect(sendEntry(entry("long".repeat(1 << 18)), path)).toBe(true);
  });

  test("or is lost after two seconds in all: a slow journal does not stop a program", async () => {
    fill();
    const { sendEntry } = await fresh();
    await using _ = reader(100);
    const began = performance.now();
    const sent = Array.from({ length: 200 }, () => sendEntry(entry("it"), path) === true);
    expect(performance.now() - began).toBeWithin(1900, 6000);
    expect(sent.filter(Boolean).length).toBeWithin(2, 60);
  });

  test("or is lost at once if the one before was, and nothing is left open", async () => {
    fill();
    const { sendEntry } = await fresh();
    const sleep = spyOn(Bun, "sleepSync");
    const before = descriptors();
    const began = performance.now();
    expect(sendEntry(entry("first"), path)).toBe(false);
    expect(performance.now() - began).toBeWithin(1900, 5000);
    // Each takes a millisecond or more.
    expect(sleep.mock.calls.length).toBeLessThanOrEqual(2000);
    sleep.mockClear();
    for (let n = 0; n < 100; n++)
      expect(sendEntry(entry(n % 2 === 0 ? "short" : "long".repeat(1 << 16)), path)).toBe(false);
    // Another copy of the module knows it, too.
    const other: typeof import("../../src/activation/journal/log.ts") = require(
      join(MODULE, `../journal/log.ts?${crypto.randomUUID()}`),
    );
    expect(other.sendEntry(entry("other"), path)).toBe(false);
    expect(sleep).not.toHaveBeenCalled();
    await nothingLeft(before);
    // When there was room it waits again, for half of the time that has passed.
    await until("it waits again", 5, () => {
      expect(journal.poll()?.text).toStartWith("MESSAGE=");
      expect(sendEntry(entry("room"), path)).toBe(true);
      expect(sendEntry(entry("none"), path)).toBe(false);
      return sleep.mock.calls.length > 0;
    });
  });

  test("and a program that logs all the time waits for half of it at most", async () => {
    fill();
    const { sendEntry } = await fresh();
    sendEntry(entry("first"), path);
    const sleep = spyOn(Bun, "sleepSync");
    const began = performance.now();
    while (performance.now() - began < 500) {
      journal.poll();
      for (const text of ["room", "none"]) sendEntry(entry(text), path);
    }
    // Of two milliseconds without a wait, one can be waited for: a third of the time in all.
    expect(sleep.mock.calls.length).toBeWithin(1, (performance.now() - began) * 0.4);
  });

  test("in a file, too, if the kernel has no buffer for it", () => {
    const send = spyOn(libc, "sendDatagram").mockImplementationOnce(() => {
      throw new ActivationError(71, "sendmsg failed", "ENOBUFS");
    });
    expect(sendEntry(entry("it"), path)).toBe(true);
    expect(send).toHaveBeenCalledTimes(2);
    const { text, fds } = journal.poll() ?? { text: undefined, fds: [] };
    expect([text, fds.map((fd) => readFileSync(`/proc/self/fd/${fd}`, "utf8"))]).toEqual([
      "",
      ["MESSAGE=it\n"],
    ]);
    fds.forEach(close);
  });

  test("or is lost after two seconds, also if nothing was lost for an hour", async () => {
    fill();
    const { sendEntry } = await fresh();
    const now = performance.now.bind(performance);
    spyOn(performance, "now").mockImplementation(() => now() + 3_600_000);
    const began = now();
    expect(sendEntry(entry("it"), path)).toBe(false);
    expect(now() - began).toBeWithin(1900, 5000);
  });

  test("or waits, if too many descriptors are on their way, and is then lost", async () => {
    // With one of these capabilities a process may send any number.
    const isRoot = process.getuid?.() === 0;
    const limits = isRoot ? ["setpriv", "--bounding-set=-sys_admin,-sys_resource"] : [];
    const source = `
      import { sunPath } from "${join(MODULE, "../linux/layout.ts")}";
      import * as libc from "${join(MODULE, "../linux/libc.ts")}";
      import { sendEntry } from "${join(MODULE, "../journal/log.ts")}";
      const long = new Uint8Array(1 << 20);
      const path = "${path}";
      libc.sendDatagram(libc.datagramSocket(), sunPath(path), new Uint8Array(), Array(253).fill(0));
      console.log(sendEntry(long, path));`;
    const limited = `ulimit -n 128; exec "$0" -e "$1"`;
    const command = [...limits, "sh", "-c", limited, process.execPath, source];
    const { stdout, stderr } = Bun.spawnSync(command, { env: process.env });
    expect([stdout.toString(), stderr.toString()]).toEqual(["false\n", ""]);
    journal.poll()?.fds.forEach(close);
    expect(journal.poll()).toBeUndefined();
  });

  test("nowhere if there is no journal", () => {
    expect(sendEntry(entry("it"), `${path}.missing`)).toBeUndefined();
  });
});
