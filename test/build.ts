/* Loaded before the tests: builds what they drive, and ends with what was skipped. */
import { afterAll } from "bun:test";
import { resolve } from "node:path";

import { report } from "./support/needs.ts";

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
