import { describe, expect, test } from "bun:test";

import { quote } from "../../src/activation/error.ts";
import { kept } from "../../src/activation/receive/listen-fds.ts";
import { listenFds, type PassedDescriptor, pick } from "../../src/activation/index.ts";
import { refusal, thrown } from "../support/checks.ts";
import { clearCloseOnExec } from "../support/sockets.ts";

describe("pick", () => {
  const passed: PassedDescriptor[] = [
    { fd: 3, name: "http" },
    { fd: 4, name: "admin" },
    { fd: 5, name: "http" },
  ];

  test("returns one, some, any or an optional descriptor of each name", () => {
    const picked = pick(passed, { http: "some", admin: "one", state: "optional", more: "any" });
    // As many of each as its type says.
    const admin: number = picked.admin;
    const http: readonly number[] = picked.http;
    const state: number | undefined = picked.state;
    const more: readonly number[] = picked.more;
    const expected = { admin: 4, http: [3, 5], state: undefined, more: [] };
    expect({ admin, http, state, more }).toEqual(expected);
    expect(pick(passed, { http: "any", admin: "optional" })).toEqual({ http: [3, 5], admin: 4 });
    expect(pick([], {})).toEqual({});
  });

  test.each([
    [
      { http: "some", admin: "one", state: "one" },
      /^78: 0 descriptors have the name "state", but the program expects one: start the socket unit that has FileDescriptorName=state$/,
    ],
    [
      { http: "any", admin: "any", more: "some" },
      /^78: 0 descriptors .* "more", but the program expects at least one: start .*=more$/,
    ],
    [
      { http: "one", admin: "one" },
      /^78: 2 descriptors have the name "http", but the program expects one: keep only one Listen...= line in the socket unit that has FileDescriptorName=http$/,
    ],
    [
      { http: "optional", admin: "one" },
      /^78: 2 .* but the program expects at most one: keep only one /,
    ],
    [
      { http: "any", stream: "any" },
      /^78: descriptor 4 has the name "admin", which the program does not expect: .*Name= to http or stream$/,
    ],
    [
      {},
      /^78: descriptor 3 has the name "http", which the program does not expect: pass no descriptor$/,
    ],
  ] as const)("refuses %j", (wanted, message) => {
    expect(refusal(() => pick(passed, wanted))).toMatch(message);
  });

  test.each([
    [
      "connection",
      /^78: descriptor 3 has the name "connection", .*: set Accept=no in the socket unit$/,
    ],
    [
      "stored",
      /^78: descriptor 3 has the name "stored", .*: store it with the fdName http or admin$/,
    ],
  ])("names the setting that is wrong for a descriptor named %s", (name, message) => {
    const wanted = { http: "any", admin: "any" } as const;
    expect(refusal(() => pick([{ fd: 3, name }], wanted))).toMatch(message);
    // A socket of that name may be wanted.
    expect(pick([{ fd: 3, name }], { [name]: "one" })).toEqual({ [name]: 3 });
  });

  test("refuses quantities and names that are none, whatever was passed", () => {
    const wrong = (wanted: Record<string, unknown>) =>
      thrown(() => Reflect.apply(pick, undefined, [[], wanted]));
    for (const quantity of ["two", "", "toString", 1, null, undefined, true])
      expect(wrong({ http: quantity })).toEqual(
        new TypeError(
          `the quantity of "http" is ${quantity}: give "one", "optional", "some" or "any"`,
        ),
      );
    for (const name of ["a:b", "ü", "x".repeat(256)])
      expect(wrong({ http: "any", [name]: "any" })).toEqual(
        new TypeError(
          `no socket can have the name ${quote(name)}: use at most 255 printable ASCII characters, without a colon`,
        ),
      );
  });
});

describe("if nothing was passed, pick says why, unless nothing is needed", () => {
  const wanted = { http: "some", admin: "optional" } as const;
  const by = (variables: Record<string, string>) => {
    delete kept.found;
    Object.assign(process.env, variables);
    return refusal(() => pick(listenFds(), wanted));
  };

  test("to nobody, to another process, or to an earlier call", () => {
    const person = ": start the program from a socket unit or with systemd-socket-activate$";
    expect(by({})).toMatch(
      RegExp(`^78: no socket was passed, because LISTEN_PID is not set${person}`),
    );
    const another = { LISTEN_PID: "2147483647", LISTEN_FDS: "1" };
    const process = `LISTEN_PID is 2147483647 and this is process \\d+`;
    expect(by(another)).toMatch(
      RegExp(
        `^78: no socket was passed, because ${process}: write this program itself in ExecStart=`,
      ),
    );
    kept.found = { count: 1, names: ["http"] };
    expect(refusal(() => pick(listenFds(), wanted))).toMatch(
      /^78: no socket was passed, because an earlier call returned it: keep the result of that call; with the preload \S+, make no such call$/,
    );
  });

  test("but not if nothing is needed, or the list was emptied by somebody else", () => {
    delete kept.found;
    expect(pick(listenFds(), { http: "any", admin: "optional" })).toEqual({
      http: [],
      admin: undefined,
    });
    clearCloseOnExec(3);
    Object.assign(process.env, { LISTEN_PID: process.pid, LISTEN_FDS: "1" });
    expect(listenFds()).toHaveLength(1);
    expect(refusal(() => pick([], wanted))).toMatch(/^78: 0 descriptors have the name "http"/);
    // A later call finds nothing, and is not asked.
    expect(listenFds()).toEqual([]);
    const one = [{ fd: 3, name: "admin" }];
    expect(refusal(() => pick(one, wanted))).toMatch(/^78: 0 descriptors have the name "http"/);
  });
});

test("pick returns descriptors with names that are properties of every object", () => {
  const wanted = Object.fromEntries([
    ["__proto__", "one"],
    ["toString", "some"],
  ] as const);
  const passed = [
    { fd: 3, name: "__proto__" },
    { fd: 4, name: "toString" },
  ];
  expect(Object.entries(pick(passed, wanted))).toEqual([
    ["__proto__", 3],
    ["toString", [4]],
  ]);
});
