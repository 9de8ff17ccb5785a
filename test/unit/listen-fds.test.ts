import { expect, test } from "bun:test";
import { closeSync, openSync } from "node:fs";

import { listenFds, requireListenFds } from "../../src/activation/index.ts";
import { refusal, thrown } from "../support/checks.ts";
import { execute } from "../support/daemon.ts";
import { lines } from "../support/lines.ts";

/** What a program prints that is executed as systemd does it, with `count` descriptors. */
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

test("requireListenFds returns the same, a name that was not sent being unknown", async () => {
  const expected = [
    { fd: 3, name: "unknown" },
    { fd: 4, name: "unknown" },
  ];
  expect(await printed(2, {}, "print(requireListenFds())")).toEqual([expected]);
});

test("every descriptor closes on exec, and no variable is left for a child", async () => {
  const program = `
    // As it comes through exec: Bun sets it from 4 on, on what it finds.
    for (const fd of [3, 4]) clearCloseOnExec(fd);
    listenFds();
    print([closesOnExec(3), closesOnExec(4)]);
    print(Object.keys(process.env).filter((name) => name.startsWith("LISTEN_")));`;
  const variables = { LISTEN_FDNAMES: "a:b" };
  expect(await printed(2, variables, program)).toEqual([[true, true], []]);
});

test("without LISTEN_PID there are none, and requireListenFds says why", () => {
  expect(listenFds()).toEqual([]);
  expect(thrown(requireListenFds)).toEqual(
    refusal(78, /^no socket was passed, LISTEN_PID is not set: start it from a socket unit or /),
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
