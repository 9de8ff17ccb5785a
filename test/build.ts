/* Loaded before the tests: they drive what `make` builds, so that has to be there and current. */
import { resolve } from "node:path";

const root = resolve(import.meta.dir, "..");
const make = Bun.spawnSync(["make", "--no-print-directory", "all"], {
  cwd: root,
  // The tests may run under `make test`, whose job server is not ours.
  env: { ...process.env, MAKEFLAGS: "" },
  stdout: "inherit",
  stderr: "inherit",
});
if (make.exitCode !== 0) process.exit(1);
