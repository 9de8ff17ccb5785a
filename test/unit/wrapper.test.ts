import { afterEach, beforeEach, expect, mock, spyOn, test } from "bun:test";
import fs from "node:fs";

import { listenFds } from "../../src/activation/index.ts";

let written: string[] = [];
beforeEach(() => {
  written = [];
  delete process.env["JOURNAL_STREAM"];
  spyOn(fs, "writeSync").mockImplementation((_, text) => {
    written.push(String(text));
    return Buffer.byteLength(text);
  });
});
afterEach(() => mock.restore());

/** What is written if descriptors were passed to the process `pid`. */
function warnings(pid: number): string[] {
  Object.assign(process.env, { LISTEN_PID: String(pid), LISTEN_FDS: "1" });
  expect(listenFds()).toEqual([]);
  expect(listenFds()).toEqual([]);
  return written.splice(0);
}

test("whoever started this process is named once, and so are those above, but for process 1", () => {
  for (let pid = process.ppid; pid > 0;) {
    const status = fs.readFileSync(`/proc/${pid}/status`, "utf8");
    const [, name = "", parent] = /^Name:\t([^\n]*)$.*^PPid:\t(\d+)$/ms.exec(status) ?? [];
    const warning = `the passed sockets are for process ${pid} (${name}), which started this one, ${process.pid}, `;
    expect(warnings(pid)).toEqual(pid > 1 ? [expect.stringContaining(warning)] : []);
    pid = Number(parent);
  }
});

test("nobody is named if it is process 1, or what is above is hidden", () => {
  expect(warnings(1)).toEqual([]);
  spyOn(fs, "readFileSync").mockImplementation(() => {
    throw new Error("ENOENT");
  });
  expect(warnings(1)).toEqual([]);
  expect(warnings(0x7fffffff)).toEqual([]);
});
