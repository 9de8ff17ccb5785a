import { afterEach, describe, expect, spyOn, test } from "bun:test";

import {
  isName,
  nothingPassed,
  parseDecimal,
  takePassed,
  takeVariable,
} from "../../src/activation/environment.ts";
import * as libc from "../../src/activation/libc.ts";
import { refusal, thrown } from "../support/checks.ts";

const NAMES = ["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"] as const;
type Variables = Partial<Record<(typeof NAMES)[number], string>>;

/** What takePassed makes of these variables; LISTEN_PID is this process's unless it is given. */
function taken(variables: Variables): unknown {
  Object.assign(process.env, { LISTEN_PID: String(process.pid), ...variables });
  try {
    return takePassed();
  } catch (error) {
    return error;
  }
}

describe("takePassed", () => {
  afterEach(() => {
    // Whatever the outcome, no variable is left for a child to inherit.
    for (const name of NAMES) expect(takeVariable(name)).toBeUndefined();
  });

  test("says why nothing was passed", () => {
    expect(takePassed()).toEqual({ count: 0, reason: "LISTEN_PID is not set" });
    const reason = `LISTEN_PID is 1 and this is process ${process.pid}`;
    const other = { LISTEN_PID: "1", LISTEN_FDS: "x", LISTEN_FDNAMES: "\n", LISTEN_PIDFDID: "1" };
    expect(taken(other)).toEqual({ count: 0, reason });
    expect(taken({})).toEqual({ count: 0, reason: "LISTEN_FDS is not set" });
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
    const reason = `LISTEN_PIDFDID is 4711 and this is process ${id}`;
    const other = id === undefined ? { count: 1, names: undefined } : { count: 0, reason };
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
      expect(taken({ LISTEN_FDS: "1", [name]: value })).toEqual(
        refusal(78, RegExp(`^${name} is ".*", which is not ${what}: leave the variable to the `)),
      );
  });

  test("refuses names that are not as many as the descriptors", () => {
    for (const names of ["a", "a:b:c", "", "::"])
      expect(taken({ LISTEN_FDS: "2", LISTEN_FDNAMES: names })).toEqual(
        refusal(78, /^LISTEN_FDNAMES "[abc:]*" holds [13] .* LISTEN_FDS is 2: start it from a /),
      );
  });

  test("refuses a name that is none", () => {
    for (const names of ["a:b\x7f", "\x1f:", "a:ü", `a:${"x".repeat(256)}`])
      expect(taken({ LISTEN_FDS: "2", LISTEN_FDNAMES: names })).toEqual(
        refusal(78, /^LISTEN_FDNAMES holds ".*", which is not a name: start it from a socket unit/),
      );
  });
});

test("a name is what FileDescriptorName= takes", () => {
  for (const name of ["", "a", " ", "~", "x".repeat(255)]) expect(isName(name)).toBe(true);
  for (const name of [":", "\x1f", "\x7f", "é", "x".repeat(256)]) expect(isName(name)).toBe(false);
});

test("a number is at most the largest exact one", () => {
  expect(parseDecimal("N", "9007199254740991", "a number")).toBe(2 ** 53 - 1);
  const parse = (value: string) => thrown(() => parseDecimal("N", value, "a number"));
  expect(parse("9007199254740992")).toEqual(
    refusal(78, /^N is "9007199254740992", which is not a/),
  );
});

test("nothingPassed says why, and how to pass a socket", () => {
  expect(nothingPassed("it rains")).toEqual(
    refusal(78, /^no socket was passed, it rains: start it from a socket unit or with systemd-/),
  );
});
