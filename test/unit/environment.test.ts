import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { closeSync, openSync, readlinkSync } from "node:fs";

import {
  isName,
  parseDecimal,
  takePassed,
  takeVariable,
} from "../../src/activation/environment.ts";
import {
  acceptedFd,
  listenFds,
  type PassedDescriptor,
  passedFd,
  pick,
  requireListenFds,
} from "../../src/activation/index.ts";
import { pidfdId, setCloseOnExec } from "../../src/activation/libc.ts";
import { clearCloseOnExec, closesOnExec } from "../support/sockets.ts";
import { refusal, thrown } from "../support/listening.ts";

const NAMES = ["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"] as const;
type Variables = Partial<Record<(typeof NAMES)[number], string>>;

/** Sets the variables, LISTEN_PID to this process unless it is given as something else. */
function pass(variables: Variables): void {
  Object.assign(process.env, { LISTEN_PID: String(process.pid), ...variables });
}

beforeEach(() => NAMES.forEach(takeVariable));
afterEach(() => {
  // Whatever the outcome, no variable is left for a child to inherit.
  for (const name of NAMES) expect(process.env[name]).toBeUndefined();
});

describe("takePassed", () => {
  test("finds nothing where nothing is set", () => {
    expect(takePassed()).toEqual({ count: 0, reason: "LISTEN_PID is not set" });
  });

  test("finds nothing that is for another process", () => {
    pass({ LISTEN_PID: "1", LISTEN_FDS: "nonsense" });
    expect(takePassed()).toEqual({
      count: 0,
      reason: `LISTEN_PID is 1 and this is process ${process.pid}`,
    });
  });

  test("finds nothing where no descriptors are counted", () => {
    pass({});
    expect(takePassed()).toEqual({ count: 0, reason: "LISTEN_FDS is not set" });
  });

  test("finds a count, with names and without", () => {
    pass({ LISTEN_FDS: "2" });
    expect(takePassed()).toEqual({ count: 2, names: undefined });
    pass({ LISTEN_FDS: "2", LISTEN_FDNAMES: "http:with space" });
    expect(takePassed()).toEqual({ count: 2, names: ["http", "with space"] });
  });

  test("checks LISTEN_PIDFDID against this process", () => {
    const id = pidfdId();
    pass({ LISTEN_FDS: "1", LISTEN_PIDFDID: String(id ?? 1) });
    expect(takePassed()).toEqual({ count: 1, names: undefined });
    pass({ LISTEN_FDS: "1", LISTEN_PIDFDID: String((id ?? 0) + 1) });
    // Where the kernel has no pidfs, the process id has to do.
    expect(takePassed().count).toBe(id === undefined ? 1 : 0);
  });

  const decimals = ["", "x", "+1", "-1", " 1", "1 ", "0x1", "01", "0", "1.5", "1e1", "1\n"];
  test.each(["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS"] as const)(
    "refuses every malformed %s",
    (name) => {
      // More than there can be, of processes and of descriptors.
      const most = {
        LISTEN_PID: "2147483648",
        LISTEN_FDS: "1048577",
        LISTEN_PIDFDID: "9007199254740993",
      };
      for (const value of [...decimals, most[name]]) {
        pass({ LISTEN_FDS: "1", [name]: value });
        expect(thrown(takePassed)).toEqual(refusal(78, RegExp(`^${name} is "`)));
      }
    },
  );

  test.each([
    "a",
    "a:b:c",
    "a:",
    ":a",
    "",
    "a:b\x7f",
    "a:b\n",
    `a:${"x".repeat(256)}`,
    "a:ü",
    "::",
  ])("refuses the names %j for two descriptors", (names) => {
    pass({ LISTEN_FDS: "2", LISTEN_FDNAMES: names });
    expect(thrown(takePassed)).toEqual(refusal(78, /^LISTEN_FDNAMES .*: start it from a socket/));
  });
});

test("a name is what FileDescriptorName= takes", () => {
  for (const name of ["a", " ", "~", "x".repeat(255)]) expect(isName(name)).toBe(true);
  for (const name of ["", ":", "\x1f", "\x7f", "é", "x".repeat(256)])
    expect(isName(name)).toBe(false);
});

test("a number too large to be exact is none", () => {
  expect(parseDecimal("N", "9007199254740991", "a number")).toBe(2 ** 53 - 1);
  expect(thrown(() => parseDecimal("N", "9007199254740993", "a number"))).toEqual(
    refusal(78, /^N /),
  );
});

describe("listenFds", () => {
  /** Makes descriptor 3 look as if it came through exec. */
  function inherited(): void {
    clearCloseOnExec(3);
  }

  test("gives none where none were passed, and requireListenFds says why", () => {
    expect(listenFds()).toEqual([]);
    expect(passedFd()).toBeUndefined();
    expect(thrown(requireListenFds)).toEqual(
      refusal(78, /^no socket was passed, LISTEN_PID is not set: start it from a socket unit or /),
    );
  });

  test("gives number and name, and sets close-on-exec", () => {
    inherited();
    pass({ LISTEN_FDS: "1", LISTEN_FDNAMES: "http" });
    expect(listenFds()).toEqual([{ fd: 3, name: "http" }]);
    expect(closesOnExec(3)).toBe(true);
    expect(listenFds()).toEqual([]);
    inherited();
    pass({ LISTEN_FDS: "1" });
    expect(requireListenFds()).toEqual([{ fd: 3, name: "unknown" }]);
    inherited();
    pass({ LISTEN_FDS: "1" });
    expect(passedFd()).toBe(3);
  });

  test("refuses descriptors that are not open, or were not passed", () => {
    setCloseOnExec(3);
    pass({ LISTEN_FDS: "1" });
    expect(thrown(listenFds)).toEqual(
      refusal(78, /^descriptor 3 is not open, though LISTEN_FDS is 1/),
    );
    inherited();
    pass({ LISTEN_FDS: "65536" });
    expect(thrown(listenFds)).toEqual(
      refusal(78, /^descriptor \d+ is not open, though LISTEN_FDS is 6/),
    );
  });

  test("passedFd and acceptedFd refuse several", () => {
    const other = openSync("/dev/null", "r");
    inherited();
    pass({ LISTEN_FDS: "2" });
    expect(thrown(passedFd)).toEqual(refusal(78, /^LISTEN_FDS is 2, but this takes one /));
    pass({ LISTEN_FDS: "2" });
    expect(thrown(acceptedFd)).toEqual(refusal(78, /^LISTEN_FDS is 2, but this takes one /));
    closeSync(other);
  });

  test("acceptedFd gives the one, and says why there is none", () => {
    pass({ LISTEN_FDS: "1" });
    expect(acceptedFd()).toBe(3);
    expect(thrown(acceptedFd)).toEqual(refusal(78, /^no socket was passed, LISTEN_PID is not set/));
  });
});

describe("pick", () => {
  const passed: PassedDescriptor[] = [
    { fd: 3, name: "http" },
    { fd: 4, name: "admin" },
    { fd: 5, name: "http" },
  ];

  test("gives one, some, any, and what there may be, of each name", () => {
    const picked = pick(passed, { http: "some", admin: "one", state: "optional", more: "any" });
    const admin: number = picked.admin;
    const http: readonly number[] = picked.http;
    const state: number | undefined = picked.state;
    expect({ admin, http, state }).toEqual({ admin: 4, http: [3, 5], state: undefined });
    expect(picked.more).toEqual([]);
    expect(pick(passed, { http: "any", admin: "optional" }).admin).toBe(4);
    expect(pick([], {})).toEqual({});
  });

  test("refuses a missing one, a surplus one, and a name that is not wanted", () => {
    expect(thrown(() => pick(passed, { http: "some", admin: "one", state: "one" }))).toEqual(
      refusal(
        78,
        /^0 descriptors are named "state", where one is wanted: set FileDescriptorName=state /,
      ),
    );
    expect(thrown(() => pick([], { http: "some" }))).toEqual(
      refusal(78, /^0 descriptors are named/),
    );
    expect(thrown(() => pick(passed, { http: "optional", admin: "one" }))).toEqual(
      refusal(78, /^2 descriptors are named "http", where optional is wanted/),
    );
    expect(thrown(() => pick(passed, { http: "any", stream: "any" }))).toEqual(
      refusal(78, /^descriptor 4 is named "admin": set FileDescriptorName= to http or stream$/),
    );
  });
});

test("pidfdId is the inode of this process's pidfd, where the kernel has pidfs", () => {
  const id = pidfdId();
  if (id !== undefined) expect(id).toBeGreaterThan(0);
  expect(readlinkSync("/proc/self/fd/3")).toBeString();
});
