import { afterEach, beforeEach, describe, expect, spyOn, test } from "bun:test";
import { closeSync, openSync } from "node:fs";

import { takeVariable } from "../../src/activation/environment.ts";
import { kept } from "../../src/activation/receive/listen-fds.ts";
import * as libc from "../../src/activation/linux/libc.ts";
import { acceptedFd, listenFds, passedFd } from "../../src/activation/receive/listen-fds.ts";
import { requireListenFds, takePassed } from "../../src/activation/receive/listen-fds.ts";
import { refusal } from "../support/checks.ts";
import { execute } from "../support/daemon.ts";
import { lines } from "../support/lines.ts";
import { clearCloseOnExec } from "../support/sockets.ts";

/** Executes a program as systemd does, with `count` descriptors, and returns its output. */
async function printed(
  count: number,
  variables: Record<string, string | undefined>,
  program: string,
): Promise<unknown[]> {
  const passed = Array.from({ length: count }, () => openSync("/dev/null", "r+"));
  const script = `
    import { listenFds, LISTEN_FDS_START, requireListenFds } from "./src/activation/index.ts";
    import { clearCloseOnExec, closesOnExec } from "./test/support/sockets.ts";
    const print = (value) => console.log(JSON.stringify(value));
    const failed = (call) => { try { return call(); } catch (e) { return [e.status, e.message]; } };
    ${program}`;
  await using child = execute(process.execPath, passed, variables, ["-e", script]);
  passed.forEach((fd) => closeSync(fd));
  const output: unknown[] = [];
  for await (const line of lines(child.process.stdout)) output.push(JSON.parse(line));
  expect([await child.status(), child.stderr]).toEqual([0, ""]);
  return output;
}

test("listenFds returns numbers from 3 on with their names, once", async () => {
  const program = `print(listenFds()); print(listenFds()); print(LISTEN_FDS_START)`;
  expect(await printed(3, { LISTEN_FDNAMES: "a:b:a" }, program)).toEqual([
    [
      { fd: 3, name: "a" },
      { fd: 4, name: "b" },
      { fd: 5, name: "a" },
    ],
    [],
    3,
  ]);
});

test("requireListenFds returns the same; without names, each is unknown", async () => {
  const expected = [
    { fd: 3, name: "unknown" },
    { fd: 4, name: "unknown" },
  ];
  expect(await printed(2, {}, "print(requireListenFds())")).toEqual([expected]);
});

test("every descriptor closes on exec, and no variable is left for a child", async () => {
  const program = `
    // As it comes through exec: Bun sets it on the descriptors that it finds from 4 on.
    for (const fd of [3, 4]) clearCloseOnExec(fd);
    listenFds();
    print([closesOnExec(3), closesOnExec(4)]);
    print(Object.keys(process.env).filter((name) => name.startsWith("LISTEN_")));`;
  const variables = { LISTEN_FDNAMES: "a:b" };
  expect(await printed(2, variables, program)).toEqual([[true, true], []]);
});

test("without LISTEN_PID listenFds returns none, and requireListenFds says why", () => {
  expect(listenFds()).toEqual([]);
  expect(refusal(requireListenFds)).toMatch(
    /^78: no socket was passed, because LISTEN_PID is not set: start the program from a socket unit or /,
  );
});

test("a descriptor that is not open is an error, and so is one that the runtime opened", async () => {
  const says = (fd: RegExp, count: number) => [
    [
      78,
      expect.stringMatching(
        RegExp(`^descriptor ${fd.source} is not open, though LISTEN_FDS is ${count}: `),
      ),
    ],
  ];
  const program = "print(failed(listenFds))";
  expect(await printed(0, { LISTEN_FDS: "1" }, program)).toEqual(says(/3/, 1));
  expect(await printed(1, { LISTEN_FDS: "65536" }, program)).toEqual(says(/\d+/, 65_536));
});

test("passedFd returns the one descriptor, or none", () => {
  expect(passedFd()).toBeUndefined();
  // No descriptor of this process was passed: Bun has opened 3, with close-on-exec.
  clearCloseOnExec(3);
  Object.assign(process.env, { LISTEN_PID: process.pid, LISTEN_FDS: "1" });
  expect(passedFd()).toBe(3);
  expect(passedFd()).toBeUndefined();
});

test("passedFd refuses several", () => {
  clearCloseOnExec(3);
  Object.assign(process.env, { LISTEN_PID: process.pid, LISTEN_FDS: "2" });
  expect(refusal(passedFd)).toMatch(
    /^78: LISTEN_FDS is 2, but passedFd takes one descriptor: keep only one Listen...= line in the socket units, or use listenFds$/,
  );
});

describe("acceptedFd", () => {
  const pass = (LISTEN_FDS: string) =>
    Object.assign(process.env, { LISTEN_PID: process.pid, LISTEN_FDS });

  test("returns the number of the one descriptor, once", () => {
    pass("1");
    expect(acceptedFd()).toBe(3);
    expect(refusal(acceptedFd)).toMatch(
      /^78: no connection was passed, because an earlier call returned it: keep the result of that call; /,
    );
  });

  test("refuses several", () => {
    pass("2");
    expect(refusal(acceptedFd)).toMatch(
      /^78: LISTEN_FDS is 2, but the program takes one connection: set Accept=yes in the socket/,
    );
  });
});

beforeEach(() => void delete kept.found);

const NAMES = ["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"] as const;
/** The largest process id, which is no ancestor's. */
const NOBODY = "2147483647";
type Variables = Partial<Record<(typeof NAMES)[number], string>>;

/** Calls takePassed with these variables; LISTEN_PID is this process's unless it is given. */
function taken(variables: Variables) {
  Object.assign(process.env, { LISTEN_PID: String(process.pid), ...variables });
  return takePassed();
}

describe("takePassed", () => {
  afterEach(() => {
    // Whatever the outcome, no variable is left for a child to inherit.
    for (const name of NAMES) expect(takeVariable(name)).toBeUndefined();
  });

  test("says why nothing was passed", () => {
    expect(takePassed()).toEqual({ reason: "LISTEN_PID is not set" });
    const reason = `LISTEN_PID is ${NOBODY} and this is process ${process.pid}`;
    const other = {
      LISTEN_PID: NOBODY,
      LISTEN_FDS: "x",
      LISTEN_FDNAMES: "\n",
      LISTEN_PIDFDID: "1",
    };
    const remedy = "write this program itself in ExecStart=, and do not set LISTEN_* yourself";
    expect(taken(other)).toEqual({ reason, remedy });
    expect(taken({})).toEqual({
      reason: "LISTEN_FDS is not set",
      remedy: "do not set LISTEN_* yourself, because systemd sets it",
    });
  });

  test("returns a count, with names and without", () => {
    expect(taken({ LISTEN_FDS: "2" })).toEqual({ count: 2, names: undefined });
    const names = ["http", "with space"];
    expect(taken({ LISTEN_FDS: "2", LISTEN_FDNAMES: names.join(":") })).toEqual({
      count: 2,
      names,
    });
    // As `systemd-socket-activate --fdname=` sends it.
    expect(taken({ LISTEN_FDS: "1", LISTEN_FDNAMES: "" })).toEqual({ count: 1, names: [""] });
    expect(taken({ LISTEN_FDS: "1048576" })).toEqual({ count: 2 ** 20, names: undefined });
  });

  test("accepts the LISTEN_PIDFDID of this process, and no other if the kernel has pidfs", () => {
    const id = libc.pidfdId();
    const own = { LISTEN_FDS: "1", LISTEN_PIDFDID: String(id ?? 1) };
    expect(taken(own)).toEqual({ count: 1, names: undefined });
    const reason = `LISTEN_PIDFDID is 4711, and that of this process is ${id}`;
    const other =
      id === undefined ? { count: 1, names: undefined } : { reason, remedy: expect.any(String) };
    expect(taken({ LISTEN_FDS: "1", LISTEN_PIDFDID: "4711" })).toEqual(other);
    using _ = spyOn(libc, "pidfdId").mockReturnValue(undefined);
    expect(taken({ LISTEN_FDS: "1", LISTEN_PIDFDID: "4711" })).toEqual({
      count: 1,
      names: undefined,
    });
  });

  // The last is more than there can be: of processes, of descriptors, of exact numbers.
  test.each([
    ["LISTEN_PID", "a process id", "2147483648"],
    ["LISTEN_FDS", "a count of descriptors", "1048577"],
    ["LISTEN_PIDFDID", "a pidfd id", "9007199254740992"],
  ] as const)("refuses every malformed %s", (name, what, most) => {
    const malformed = ["", "x", "+1", "-1", " 1", "1 ", "0x1", "01", "0", "1.5", "1e1", "1\n"];
    for (const value of [...malformed, "Infinity", most])
      expect(refusal(() => taken({ LISTEN_FDS: "1", [name]: value }))).toMatch(
        RegExp(`^78: ${name} is ".*", which is not ${what}: do not set ${name} yourself, `),
      );
  });

  test("refuses names that are not as many as the descriptors", () => {
    for (const names of ["a", "a:b:c", "", "::"])
      expect(refusal(() => taken({ LISTEN_FDS: "2", LISTEN_FDNAMES: names }))).toMatch(
        /^78: LISTEN_FDNAMES "[abc:]*" holds [13] .* LISTEN_FDS is 2: do not set LISTEN_\* yourself, because systemd sets it$/,
      );
  });

  test("refuses a name that is none", () => {
    for (const names of ["a:b\x7f", "\x1f:", "a:ü", `a:${"x".repeat(256)}`])
      expect(refusal(() => taken({ LISTEN_FDS: "2", LISTEN_FDNAMES: names }))).toMatch(
        /^78: LISTEN_FDNAMES holds ".*", which is not a name: do not set LISTEN_\* yourself, because systemd sets it$/,
      );
  });
});
