import { expect, spyOn, test } from "bun:test";
import fs from "node:fs";

import { isName, parseDecimal } from "../../src/activation/environment.ts";
import { booted } from "../../src/activation/index.ts";
import { refusal } from "../support/checks.ts";

test("FileDescriptorName= takes names of up to 255 printable ASCII characters", () => {
  for (const name of ["", "a", " ", "~", "x".repeat(255)]) expect(isName(name)).toBe(true);
  for (const name of [":", "\x1f", "\x7f", "é", "x".repeat(256)]) expect(isName(name)).toBe(false);
});

test("a number is at most the largest exact one", () => {
  expect(parseDecimal("N", "9007199254740991", "a number")).toBe(2 ** 53 - 1);
  const parse = (value: string) => refusal(() => parseDecimal("N", value, "a number"));
  expect(parse("9007199254740992")).toMatch(/^78: N is "9007199254740992", which is not a/);
});

test.each([true, false])("booted is %j as /run/systemd/system is there or not", (isThere) => {
  using existsSync = spyOn(fs, "existsSync");
  existsSync.mockReturnValue(isThere);
  expect(booted()).toBe(isThere);
  expect(existsSync.mock.calls).toEqual([["/run/systemd/system/"]]);
});
