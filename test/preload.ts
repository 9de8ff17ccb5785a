/* Loaded before the tests: prepares their environment, and ends with what was skipped. */
import { afterAll } from "bun:test";
import { readFileSync } from "node:fs";
import { tmpdir } from "node:os";

import { report } from "./support/needs.ts";

const environment = { ...process.env };
const isProxy = (name: string) => /^https?_proxy$/i.test(name);
// The tests speak to service managers of their own, not to the one that has started them, and compare
// output without colors.
const OTHERS = /^(LISTEN_|NOTIFY_SOCKET$|WATCHDOG_|JOURNAL_STREAM$|SYSTEMD_EXEC_PID$|FORCE_COLOR$)/;
for (const name of Object.keys(environment)) if (OTHERS.test(name)) delete environment[name];
// Their servers are on the loopback, where no proxy reaches them.
for (const name of ["no_proxy", "NO_PROXY"])
  if (!environment[name]?.includes("127.0.0.1") && Object.keys(environment).some(isProxy))
    environment[name] = [environment[name] ?? [], "localhost,127.0.0.1,::1,[::1]"].flat().join();
// The path of a socket has 107 bytes at most, of which the tests need half.
if (tmpdir().length > 50) environment["TMPDIR"] = "/tmp";
// What is started without an environment of its own has that of the start: so they start again.
if (!Bun.deepEquals(environment, { ...process.env })) {
  const [, ...args] = readFileSync("/proc/self/cmdline", "utf8").split("\0").slice(0, -1);
  const { exitCode } = Bun.spawnSync([process.execPath, ...args], {
    env: environment,
    stdio: ["inherit", "inherit", "inherit"],
  });
  process.exit(exitCode ?? 1);
}

// `make test` prints the file after all that the runner itself prints.
const file = process.env["SKIPPED"];
afterAll(async () => {
  const skipped = report("test");
  if (file !== undefined) await Bun.write(file, skipped);
  else if (skipped !== "") console.log(`\n${skipped}`);
});
