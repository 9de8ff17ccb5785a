/* libsystemd.so.0 is the reference: whatever differs from it is in a table here, or a failure. */
import { CString, dlopen, type Pointer, ptr, read } from "bun:ffi";
import { expect, test } from "bun:test";
import { constants, openSync, renameSync } from "node:fs";
import { join } from "node:path";

import { type Descriptor, describe as describeFd } from "../../src/activation/index.ts";
import { listenFds, notify, watchdogEnabled } from "../../src/activation/index.ts";
import { logged } from "../support/checks.ts";
import { scratch } from "../support/daemon.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import * as sockets from "../support/sockets.ts";
import { AF_INET, AF_INET6, AF_UNIX } from "../support/sockets.ts";

const { symbols: libc } = dlopen("libc.so.6", {
  eventfd: { args: ["u32", "i32"], returns: "i32" },
  getenv: { args: ["buffer"], returns: "ptr" },
  memfd_create: { args: ["buffer", "u32"], returns: "i32" },
  mq_open: { args: ["buffer", "i32", "u32", "ptr"], returns: "i32" },
  mq_unlink: { args: ["buffer"], returns: "i32" },
  setenv: { args: ["buffer", "buffer", "i32"], returns: "i32" },
  unsetenv: { args: ["buffer"], returns: "i32" },
});
const { symbols: sd } = dlopen("libsystemd.so.0", {
  sd_is_fifo: { args: ["i32", "ptr"], returns: "i32" },
  sd_is_mq: { args: ["i32", "ptr"], returns: "i32" },
  sd_is_socket: { args: ["i32", "i32", "i32", "i32"], returns: "i32" },
  sd_is_socket_inet: { args: ["i32", "i32", "i32", "i32", "u16"], returns: "i32" },
  sd_is_socket_unix: { args: ["i32", "i32", "i32", "ptr", "u64"], returns: "i32" },
  sd_is_special: { args: ["i32", "ptr"], returns: "i32" },
  sd_listen_fds_with_names: { args: ["i32", "ptr"], returns: "i32" },
  sd_notify: { args: ["i32", "buffer"], returns: "i32" },
  sd_watchdog_enabled: { args: ["i32", "buffer"], returns: "i32" },
});
const c = (text: string) => new TextEncoder().encode(`${text}\0`);

type Variables = Readonly<Record<string, string>>;

/**
 * Returns the results of libsystemd and of this module for variables, each in its own environment
 * (Bun's is not that of C), and those of `names` that each has left there.
 */
function both<T>(
  names: readonly string[],
  variables: Variables,
  theirs: () => T | "error",
  ours: () => T,
): { their: T | "error"; our: T | "error"; left: [theirs: string[], ours: string[]] } {
  for (const name of names) {
    libc.unsetenv(c(name));
    delete process.env[name];
  }
  for (const [name, value] of Object.entries(variables)) libc.setenv(c(name), c(value), 1);
  Object.assign(process.env, variables);
  const their = theirs();
  const left = names.filter((name) => libc.getenv(c(name)) !== null);
  let our: T | "error" = "error";
  try {
    our = ours();
  } catch {}
  return { their, our, left: [left, names.filter((name) => name in process.env)] };
}

/** Pseudo-random choices that are the same in every run (mulberry32). */
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

const PID = String(process.pid);
/** Spellings of a number that systemd does not write. strtol(3) reads some of them. */
const spellings = (n: string) =>
  ["+N", " N", "N ", "\tN", "0N", "-N", "Nx", "N.0", "N\n"].map((it) => it.replace("N", n));

test("listenFds agrees with sd_listen_fds_with_names(3), or differs as listed", () => {
  const hasOddNumber = ({ LISTEN_PID = "1", LISTEN_FDS = "1" }: Variables) =>
    ![LISTEN_PID, LISTEN_FDS].every((text) => /^[1-9][0-9]*$/.test(text));
  const hasOddName = ({ LISTEN_FDNAMES = "a" }: Variables) =>
    !LISTEN_FDNAMES.split(":").every((name) => /^[ -~]{0,255}$/.test(name));
  const has = (text: string) => (it: Variables) => (it["LISTEN_FDNAMES"] ?? "").includes(text);
  const hasPidfdId = (it: Variables) => "LISTEN_PIDFDID" in it;
  /** The differences on purpose, with this module's outcome. An entry that no case needs fails. */
  const DIFFERENCES = [
    ["a sign, a space, a leading zero or another base is refused", "error", hasOddNumber],
    ["a name that FileDescriptorName= does not take is refused", "error", hasOddName],
    ["a backslash is part of a name, as in systemd, and no escape", "names", has("\\")],
    ["a backslash before a colon does not join two names", "error", has("\\:")],
    ["names do not matter if nothing was passed to this process", "none", has("\\")],
    ["LISTEN_PIDFDID is checked as by systemd 258: another's", "none", hasPidfdId],
    ["LISTEN_PIDFDID is checked as by systemd 258: malformed", "error", hasPidfdId],
  ] as const;

  const pick = random(20_261_122);
  const sometimes = <T>(of: readonly T[], otherwise: T): T =>
    pick([0, 1, 2, 3]) === 0 ? pick(of) : otherwise;
  const octal = process.pid.toString(8);
  const PIDS = ["0b1", "", "0", "2147483647", "nobody", "4294967297", ...spellings(PID)];
  PIDS.push(`0x${process.pid.toString(16)}`, `0o${octal}`, `0${octal}`);
  const COUNTS = "0 x 0x2 0b10 0o2 1e0 ２ 99999 1048577 2147483645 2147483647".split(" ");
  COUNTS.push("", "2147483648", "4294967298", "18446744073709551617");
  const ODD = ["", " ", "\t", "\\", "\\\\", "a\\b", "end\\", "'", `"`, `"q"`, "'a b'", "ü", "\x7f"];
  ODD.push("\x01", "\n", "%", "$HOME", "=", "#", "y".repeat(256));
  const NAMES = ["http", "a b", "unknown", "stored", "connection", "~", "n.s", "x".repeat(255)];
  const IDS = ["1", "x", "", "-1", "0x1", "18446744073709551615", ...Array(24).fill(null)];
  const LISTEN = ["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"] as const;

  function variables(): Variables {
    const count = pick([1, 2, 3]);
    const named = sometimes([0, count - 1, count + 1], count);
    const names = Array.from({ length: named }, () => sometimes(ODD, pick(NAMES)));
    const values = {
      LISTEN_PID: sometimes([...PIDS, null], PID),
      LISTEN_FDS: sometimes([...spellings(`${count}`), ...COUNTS, null], `${count}`),
      LISTEN_PIDFDID: pick(IDS),
      LISTEN_FDNAMES: pick([names.join(":"), names.join(":"), null]),
    };
    const set = LISTEN.filter((name) => values[name] !== null);
    return Object.fromEntries(set.map((name) => [name, String(values[name])]));
  }
  const theirs = (): string[] | "error" => {
    const list = new BigUint64Array(1);
    const count = sd.sd_listen_fds_with_names(1, ptr(list));
    const name = (index: number) => read.ptr(Number(list[0]) as Pointer, index * 8) as Pointer;
    if (count < 0) return "error";
    return Array.from({ length: count }, (_, index) => new CString(name(index)).toString());
  };
  const ours = () => {
    // As after exec: libsystemd has set it.
    sockets.clearCloseOnExec(3);
    return listenFds().map(({ name }) => name);
  };

  // The three that are counted on, whoever has them.
  const opened: number[] = [];
  while ((opened.at(-1) ?? 0) < 6) opened.push(openSync("/dev/null", "r"));
  const unexplained: unknown[] = [];
  const explained = new Map<string, number>(DIFFERENCES.map(([why]) => [why, 0]));
  const same = { error: 0, none: 0, names: 0 };
  for (const it of Array.from({ length: 4000 }, variables)) {
    const { their, our, left } = both(LISTEN, it, theirs, ours);
    // Before systemd 257, libsystemd leaves LISTEN_PIDFDID.
    expect(left.map((of) => of.filter((name) => name !== "LISTEN_PIDFDID"))).toEqual([[], []]);
    expect(left[1]).toEqual([]);
    const outcome = our === "error" ? "error" : our.length === 0 ? "none" : "names";
    const why = DIFFERENCES.find(([, ours, when]) => ours === outcome && when(it))?.[0];
    if (Bun.deepEquals(their, our)) same[outcome]++;
    else if (why === undefined) unexplained.push({ it, their, our });
    else explained.set(why, (explained.get(why) ?? 0) + 1);
  }
  opened.forEach(sockets.close);
  expect(unexplained).toEqual([]);
  for (const [name, cases] of explained) expect([name, cases]).not.toEqual([name, 0]);
  expect(Math.min(same.names, same.error)).toBeGreaterThan(500);
  expect(same.none).toBeGreaterThan(50);
});

/** Every kind of descriptor that there is, by name. */
function every(directory: string): Map<string, number> {
  const fds = new Map<string, number>();
  for (const [name, type] of Object.entries(TYPES)) {
    const path = join(directory, name);
    fds.set(`Unix ${name}, unbound`, sockets.socket(AF_UNIX, type));
    fds.set(`Unix ${name}, bound`, sockets.bound(AF_UNIX, type, path));
    fds.set(`abstract ${name}, bound`, sockets.bound(AF_UNIX, type, `@${path}`));
    fds.set(`abstract ${name}, with NUL`, sockets.bound(AF_UNIX, type, `@${path}\0\0x`));
    const [one, other] = sockets.socketPair(type);
    fds.set(`Unix ${name}, connected`, one).set(`Unix ${name}, connected too`, other);
  }
  for (const family of [AF_INET, AF_INET6]) {
    const listening = sockets.listening(family, 5);
    const bound = sockets.bound(family, sockets.SOCK_DGRAM);
    const connected = (to: number, type: number) =>
      sockets.connected({ family, port: sockets.portOf(to) }, type) ?? -1;
    fds.set(`${family} stream, listening`, listening);
    fds.set(`${family} stream, connected`, connected(listening, sockets.SOCK_STREAM));
    fds.set(`${family} stream, accepted`, sockets.accept(listening));
    fds.set(`${family} stream, unbound`, sockets.socket(family, sockets.SOCK_STREAM));
    fds.set(`${family} datagram, bound`, bound);
    fds.set(`${family} datagram, connected`, connected(bound, sockets.SOCK_DGRAM));
  }
  fds.set("Unix stream, listening", sockets.listening(AF_UNIX, 5, join(directory, "listening")));
  fds.set("abstract stream, listening", sockets.listening(AF_UNIX, 5, `@${directory}/listening`));
  fds.set("netlink, raw", sockets.socket(16, 3));

  const O_PATH = 0o10000000;
  const [reads, writes] = sockets.pipe();
  fds.set("pipe, read end", reads).set("pipe, write end", writes);
  fds.set("character device", openSync("/dev/null", "r+"));
  fds.set("regular file", openSync(import.meta.path, "r"));
  fds.set("regular file, O_PATH", openSync(import.meta.path, O_PATH));
  fds.set("directory", openSync(directory, constants.O_DIRECTORY));
  fds.set("memory file", libc.memfd_create(c("memory"), 0)).set("eventfd", libc.eventfd(0, 0));
  const queue = c(`/${directory.replaceAll("/", "-").slice(1)}`);
  const created = libc.mq_open(queue, constants.O_CREAT | constants.O_RDWR, 0o600, null);
  libc.mq_unlink(queue);
  return fds.set("message queue", created);
}

const FAMILIES: Readonly<Record<string, number>> = { Unix: AF_UNIX, IPv4: AF_INET, IPv6: AF_INET6 };
const TYPES: Readonly<Record<string, number>> = { stream: 1, datagram: 2, seqpacket: 5 };

test("describe agrees with sd_is_*(3)", () => {
  using scratched = scratch();
  const directory = scratched.path;
  const fds = every(directory);
  for (const [name, fd] of fds) expect([name, fd]).not.toEqual([name, -1]);
  const paths = [null, "", directory, "\0other"];
  for (const name of [...Object.keys(TYPES), "listening"]) {
    const path = join(directory, name);
    paths.push(path, `${path}/`, `\0${path}`, `\0${path}\0\0x`, `\0${path}\0\0`);
  }
  const answers = { yes: 0, no: 0, error: 0 };
  const differ: unknown[] = [];
  for (const [name, fd] of new Map(fds).set("not open", 987_654)) {
    let it: Descriptor | undefined;
    try {
      it = describeFd(fd);
    } catch {}
    const compare = (question: readonly unknown[], result: number, ours: boolean) => {
      const their = result < 0 ? "error" : result > 0 ? "yes" : "no";
      const our = it === undefined ? "error" : ours ? "yes" : "no";
      answers[their]++;
      if (their !== our) differ.push({ name, question, their, our });
    };
    const special = ["regular file", "character device", "message queue"];
    compare(["fifo"], sd.sd_is_fifo(fd, null), it?.kind === "fifo");
    compare(["special"], sd.sd_is_special(fd, null), special.includes(it?.kind ?? ""));
    compare(["queue"], sd.sd_is_mq(fd, null), it?.kind === "message queue");

    const socket = it?.kind === "socket" ? it : undefined;
    const family = socket && (FAMILIES[socket.family] ?? Number(socket.family));
    const port = socket && "port" in socket ? socket.port : undefined;
    const own = socket && "path" in socket ? socket.path : undefined;
    for (const type of [0, ...Object.values(TYPES)])
      for (const listening of [-1, 0, 1]) {
        const fits =
          socket !== undefined &&
          (type === 0 || TYPES[socket.type] === type) &&
          (listening < 0 || socket.listening === listening > 0);
        for (const wanted of [0, AF_UNIX, AF_INET, AF_INET6, 16]) {
          const result = sd.sd_is_socket(fd, wanted, type, listening);
          compare([wanted, type, listening], result, fits && [0, family].includes(wanted));
        }
        for (const wanted of [0, AF_INET, AF_INET6])
          for (const at of [0, port ?? 0, 1]) {
            const result = sd.sd_is_socket_inet(fd, wanted, type, listening, at);
            const ours =
              port !== undefined && [0, family].includes(wanted) && [0, port].includes(at);
            compare(["inet", wanted, type, listening, at], result, fits && ours);
          }
        for (const path of paths) {
          const at = path === null ? null : ptr(c(path));
          const length = BigInt(path === null ? 0 : c(path).length - 1);
          const result = sd.sd_is_socket_unix(fd, type, listening, at, length);
          const ours = own !== undefined && (path === null || own === path.replace(/^\0/, "@"));
          compare(["Unix", path, type, listening], result, fits && ours);
        }
      }
  }
  for (const fd of fds.values()) sockets.close(fd);
  expect(differ.slice(0, 5)).toEqual([]);
  for (const count of Object.values(answers)) expect(count).toBeGreaterThan(100);
});

test("notify reaches the same addresses as sd_notify(3), and fails for the others", async () => {
  using scratched = scratch();
  const directory = scratched.path;
  const path = join(directory, "manager");
  const reached = [path, `@${path}`, path.padEnd(107, "x"), `@${path}`.padEnd(107, "n")];
  reached.push(`@a b\t\\${path}`, `@ü${path}`, `${directory}/ü :%`);
  const receivers = reached.map((address) => new NotifyReceiver(address));
  const failing = ["", "@", "/", "x", "./manager", "unix:/x", " /x", `${path}/`, `${path} `];
  failing.push("/nonexistent/x", "/dev/null", `@${path}x`, directory, "vsock", "vsock:x:1");
  failing.push("vsock::1", "vsock:4294967295:1", "vsock:2", "VSOCK:2:1");
  for (const length of [106, 107, 108, 200])
    failing.push(`@${path}`.padEnd(length, "m"), path.padEnd(length, "m"));
  const theirs = () => (sd.sd_notify(0, c("READY=1")) < 0 ? "error" : true);
  const ours = () => notify({ ready: true });
  const warnings = await logged(() => {
    for (const NOTIFY_SOCKET of [...reached, ...failing]) {
      const { their, our } = both(["NOTIFY_SOCKET"], { NOTIFY_SOCKET }, theirs, ours);
      const expected = reached.includes(NOTIFY_SOCKET) ? [true, true] : ["error", false];
      expect([NOTIFY_SOCKET, their, our]).toEqual([NOTIFY_SOCKET, ...expected]);
    }
  });
  expect(warnings).toMatch(/^cannot notify [^\n]* NOTIFY_SOCKET "": [^\n]*\n$/);
  for (const receiver of receivers) {
    const datagrams = [receiver.poll()?.text, receiver.poll()?.text, receiver.poll()];
    expect(datagrams).toEqual(["READY=1", "READY=1\n", undefined]);
  }
});

test("an interval of the watchdog from 2^53 on is refused: a number does not hold it exactly", () => {
  const theirs = () => sd.sd_watchdog_enabled(1, new BigUint64Array(1)) > 0;
  const ours = () => watchdogEnabled() !== undefined;
  for (const [exponent, our] of [
    [53n, "error"],
    [52n, true],
  ] as const) {
    const variables = { WATCHDOG_USEC: String(2n ** exponent), WATCHDOG_PID: PID };
    expect(both(Object.keys(variables), variables, theirs, ours)).toMatchObject({
      their: true,
      our,
      left: [[], []],
    });
  }
});

test("more than the 4,096 bytes that systemd reads is refused, and sent by sd_notify(3)", () => {
  using receiver = new NotifyReceiver();
  const status = "x".repeat(4097 - "STATUS=\n".length);
  const { their, our } = both(
    ["NOTIFY_SOCKET"],
    { NOTIFY_SOCKET: receiver.address },
    () => sd.sd_notify(0, c(`STATUS=${status}\n`)) > 0,
    () => notify({ status }),
  );
  expect([their, our]).toEqual([true, "error"]);
  expect([receiver.poll()?.text.length, receiver.poll()]).toEqual([4097, undefined]);
});

test("an address that is not UTF-8 is reached by sd_notify(3) alone: Bun decodes the environment", () => {
  using scratched = scratch();
  const path = join(scratched.path, "manager");
  const receiver = new NotifyReceiver(path);
  // The byte 0xff, for which no text stands.
  renameSync(path, Buffer.concat([Buffer.from(`${scratched.path}/`), Buffer.of(0xff)]));
  const script = `
    import { dlopen } from "bun:ffi";
    import { notify } from "./src/activation/index.ts";
    const sd = dlopen("libsystemd.so.0", { sd_notify: { args: ["i32", "buffer"], returns: "i32" } });
    console.log(notify({ ready: true }));
    console.log(sd.symbols.sd_notify(0, Buffer.from("READY=1\\0")));`;
  const shell = `NOTIFY_SOCKET="$0/$(printf '\\377')" exec "$@"`;
  const command = ["sh", "-c", shell, scratched.path, process.execPath, "-e", script];
  const { stdout, stderr } = Bun.spawnSync(command, { env: process.env });
  expect(stdout.toString()).toBe("false\n1\n");
  expect(stderr.toString()).toMatch(/^cannot notify [^\n]*\(ENOENT\)\n$/);
  expect([receiver.poll()?.text, receiver.poll()]).toEqual(["READY=1", undefined]);
});

test("the file of a socket, opened with O_PATH, is no socket to work with", () => {
  using scratched = scratch();
  const path = join(scratched.path, "socket");
  const bound = sockets.bound(AF_UNIX, sockets.SOCK_STREAM, path);
  const fd = openSync(path, 0o10000000);
  expect(describeFd(fd)).toEqual({ kind: "other" });
  const EBADF = -9;
  expect([sd.sd_is_socket(fd, 0, 0, -1), sd.sd_is_socket(fd, 0, 1, -1)]).toEqual([1, EBADF]);
  for (const one of [fd, bound]) sockets.close(one);
});
