/* Loaded before the tests: prepares their environment, and ends with the list of skipped tests. */
import { afterAll } from "bun:test";
import { readFileSync } from "node:fs";

import { testEnvironment } from "./support/environment.ts";
import { report } from "./support/needs.ts";

// A child without an environment of its own gets the one of this process at its start, so this process
// starts again. test/run.ts starts the workers of `bun test --parallel` with the right one.
const environment = testEnvironment();
if (!Bun.deepEquals(environment, { ...process.env })) {
  const [, ...args] = readFileSync("/proc/self/cmdline", "utf8").split("\0").slice(0, -1);
  if (args.includes("--test-worker")) throw new Error("run test/run.ts instead");
  const { exitCode } = Bun.spawnSync([process.execPath, ...args], {
    env: environment,
    stdio: ["inherit", "inherit", "inherit"],
  });
  process.exit(exitCode ?? 1);
}

// test/run.ts prints this itself, after all that the runner prints.
if (process.env["SKIPPED"] === undefined)
  afterAll(() => {
    const skipped = report("test");
    if (skipped !== "") console.log(`\n${skipped}`);
  });
