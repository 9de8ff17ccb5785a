import { expect, spyOn, test } from "bun:test";

import { monotonicMicroseconds, readProc } from "../../src/activation/libc.ts";
import { refusal, thrown } from "../support/listening.ts";

test("without FFI each call says why and what to do, and what can do without does", async () => {
  // An instance of the module that has opened no library yet.
  const path = "../../src/activation/libc.ts?without-ffi";
  const libc: typeof import("../../src/activation/libc.ts") = await import(path);
  if (Bun.FFI === undefined) throw new Error("this Bun has no Bun.FFI");
  using dlopen = spyOn(Bun.FFI, "dlopen");
  dlopen.mockReturnValue(new Error("no memory"));
  expect(thrown(() => libc.duplicate(0))).toEqual(
    refusal(71, /^cannot call libc, no memory: allow memory that is writable and executable /),
  );
  expect(libc.canCall()).toBe(false);
  // LISTEN_PID has to do.
  expect(libc.pidfdId()).toBeUndefined();
});

test("readProc reads a file of more than one page, and knows one that is missing", () => {
  expect(readProc("/proc/self/smaps")?.length).toBeGreaterThan(4096);
  expect(readProc("/proc/self/smaps")).toEndWith("\n");
  expect(readProc("/proc/self/nothing")).toBeUndefined();
});

test("the time does not run backwards", () => {
  const [first, second] = [monotonicMicroseconds(), monotonicMicroseconds()];
  expect(second).toBeGreaterThanOrEqual(first);
});
