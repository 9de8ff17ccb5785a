import { dlopen } from "bun:ffi";
import { describe, expect, spyOn, test } from "bun:test";
import fs, { constants, fstatSync, openSync, readFileSync, statfsSync, writeSync } from "node:fs";
import { resolve } from "node:path";

import { remedyForCall, whyNoLibc } from "../../src/activation/linux/libc-errors.ts";
import * as libc from "../../src/activation/linux/libc.ts";
import { runtime } from "../../src/activation/bun.ts";
import { descriptors, nothingLeft, refusal } from "../support/checks.ts";
import { run } from "../support/daemon.ts";
import {
  accept,
  AF_UNIX,
  close,
  closesOnExec,
  connected,
  listening,
  pipe,
} from "../support/sockets.ts";
import { EMULATED } from "../support/until.ts";

const { symbols: reference } = dlopen("libc.so.6", {
  clock_gettime: { args: ["i32", "buffer"], returns: "i32" },
  syscall: { args: ["i64", "i32", "u32"], returns: "i64" },
});

test("what the peer of a connection has not read is unread there, and unsent here", () => {
  const path = `@${crypto.randomUUID()}`;
  const listener = listening(AF_UNIX, 1, path);
  const client = connected(path) ?? -1;
  const accepted = accept(listener);
  const queued = () => [client, accepted].map((fd) => [libc.hasUnread(fd), libc.hasUnsent(fd)]);
  expect(queued()).toEqual([
    [false, false],
    [false, false],
  ]);
  writeSync(client, "hello");
  expect(queued()).toEqual([
    [false, true],
    [true, false],
  ]);
  for (const fd of [client, accepted, listener]) close(fd);
});

test("without FFI each call names the fault and the remedy, and optional calls return undefined", async () => {
  // An instance of the module that has opened no library yet.
  const path = "../../src/activation/linux/libc.ts?without-ffi";
  const fresh: typeof libc = await import(path);
  if (runtime.FFI === undefined) throw new Error("this Bun has no Bun.FFI");
  using dlopen = spyOn(runtime.FFI, "dlopen");
  dlopen.mockReturnValue(new Error("no memory"));
  expect(refusal(() => fresh.duplicate(0))).toMatch(
    /^71: cannot call libc, no memory: allow memory that is writable and executable \(M/,
  );
  expect(fresh.canCallLibc()).toBe(false);
  // LISTEN_PID has to do.
  expect(fresh.pidfdId()).toBeUndefined();
  // It is opened once, when it can be.
  dlopen.mockRestore();
  using opening = spyOn(runtime.FFI, "dlopen");
  fresh.close(fresh.duplicate(0));
  expect(opening).toHaveBeenCalledTimes(1);
});

test("an error names the call and its errno, by number if it has no name", () => {
  expect(refusal(() => libc.close(-1))).toMatch(
    /^71 EBADF: close failed, bad file descriptor \(EBADF\)$/,
  );
  using map = spyOn(process.getBuiltinModule("node:util"), "getSystemErrorMap");
  map.mockReturnValue(new Map());
  expect(refusal(() => libc.close(-1))).toMatch(
    /^71 errno 9: close failed, unknown error \(errno 9\)$/,
  );
});

test("readProc reads files of any length, and knows one that is missing", async () => {
  const before = descriptors();
  expect(libc.readProc("/proc/self/smaps")).toMatch(/^[0-9a-f]+-[^]{5000,}\nVmFlags:.*\n$/);
  expect(libc.readProc("/proc/self/comm")).toBe(readFileSync("/proc/self/comm", "utf8"));
  expect(libc.readProc("/proc/self/nothing")).toBeUndefined();
  expect(refusal(() => libc.readProc("/proc/self/comm/x"))).toMatch(/^71 ENOTDIR: open /);
  expect(refusal(() => libc.readProc("/proc/self/fd"))).toMatch(/^71 EISDIR: read /);
  await nothingLeft(before);
});

test("the time is that of CLOCK_MONOTONIC, in microseconds", () => {
  const now = () => {
    const time = new BigInt64Array(2);
    reference.clock_gettime(1, time);
    return (time[0] ?? 0n) * 1_000_000n + (time[1] ?? 0n) / 1_000n;
  };
  const times = [now(), libc.monotonicMicroseconds(), now(), libc.monotonicMicroseconds(), now()];
  expect(times).toEqual(times.toSorted((a, b) => Number(a - b)));
});

test("pidfdId is the inode of this process's pidfd if the kernel has pidfs", async () => {
  const before = descriptors();
  const pidfd = Number(reference.syscall(434n, process.pid, 0));
  const isPidfs = pidfd >= 0 && statfsSync(`/proc/self/fd/${pidfd}`).type === 0x50494446;
  expect(libc.pidfdId()).toBe(isPidfs ? fstatSync(pidfd).ino : undefined);
  if (pidfd >= 0) close(pidfd);
  await nothingLeft(before);
});

test("a duplicate refers to the same file, and no child inherits it", () => {
  const [reads, writes] = pipe();
  const fds = [reads, writes, libc.duplicate(writes)] as const;
  libc.replace(fds[0], fds[1]);
  // The two ends of a pipe have one inode, and one mode each.
  const flags = fds.map(
    (fd) => readFileSync(`/proc/self/fdinfo/${fd}`, "utf8").match(/flags:.*/)?.[0],
  );
  expect(flags).toEqual(["flags:\t02000000", "flags:\t02000000", "flags:\t02000001"]);
  fds.forEach(close);
});

test("setNonBlocking sets that flag and leaves the others", () => {
  const fd = openSync("/dev/null", constants.O_WRONLY | constants.O_APPEND);
  libc.setNonBlocking(fd);
  const flags = constants.O_WRONLY | constants.O_APPEND | constants.O_NONBLOCK;
  const read = /flags:\s+(\d+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"))?.[1];
  expect(Number.parseInt(read ?? "", 8) & flags).toBe(flags);
  close(fd);
});

test("no child inherits a file in memory", () => {
  const fd = libc.memoryFile("it");
  expect(closesOnExec(fd)).toBe(true);
  close(fd);
});

test("sockets are told apart by their inodes, and no child inherits one for datagrams", () => {
  const [one, other] = [libc.datagramSocket(), libc.datagramSocket()];
  expect(closesOnExec(one)).toBe(true);
  expect(libc.identity(one)).toMatch(/^socket:\[\d+\]$/);
  expect(libc.identity(other)).not.toBe(libc.identity(one));
  for (const fd of [one, other]) close(fd);
  expect(libc.identity(one)).toBe("");
});

test("a placeholder takes a number, and leaves nothing open, also if it cannot", async () => {
  const before = descriptors();
  expect(refusal(() => libc.replaceByPlaceholder(-1))).toMatch(/^71 EBADF: dup3 /);
  await nothingLeft(before);
  const [reads, writes] = pipe();
  libc.replaceByPlaceholder(reads);
  expect(libc.identity(reads)).toMatch(/^socket:/);
  for (const fd of [reads, writes]) close(fd);
  await nothingLeft(before);
});

test("freeDescriptors counts down from the limit, and leaves nothing open", async () => {
  const held = libc.datagramSocket();
  const open = descriptors();
  libc.freeDescriptors();
  await nothingLeft(open);
  close(held);
  const limit = Number(/open files +(\d+)/.exec(readFileSync("/proc/self/limits", "utf8"))?.[1]);
  const before = libc.freeDescriptors();
  expect(before).toBeWithin(limit - 200, limit);
  const fd = libc.datagramSocket();
  expect(libc.freeDescriptors()).toBeLessThan(before);
  close(fd);
});

test("a descriptor that is no socket is told from an error while no descriptor is free", async () => {
  // The collector of JavaScriptCore opens a file meanwhile, which changes errno.
  const { status, stdout, stderr } = await run(
    `import { openSync } from "node:fs";
    import { socketName } from "${resolve(import.meta.dir, "../../src/activation/linux/libc.ts")}";
    const files = [];
    try { for (;;) files.push(openSync("/dev/null")); } catch {}
    for (let n = 0; n < 5000; n++) for (const fd of files) socketName(fd);
    console.log("done");`,
    {},
    256,
  );
  expect([status, stdout, stderr]).toEqual([0, "done\n", ""]);
});

test("the error of a denied call names the setting that denies it, unless the kernel itself does", () => {
  expect(remedyForCall("bind", "EPERM")).toBe(": allow bind (SystemCallFilter=)");
  // For the process of another user.
  expect(remedyForCall("sendmsg", "EPERM")).toBe("");
});

test("libc that cannot be called is explained by the library, a variable or the sandbox", () => {
  const why = "bun:ffi requires the JIT";
  expect(whyNoLibc("no libc.so.6")).toBe(
    "cannot call libc, no libc.so.6: use 64-bit Linux with glibc",
  );
  process.env["BUN_JSC_useJIT"] = "0";
  expect(whyNoLibc(why)).toBe(`cannot call libc, ${why}: unset BUN_JSC_useJIT (it is "0")`);
  const sandbox = `cannot call libc, ${why}: allow memory that is writable and executable (MemoryDenyWriteExecute=no)`;
  for (const enabled of ["1", "true", "yes"]) {
    process.env["BUN_JSC_useJIT"] = enabled;
    expect(whyNoLibc(why)).toBe(sandbox);
  }
  delete process.env["BUN_JSC_useJIT"];
  expect(whyNoLibc(why)).toBe(sandbox);
  using read = spyOn(fs, "readFileSync");
  read.mockReturnValue(
    "Max address space        unlimited   unlimited   bytes\nMax data size 1024 1 bytes",
  );
  expect(whyNoLibc(why)).toMatch(/: raise LimitDATA= \(ulimit -d\) from 0 MB to 4000 MB or more$/);
  read.mockImplementation(() => {
    throw new Error("there is no /proc");
  });
  expect(whyNoLibc(why)).toBe(sandbox);
});

// The limits of memory are those of the emulator, too.
describe.skipIf(EMULATED)("without the JIT, the error names the setting that is at fault", () => {
  const program = `
    import { describe } from "./src/activation/index.ts";
    try { describe(0) } catch (error) { console.log(error.status, error.message) }`;
  const command = [process.execPath, "-e", program];
  const output = (command: string[], env: Record<string, string> = {}) => {
    const { stdout } = Bun.spawnSync(command, { env: { PATH: process.env["PATH"], ...env } });
    return stdout.toString();
  };
  const WHY = "71 cannot call libc, bun:ffi requires the JIT: ";

  test.each([
    ["-v", "LimitAS= (ulimit -v)"],
    ["-d", "LimitDATA= (ulimit -d)"],
  ])("ulimit %s", (limit, setting) => {
    const limited = (kilobytes: number) =>
      output(["/bin/sh", "-c", `ulimit ${limit} ${kilobytes}; exec "$@"`, "sh", ...command]);
    const remedy = `raise ${setting} from 1024 MB to 4000 MB or more\n`;
    expect(limited(1_000_000)).toBe(`${WHY}${remedy}`);
    // 4000 MB are enough.
    expect(limited(4_000_000_000 / 1024)).toBe("");
  });

  test("a variable", () => {
    for (const value of ["0", "false"])
      expect(output(command, { BUN_JSC_useJIT: value })).toBe(
        `${WHY}unset BUN_JSC_useJIT (it is "${value}")\n`,
      );
    expect(output(command, { BUN_JSC_useJIT: "1" })).toBe("");
  });
});

test("a variable of the start is not one that the program sets", () => {
  const name = crypto.randomUUID();
  process.env[name] = "later";
  expect(libc.startVariable(name)).toBeUndefined();
  delete process.env[name];
  expect(libc.startVariable("PATH")).toBe(process.env["PATH"] ?? "");
});

test("the name of a variable ends where it ends, whatever is behind it in memory", () => {
  // Behind a short one, there is often a zero by chance.
  const name = "V".repeat(1024);
  const module = JSON.stringify(resolve(import.meta.dir, "../../src/activation/linux/libc.ts"));
  const source = `const { startVariable } = await import(${module});
    const kept = [];
    const found = new Set();
    for (let i = 0; i < 1000; i++) {
      kept.push(new Uint8Array(1024).fill(65), new Uint8Array(1025).fill(65));
      found.add(startVariable("V".repeat(1024)));
    }
    console.log(kept.length, ...found);`;
  const env = { ...process.env, [name]: "value" };
  const { stdout } = Bun.spawnSync([process.execPath, "-e", source], { env });
  expect(stdout.toString()).toBe("2000 value\n");
});
