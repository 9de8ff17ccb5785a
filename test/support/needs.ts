/* The programs that tests need, and the tests that are skipped because one is missing. */
import { appendFileSync } from "node:fs";
import { resolve } from "node:path";

import { hasIPv6 } from "./sockets.ts";

const SETUP = resolve(import.meta.dir, "../setup.sh");

/** Returns the output of test/setup.sh, which installs nothing here. */
function setup(mode: string): string {
  const env = { ...process.env, SETUP: "no" };
  return Bun.spawnSync([SETUP, mode], { env, stderr: "inherit" }).stdout.toString();
}

const listed = new Map<string, boolean>();
for (const line of setup("list").trim().split("\n")) {
  const [name = "", found] = line.split(" ");
  listed.set(name, found === "there");
}

const reasons = new Set<string>();

/** Has the end of the run name a skipped test, and the reason. */
export function skipped(what: string, why: string): void {
  addSkipped(`${what}: ${why}`);
}

/** The same by its line. test/run.ts collects the lines of several processes in a file. */
export function addSkipped(line: string): void {
  const file = process.env["SKIPPED"];
  if (file !== undefined && !reasons.has(line)) appendFileSync(file, `${line}\n`);
  reasons.add(line);
}

/**
 * Returns whether one of these programs, by their names in test/setup.sh, is missing, for
 * `test.skipIf`. If so, the end of the run says it.
 */
export function lacks(...names: readonly string[]): boolean {
  const missing = names.filter((name) => {
    const found = listed.get(name);
    if (found === undefined) throw new Error(`test/setup.sh does not list ${name}`);
    return !found;
  });
  for (const name of missing) skipped(`what needs ${name}`, "it is missing");
  return missing.length > 0;
}

/** The same for npm itself: test/setup.sh is content with bun. */
export function lacksNpm(): boolean {
  const isMissing = Bun.which("npm") === null;
  if (isMissing) skipped("what is tried with npm", "it is missing");
  return isMissing;
}

/** Returns whether there is no ::1, as in many containers, for `test.skipIf`. */
export function lacksIPv6(): boolean {
  if (!hasIPv6) skipped("what needs IPv6", "there is no ::1");
  return !hasIPv6;
}

/** Returns the skipped tests, the reasons, and the packages to install: empty if none was skipped. */
export function report(command: "demo" | "test"): string {
  if (reasons.size === 0) return "";
  return `Skipped:\n${[...reasons].map((reason) => `  ${reason}\n`).join("")}${setup(command)}`;
}
