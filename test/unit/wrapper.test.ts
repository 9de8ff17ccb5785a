import { expect, spyOn, test } from "bun:test";
import fs, { readFileSync } from "node:fs";

import { warnIfWrapped } from "../../src/activation/receive/wrapper.ts";
import { logged } from "../support/checks.ts";

const REMEDY =
  /^write the program itself in (ExecStart=|the command of the container), or put exec /;

test("the process that started this one is named if the sockets are for it", async () => {
  const name = readFileSync(`/proc/${process.ppid}/comm`, "utf8").trim();
  let remedy: string | undefined;
  const warning = await logged(() => void (remedy = warnIfWrapped(process.ppid)));
  expect(remedy).toMatch(REMEDY);
  expect(warning).toBe(
    `the sockets were passed to process ${process.ppid} (${name}), which started this process (${process.pid}), so this process gets none: ${remedy}\n`,
  );
});

test("without /proc, only the parent is known, and only by its number", async () => {
  using read = spyOn(fs, "readFileSync");
  read.mockImplementation(() => {
    throw new Error("there is no /proc");
  });
  expect(await logged(() => warnIfWrapped(process.ppid))).toStartWith(
    `the sockets were passed to process ${process.ppid}, which started this process (`,
  );
  expect(await logged(() => expect(warnIfWrapped(process.pid)).toBeUndefined())).toBe("");
});
