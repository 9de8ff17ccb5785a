/**
 * The tests of the module and of the executables once more, where users run them: on a machine that
 * systemd has booted, with its journal, as root and as an ordinary user. The checkout is read-only.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";

import { lacks, lacksNpm } from "../support/needs.ts";
import { cannotRun, nothingFailed } from "./harness.ts";
import { BUN, CHECKOUT, Machine, ROOT } from "./machine.ts";

setDefaultTimeout(300_000);

const USERS = ["root", "ordinary"] as const;

/** Whether a line of what was skipped is true outside as well. Roots of `make debian-root` have no npm. */
function isExpected(line: string): boolean {
  if (line === "what is tried with npm: it is missing") return ROOT !== "/" || lacksNpm();
  const [, program] = /^what needs (\S+): it is missing$/.exec(line) ?? [];
  return program !== undefined && ROOT === "/" && lacks(program);
}

describe.skipIf(cannotRun)("in a booted machine", () => {
  let machine: Machine;
  /** Both at once: most tests wait most of the time. */
  const runs = new Map<string, ReturnType<Machine["run"]>>();
  beforeAll(async () => {
    machine = await Machine.boot();
    await machine.must("useradd", "--create-home", "ordinary");
    const script = `cd ${CHECKOUT} && SKIPPED=~/skipped ${BUN} test test/unit test/activate`;
    for (const user of USERS) runs.set(user, machine.run("runuser", "-l", user, "-c", script));
  });
  afterAll(async () => {
    await nothingFailed(machine);
  });

  test.each(USERS)("test/unit and test/activate pass as %s", async (user) => {
    const { status, stdout, stderr } = (await runs.get(user)) ?? {};
    // What a reader of a failure wants to see.
    const said = `${stdout}${stderr}`.replaceAll(/^\(pass\).*\n/gm, "");
    if (status !== 0) throw new Error(`status ${status}\n${said}`);
    const report = await machine.must("sh", "-c", `cat ~${user}/skipped`);
    const lines = [...report.matchAll(/^ {2}(.*)$/gm)].map(([, line = ""]) => line);
    for (const line of lines) console.log(`in a booted machine, as ${user}: ${line}`);
    expect(lines.filter((line) => !isExpected(line))).toEqual([]);
    // No test is skipped without a reason.
    if (lines.length === 0) expect(said).not.toMatch(/^ *\d+ (skip|todo)$/m);
  });

  test("none of them has logged to the machine's journal", async () => {
    await Promise.all(runs.values());
    await machine.must("journalctl", "--sync");
    const entries = await machine.must("journalctl", "--output=verbose");
    expect(entries).toContain("_EXE=");
    const ours = RegExp(
      `^ +(_EXE=${CHECKOUT}|SYSLOG_IDENTIFIER=(socket-service|.*\\.ts$)).*`,
      "gm",
    );
    expect(entries.match(ours) ?? []).toEqual([]);
  });
});
