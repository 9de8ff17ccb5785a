import { expect, test } from "bun:test";

import { misconfigured, printable, quote } from "../../src/activation/error.ts";
import { ActivationError, ExitStatus } from "../../src/activation/index.ts";

test("sysexits.h has the same exit statuses", () => {
  expect(ExitStatus).toEqual({ usage: 64, systemCall: 71, configuration: 78 });
});

test("an error has a status, a message, and the code of a failed system call", () => {
  const { name, status, message, code } = new ActivationError(71, "it failed", "ENOENT");
  expect([name, status, message, code]).toEqual(["ActivationError", 71, "it failed", "ENOENT"]);
  const wrong = misconfigured("it is wrong");
  expect([wrong.status, wrong.message, wrong.code]).toEqual([78, "it is wrong", undefined]);
});

test("an error of another copy of the module is one, and no other error", async () => {
  const path = "../../src/activation/error.ts?copy";
  const other: typeof import("../../src/activation/error.ts") = await import(path);
  expect(other.ActivationError).not.toBe(ActivationError);
  expect(other.misconfigured("it is wrong")).toBeInstanceOf(ActivationError);
  const named = Object.assign(new Error("not ours"), { name: "ActivationError" });
  for (const error of [
    new Error("not ours"),
    named,
    Object.assign(named, { status: 1 }),
    undefined,
  ])
    expect(error).not.toBeInstanceOf(ActivationError);
  class Own extends ActivationError {}
  expect(new Own(71, "own")).toBeInstanceOf(Own);
  expect(new ActivationError(71, "it failed")).not.toBeInstanceOf(Own);
});

test("whatever replaces characters that act on a terminal, none is left", () => {
  for (const by of ["", " ", "$&", "$1"]) expect(printable("a\x1b\nb", by)).toBe(`a${by}b`);
});

test("a value in a message is quoted, on one line, and cut if it is longer than 80 characters", () => {
  expect(quote('a\n"b"')).toBe('"a\\n\\"b\\""');
  expect(quote("x".repeat(80))).toBe(`"${"x".repeat(80)}"`);
  expect(quote("\x7f\x80\x9b\x9f\u2028\u2029\u202a\u202e\u2066\u2069ü👍")).toBe(
    '"\\u007f\\u0080\\u009b\\u009f\\u2028\\u2029\\u202a\\u202e\\u2066\\u2069ü👍"',
  );
  expect(quote("x".repeat(81))).toBe(`"${"x".repeat(77)}..."`);
});
