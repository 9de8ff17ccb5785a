/* Loaded before the tests: builds what they drive, and ends with what was skipped. */
import { afterAll } from "bun:test";
import { tmpdir } from "node:os";
import { resolve } from "node:path";

import { report } from "./support/needs.ts";

// The tests speak to service managers of their own, not to the one that has started them, and compare
// output without colors.
const OTHERS = /^(LISTEN_|NOTIFY_SOCKET$|WATCHDOG_|JOURNAL_STREAM$|SYSTEMD_EXEC_PID$|FORCE_COLOR$)/;
for (const name of Object.keys(process.env)) if (OTHERS.test(name)) delete process.env[name];
// Their servers are on the loopback, where no proxy reaches them.
for (const name of ["no_proxy", "NO_PROXY"])
  process.env[name] = [process.env[name], "localhost,127.0.0.1,::1,[::1]"].filter(Boolean).join();
// The path of a socket has 107 bytes at most, of which the tests need half.
if (tmpdir().length > 50) process.env["TMPDIR"] = "/tmp";

const make = Bun.spawnSync(["make", "--silent", "all"], {
  cwd: resolve(import.meta.dir, ".."),
  // The tests may run under `make test`, whose job server is not ours.
  env: { ...process.env, MAKEFLAGS: "" },
  stdout: "inherit",
  stderr: "inherit",
});
if (make.exitCode !== 0) process.exit(1);

// `make test` prints the file after all that the runner itself prints.
const file = process.env["SKIPPED"];
afterAll(async () => {
  const skipped = report("test");
  if (file !== undefined) await Bun.write(file, skipped);
  else if (skipped !== "") console.log(`\n${skipped}`);
});
