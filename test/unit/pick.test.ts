import { describe, expect, test } from "bun:test";

import { type PassedDescriptor, pick } from "../../src/activation/index.ts";
import { refusal, thrown } from "../support/checks.ts";

describe("pick", () => {
  const passed: PassedDescriptor[] = [
    { fd: 3, name: "http" },
    { fd: 4, name: "admin" },
    { fd: 5, name: "http" },
  ];

  test("returns one, some, any, or what there may be, of each name", () => {
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
    [{ http: "some", admin: "one", state: "one" }, /^0 descriptors are named "state", where one /],
    [
      { http: "any", admin: "any", more: "some" },
      /^0 descriptors .* "more", where some is wanted: /,
    ],
    [{ http: "one", admin: "one" }, /^2 descriptors .* "http", where one is wanted: set FileDesc/],
    [{ http: "optional", admin: "one" }, /^2 .* where optional is wanted: .*Name=http in as many /],
    [{ http: "any", stream: "any" }, /^descriptor 4 is named "admin": .*Name= to http or stream$/],
  ] as const)("refuses %j", (wanted, message) => {
    expect(thrown(() => pick(passed, wanted))).toEqual(refusal(78, message));
  });
});

test("pick returns what has a name that every object has", () => {
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
