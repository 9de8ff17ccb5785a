/* libsystemd.so.0 is the reference: whatever differs from it is in a table here, or a failure. */
import { dlopen } from "bun:ffi";
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { closeSync, constants, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { NotifyReceiver } from "../support/notify-receiver.ts";
import * as sockets from "../support/sockets.ts";
import {
  AF_INET,
  AF_INET6,
  AF_UNIX,
  SOCK_DGRAM,
  SOCK_SEQPACKET,
  SOCK_STREAM,
} from "../support/sockets.ts";
import type { Answers, Listened, Question, Questions, Variables } from "./questions.ts";

setDefaultTimeout(60_000);

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "socket-service-"));
});
afterAll(() => rmSync(directory, { recursive: true }));

/** A child process that answers, with descriptors from number 3 on. */
async function answers(by: string, asked: Questions, fds: readonly number[]): Promise<Answers> {
  const file = join(directory, `${by}.json`);
  writeFileSync(file, JSON.stringify(asked));
  const script = join(import.meta.dir, `answer-${by}.ts`);
  const child = Bun.spawn([process.execPath, script, file], {
    stdio: ["ignore", "pipe", "inherit", ...fds],
  });
  const [text] = await Promise.all([
    new Response(child.stdout as ReadableStream).text(),
    child.exited,
  ]);
  expect(child.exitCode).toBe(0);
  return JSON.parse(text);
}

/** open(2): a descriptor that only names a file. */
const O_PATH = 0o10000000;

/** Pseudo-random numbers that are the same in every run (mulberry32). */
function random(seed: number): <T>(of: readonly T[]) => T {
  return (of) => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    const one = of[((t ^ (t >>> 14)) >>> 0) % of.length];
    if (one === undefined) throw new Error("nothing to choose from");
    return one;
  };
}

const CANONICAL = /^(\{pid\}|[1-9][0-9]*)$/;

/**
 * Where this module differs from libsystemd, on purpose. All else is a failure, and so is an entry
 * that no case needs.
 */
const DIFFERENCES: readonly {
  readonly name: string;
  readonly when: (it: Variables) => boolean;
  /** What this module does there. */
  readonly ours: "error" | "none" | "names";
}[] = [
  {
    name: "a number with a sign, a space, a leading zero or another base is refused, not read",
    when: (it) =>
      [it["LISTEN_PID"], it["LISTEN_FDS"]].some((it) => it !== undefined && !CANONICAL.test(it)),
    ours: "error",
  },
  {
    name: "a name that FileDescriptorName= does not take is refused",
    when: (it) =>
      it["LISTEN_FDNAMES"]?.split(":").some((name) => !/^[ -~]{1,255}$/.test(name)) ?? false,
    ours: "error",
  },
  {
    name: "a backslash is part of a name, as systemd means it, and not an escape",
    when: (it) => it["LISTEN_FDNAMES"]?.includes("\\") ?? false,
    ours: "names",
  },
  {
    name: "a backslash before a colon does not join two names",
    when: (it) => it["LISTEN_FDNAMES"]?.includes("\\:") ?? false,
    ours: "error",
  },
  {
    name: "names do not matter where nothing was passed to this process",
    when: (it) => it["LISTEN_FDNAMES"]?.endsWith("\\") ?? false,
    ours: "none",
  },
  {
    name: "LISTEN_PIDFDID is checked as systemd 258 does it: for another process",
    when: (it) => it["LISTEN_PIDFDID"] !== undefined,
    ours: "none",
  },
  {
    name: "LISTEN_PIDFDID is checked as systemd 258 does it: malformed",
    when: (it) => it["LISTEN_PIDFDID"] !== undefined,
    ours: "error",
  },
];

describe("the environment", () => {
  const pick = random(20_261_122);
  const sometimes = <T>(of: readonly T[], else_: readonly T[]): T =>
    pick([0, 1, 2, 3]) === 0 ? pick(of) : pick(else_);

  const numbers = (n: string) => [
    `+${n}`,
    ` ${n}`,
    `${n} `,
    `\t${n}`,
    `0${n}`,
    `-${n}`,
    `${n}x`,
    `${n}.0`,
    `${n}\n`,
  ];
  const PIDS = [
    ...numbers("{pid}"),
    "0x{pid16}",
    "0o{pid8}",
    "0{pid8}",
    "0b1",
    "",
    "0",
    "1",
    "4294967297",
    "nobody",
  ];
  const ODD_COUNTS = [
    "",
    "0",
    "x",
    "0x2",
    "0b10",
    "0o2",
    "1e0",
    "２",
    "99999",
    "1048577",
    "2147483645",
  ];
  const COUNTS = [...ODD_COUNTS, "2147483647", "2147483648", "4294967298", "18446744073709551617"];
  const ODD = [
    "",
    " ",
    "\t",
    "\\",
    "\\\\",
    "a\\b",
    "end\\",
    "'",
    `"`,
    `"q"`,
    "'a b'",
    "ü",
    "\x7f",
    "\x01",
    "\n",
    "%",
    "$HOME",
    "=",
    "#",
  ];
  const NAMES = [
    "http",
    "a b",
    "unknown",
    "stored",
    "connection",
    "~",
    "x".repeat(255),
    "-",
    "n.socket",
  ];

  function variables(): Variables {
    const it: Record<string, string> = {};
    const set = (name: string, value: string | null) => {
      if (value !== null) it[name] = value;
    };
    set("LISTEN_PID", sometimes([...PIDS, null], ["{pid}"]));
    const count = pick([1, 2, 3]);
    set("LISTEN_FDS", sometimes([...numbers(String(count)), ...COUNTS, null], [String(count)]));
    if (pick([0, 1, 2, 3, 4, 5]) === 0)
      set("LISTEN_PIDFDID", pick(["1", "x", "", "-1", "0x1", "18446744073709551615"]));
    const named = sometimes([0, count - 1, count + 1], [count]);
    const names = Array.from({ length: named }, () => sometimes([...ODD, "y".repeat(256)], NAMES));
    if (pick([0, 1, 2]) > 0) set("LISTEN_FDNAMES", names.join(":"));
    return it;
  }

  test("gives what sd_listen_fds_with_names(3) gives, or differs as the table says", async () => {
    const environments = Array.from({ length: 4000 }, variables);
    const fds = [
      openSync("/dev/null", "r"),
      openSync("/dev/null", "r"),
      openSync("/dev/null", "r"),
    ];
    const asked = { environments, watchdogs: [], addresses: [], questions: [] };
    const [theirs, ours] = await Promise.all([
      answers("libsystemd", asked, fds),
      answers("module", asked, fds),
    ]);
    fds.forEach((fd) => closeSync(fd));

    const outcome = ({ names }: Listened) =>
      names === "error" ? "error" : names.length === 0 ? "none" : "names";
    const unexplained: unknown[] = [];
    const explained = new Map(DIFFERENCES.map(({ name }) => [name, 0]));
    const same = { error: 0, none: 0, names: 0 };
    for (const [index, it] of environments.entries()) {
      const [their, our] = [theirs.environments[index], ours.environments[index]];
      if (their === undefined || our === undefined) throw new Error("an answer is missing");
      // Before systemd 257, libsystemd leaves LISTEN_PIDFDID.
      expect(our.left).toEqual([]);
      expect(their.left.filter((name) => name !== "LISTEN_PIDFDID")).toEqual([]);
      if (Bun.deepEquals(their.names, our.names)) {
        same[outcome(our)]++;
        continue;
      }
      const why = DIFFERENCES.find(({ when, ours }) => ours === outcome(our) && when(it));
      if (why === undefined) unexplained.push({ it, theirs: their.names, ours: our.names });
      else explained.set(why.name, (explained.get(why.name) ?? 0) + 1);
    }
    expect(unexplained).toEqual([]);
    for (const [name, cases] of explained) expect([name, cases]).not.toEqual([name, 0]);
    expect(same.names).toBeGreaterThan(500);
    expect(same.error).toBeGreaterThan(500);
    expect(same.none).toBeGreaterThan(50);
  });
});

describe("the watchdog", () => {
  const pick = random(258);
  const USEC = [
    "1",
    "20000000",
    "9007199254740991",
    "0",
    "",
    "x",
    "-1",
    "1.5",
    "18446744073709551615",
  ];
  const ODD_USEC = [
    "+5",
    " 5",
    "5 ",
    "05",
    "0x5",
    "0b1",
    "9007199254740993",
    "18446744073709551616",
    "5\n",
  ];
  const PIDS = [
    "{pid}",
    "1",
    "0",
    "",
    "x",
    "-1",
    "99999999999",
    "+{pid}",
    " {pid}",
    "0x{pid16}",
    "{pid} ",
  ];

  test("is what sd_watchdog_enabled(3) says, but for numbers that systemd does not write", async () => {
    const watchdogs = Array.from({ length: 500 }, () => {
      const it: Record<string, string> = {};
      if (pick([0, 1, 2, 3, 4]) > 0) it["WATCHDOG_USEC"] = pick(pick([USEC, USEC, ODD_USEC]));
      if (pick([0, 1, 2]) > 0) it["WATCHDOG_PID"] = pick(pick([["{pid}"], PIDS]));
      return it;
    });
    const asked = { environments: [], watchdogs, addresses: [], questions: [] };
    const [theirs, ours] = await Promise.all([
      answers("libsystemd", asked, []),
      answers("module", asked, []),
    ]);
    let strict = 0;
    for (const [index, it] of watchdogs.entries()) {
      const [their, our] = [theirs.watchdogs[index], ours.watchdogs[index]];
      if (Bun.deepEquals(their, our)) continue;
      // Another base, a sign, a space, or more than a number holds exactly: 285 years.
      expect({ it, our }).toEqual({ it, our: { usec: "error", left: [] } });
      const canonical = (value = "1") =>
        CANONICAL.test(value) && !value.startsWith("90071992547409");
      expect(canonical(it["WATCHDOG_USEC"]) && canonical(it["WATCHDOG_PID"])).toBe(false);
      strict++;
    }
    expect(strict).toBeWithin(1, 250);
  });
});

describe("descriptors", () => {
  const { symbols: libc } = dlopen("libc.so.6", {
    eventfd: { args: ["u32", "i32"], returns: "i32" },
    memfd_create: { args: ["buffer", "u32"], returns: "i32" },
    mkfifo: { args: ["buffer", "u32"], returns: "i32" },
    mq_open: { args: ["buffer", "i32", "u32", "ptr"], returns: "i32" },
    mq_unlink: { args: ["buffer"], returns: "i32" },
    timerfd_create: { args: ["i32", "i32"], returns: "i32" },
  });
  const c = (text: string) => new TextEncoder().encode(`${text}\0`);

  /** Every kind that there is, by name. */
  function every(): Map<string, number> {
    const fds = new Map<string, number>();
    const TYPES = { stream: SOCK_STREAM, datagram: SOCK_DGRAM, seqpacket: SOCK_SEQPACKET };
    for (const [name, type] of Object.entries(TYPES)) {
      const path = join(directory, name);
      fds.set(`Unix ${name}, unbound`, sockets.socket(AF_UNIX, type));
      fds.set(`Unix ${name}, bound`, sockets.bound(AF_UNIX, type, path));
      fds.set(`abstract ${name}, bound`, sockets.bound(AF_UNIX, type, `@${path}`));
      fds.set(`abstract ${name}, with NUL`, sockets.bound(AF_UNIX, type, `@${path}\0\0x`));
      const [one, other] = sockets.socketPair(type);
      fds.set(`Unix ${name}, connected`, one);
      fds.set(`Unix ${name}, connected too`, other);
      if (type === SOCK_SEQPACKET) continue;
      for (const family of [AF_INET, AF_INET6]) {
        fds.set(`${family} ${name}, unbound`, sockets.socket(family, type));
        const bound = sockets.bound(family, type);
        fds.set(`${family} ${name}, bound`, bound);
        if (type === SOCK_STREAM) continue;
        const connected = sockets.connected({ family, port: sockets.portOf(bound) }, type);
        if (connected !== undefined) fds.set(`${family} ${name}, connected`, connected);
      }
    }
    for (const family of [AF_INET, AF_INET6]) {
      const listening = sockets.listening(family, 5);
      fds.set(`${family} stream, listening`, listening);
      const connected = sockets.connected({ family, port: sockets.portOf(listening) });
      if (connected !== undefined) fds.set(`${family} stream, connected`, connected);
      fds.set(`${family} stream, accepted`, sockets.accept(listening));
    }
    fds.set("Unix stream, listening", sockets.listening(AF_UNIX, 5, join(directory, "listening")));
    fds.set("abstract stream, listening", sockets.listening(AF_UNIX, 5, `@${directory}/listening`));
    fds.set("netlink", sockets.socket(16, SOCK_DGRAM));
    fds.set("netlink, raw", sockets.socket(16, 3));

    const [reads, writes] = sockets.pipe();
    fds.set("pipe, read end", reads);
    fds.set("pipe, write end", writes);
    libc.mkfifo(c(join(directory, "fifo")), 0o600);
    fds.set("fifo", openSync(join(directory, "fifo"), "r+"));
    fds.set("character device", openSync("/dev/null", "r+"));
    fds.set("regular file", openSync(import.meta.path, "r"));
    fds.set("regular file, O_PATH", openSync(import.meta.path, O_PATH));
    fds.set("fifo, O_PATH", openSync(join(directory, "fifo"), O_PATH));
    fds.set("directory", openSync(directory, constants.O_DIRECTORY));
    fds.set("memory file", libc.memfd_create(c("memory"), 0));
    fds.set("eventfd", libc.eventfd(0, 0));
    fds.set("timerfd", libc.timerfd_create(1, 0));
    const queue = c(`/${directory.replaceAll("/", "-").slice(1)}`);
    fds.set(
      "message queue",
      libc.mq_open(queue, constants.O_CREAT | constants.O_RDWR, 0o600, null),
    );
    libc.mq_unlink(queue);
    return fds;
  }

  test("are what sd_is_*(3) say they are", async () => {
    const fds = every();
    for (const [name, fd] of fds) expect([name, fd]).not.toEqual([name, -1]);
    const passed = [...fds.values()];
    const ports = passed.map((fd) => {
      try {
        return sockets.portOf(fd);
      } catch {
        return 0;
      }
    });
    const CLOSED = 4000;
    const questions: Question[] = [];
    const paths = [null, "", directory, "\0other"];
    for (const name of ["stream", "datagram", "seqpacket", "listening"]) {
      const path = join(directory, name);
      paths.push(path, `${path}/`, `\0${path}`, `\0${path}\0\0x`, `\0${path}\0\0`);
    }
    for (const fd of [...passed.keys().map((index) => index + 3), CLOSED]) {
      for (const call of ["sd_is_fifo", "sd_is_special", "sd_is_mq"] as const)
        questions.push({ call, fd });
      const port = ports[fd - 3] ?? 0;
      for (const type of [0, SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET])
        for (const listening of [-1, 0, 1]) {
          const asked = { fd, type, listening };
          for (const family of [0, AF_UNIX, AF_INET, AF_INET6, 16])
            questions.push({ call: "sd_is_socket", family, ...asked });
          for (const family of [0, AF_INET, AF_INET6])
            for (const wanted of [0, port, 1])
              questions.push({ call: "sd_is_socket_inet", family, port: wanted, ...asked });
          for (const path of paths) questions.push({ call: "sd_is_socket_unix", path, ...asked });
          for (const address of ["7f000001", "00000000", `${"0".repeat(31)}1`, "0".repeat(32)])
            for (const wanted of [0, port, 1])
              questions.push({ call: "sd_is_socket_sockaddr", address, port: wanted, ...asked });
        }
    }
    const asked = { environments: [], watchdogs: [], addresses: [], questions };
    const [theirs, ours] = await Promise.all([
      answers("libsystemd", asked, passed),
      answers("module", asked, passed),
    ]);
    passed.forEach(sockets.close);

    const names = [...fds.keys()];
    const differ = questions.flatMap((question, index) => {
      const [their, our] = [theirs.questions[index], ours.questions[index]];
      return their === our
        ? []
        : [{ on: names[question.fd - 3], question, theirs: their, ours: our }];
    });
    expect(differ.slice(0, 5)).toEqual([]);
    expect(questions.length).toBeGreaterThan(10_000);
    for (const answer of [true, false, "error"] as const)
      expect(theirs.questions.filter((it) => it === answer).length).toBeGreaterThan(100);
  });
});

test("NOTIFY_SOCKET reaches whom sd_notify(3) reaches, and fails where it fails", async () => {
  const path = join(directory, "manager");
  const long = join(directory, "x".repeat(106 - directory.length));
  const reached = [
    path,
    `@${path}`,
    `@${"n".repeat(106)}`,
    long,
    `@a b\t\\`,
    "@ü",
    `${directory}/ü :%`,
  ];
  const receivers = reached.map((address) => new NotifyReceiver(address));
  const failing = [
    "",
    "@",
    "/",
    "x",
    "./manager",
    "unix:/x",
    " /x",
    `${path}/`,
    `${path} `,
    "/nonexistent/x",
  ];
  const malformed = [
    "vsock",
    "vsock:",
    "vsock:x:1",
    "vsock::1",
    "vsock:4294967295:1",
    "vsock:2",
    "VSOCK:2:1",
  ];
  const addresses = [...reached, ...failing, ...malformed, "/dev/null", `@${path}x`, directory];
  for (const length of [106, 107, 108, 200]) addresses.push(`@${"m".repeat(length)}`);
  for (const length of [106, 107, 108, 200]) addresses.push(`/${"m".repeat(length)}`);
  const asked = { environments: [], watchdogs: [], addresses, questions: [] };
  const theirs = await answers("libsystemd", asked, []);
  const ours = await answers("module", asked, []);
  for (const [index, address] of addresses.entries()) {
    const expected = index < reached.length ? true : "error";
    const outcome = [address, theirs.addresses[index], ours.addresses[index]];
    expect(outcome).toEqual([address, expected, expected]);
  }
  for (const receiver of receivers) {
    expect(receiver.poll()?.text).toBe("READY=1");
    expect(receiver.poll()?.text).toBe("READY=1\n");
    expect(receiver.poll()).toBeUndefined();
    receiver.close();
  }
});
