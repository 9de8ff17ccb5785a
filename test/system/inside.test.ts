/**
 * The tests of the module and of the executables once more, where users run them: on a machine that
 * systemd has booted, with its journal, as root and as an ordinary user. The checkout is read-only.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";

import { lacks, lacksNpm } from "../support/needs.ts";
import { cannotRun, nothingFailed } from "./harness.ts";
import { BUN, CHECKOUT, Machine, ROOT } from "../support/machine.ts";

setDefaultTimeout(600_000);

/** Users, and shell commands before their tests. The exported variables must change nothing. */
const USERS = [
  ["root", ":"],
  // The variables of a service manager, of a CI and of a proxy.
  [
    "ordinary",
    `export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) NOTIFY_SOCKET=/run/none
    export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=x WATCHDOG_PID=$$ WATCHDOG_USEC=1000000
    export FORCE_COLOR=1 http_proxy=http://127.0.0.1:9/ LC_ALL=tr_TR.UTF-8 TZ=Asia/Tokyo
    export TMPDIR=~/${"a-long-name".padEnd(80, "x")} && umask 077 && mkdir -p $TMPDIR`,
  ],
] as const;

/** Gives root's tests a network without ::1, as many containers have: those outside have one. */
const NO_IPV6 = "ip link set lo up && ip address delete ::1/128 dev lo";

/** Whether a skipped test is expected: a program is missing outside as well, or on purpose. */
function isExpected(line: string, user: string): boolean {
  if (line === "what needs IPv6: there is no ::1") return user === "root";
  // Roots of `make debian-root` have all but npm.
  if (line === "what is tried with npm: it is missing") return ROOT !== "/" || lacksNpm();
  const [, program] = /^what needs (\S+): it is missing$/.exec(line) ?? [];
  return program !== undefined && ROOT === "/" && lacks(program);
}

describe.skipIf(cannotRun)("in a booted machine", () => {
  let machine: Machine;
  beforeAll(async () => {
    machine = await Machine.boot();
    await machine.must("useradd", "--create-home", "ordinary");
  });
  afterAll(() => nothingFailed(machine));

  // One user after the other: at once, a slow machine exceeds some of the limits on time.
  test.each(USERS)("test/unit and test/activate pass as %s", async (user, environment) => {
    const tests = `cd ${CHECKOUT} && : >~/skipped && SKIPPED=~/skipped ${BUN} test/run.ts test/unit test/activate`;
    const login = ["runuser", "-l", user, "-c", `${environment}\n${tests}`];
    const apart = ["unshare", "--net", "sh", "-c", `${NO_IPV6} && exec "$@"`, "sh"];
    const command = [...(user === "root" ? apart : []), ...login];
    const { status, stdout, stderr } = await machine.run(...command);
    // The reader of a failure needs no list of the tests that passed at once.
    const passed = /^(\(pass\)|✓)(?!.*\(attempt 2\)).*\n/gm;
    const said = Bun.stripANSI(`${stdout}${stderr}`).replaceAll(passed, "");
    if (status !== 0) throw new Error(`status ${status}\n${said.replaceAll(/^/gm, "> ")}`);
    const report = await machine.must("sh", "-c", `cat ~${user}/skipped`);
    const lines = report.split("\n").filter((line) => line !== "");
    const again = said.match(/(?:.*\n){0,20}.* \(attempt 2\)/g) ?? [];
    for (const line of [...lines, ...again])
      console.log(`in a booted machine, as ${user}: ${line}`);
    expect(lines.filter((line) => !isExpected(line, user))).toEqual([]);
    // No test is skipped without a reason.
    if (lines.length === 0) expect(said).not.toMatch(/^ *[1-9]\d* (skip|todo)$/m);
  });

  test("none of them has logged to the machine's journal", async () => {
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
