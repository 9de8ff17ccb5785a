/* Loaded before the tests: prepares their environment, and ends with what was skipped. */
import { afterAll } from "bun:test";
import { readFileSync } from "node:fs";

import { testEnvironment } from "./support/environment.ts";
import { report } from "./support/needs.ts";

// What a test starts without an environment of its own has that of this process at its start: so it
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
