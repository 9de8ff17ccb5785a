/* Builds the executables and the preload when the first test starts one: unit tests start none. */
import { resolve } from "node:path";

import { EMULATED } from "./until.ts";

const ROOT = resolve(import.meta.dir, "../..");

// Outside of `bun test`, as in the demo, `make` has built them. For its tests, test/run.ts has.
let isBuilt = process.env["NODE_ENV"] !== "test" || process.env["BUILT"] !== undefined;

/** As `buildNow`, once for all tests of a process. */
export function build(): void {
  if (!isBuilt) buildNow();
  isBuilt = true;
}

/**
 * Builds those in dist/ that are missing or older than their sources.
 *
 * @throws {Error} if one cannot be built.
 */
export function buildNow(): void {
  // Under emulation dist/ is read-only, and no test needs the preload.
  const preload = EMULATED ? [] : ["dist/register.js"];
  // One process at a time: `bun test --parallel` has several.
  const command = ["flock", "test/support", "make", "--silent", "all", ...preload];
  const { exitCode } = Bun.spawnSync(command, {
    cwd: ROOT,
    // The tests may run under `make test`, whose job server is not ours.
    env: { ...process.env, MAKEFLAGS: "" },
    stdout: "inherit",
    stderr: "inherit",
  });
  if (exitCode !== 0) throw new Error("what the tests start cannot be built");
}
