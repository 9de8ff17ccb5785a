/*
 * `make test` calls this: `bun test/run.ts [FOLDERS]` passes all tests of these folders, or of all, with
 * several files at a time. Other arguments are those of `bun test`, which then runs alone.
 * It ends with the sums, and with what was skipped.
 */
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";

import { buildNow } from "./support/build.ts";
import { scratch } from "./support/daemon.ts";
import { testEnvironment } from "./support/environment.ts";
import { addSkipped, report } from "./support/needs.ts";
import { EMULATED } from "./support/until.ts";

/*
 * The first tests mostly wait, and some have limits on time. `inside` passes them twice more, in a machine.
 * The others load this one: they boot systemd, build, and have clients that never pause.
 */
const INSIDE = "test/system/inside";
const GROUPS = [
  // Apart from others: they check that nothing is left open in their process.
  { paths: ["test/unit"], atOnce: 10 },
  { paths: ["test/activate"], atOnce: 6 },
  { paths: [INSIDE], atOnce: 1 },
  { paths: ["test/package", "test/system", "test/bench"], atOnce: 3 },
];

/* Under an emulator: the services, and the files of the module that call libc. */
const EMULATED_FILES = [
  ...["greeting", "listener", "deadlines"].map((name) => `test/activate/${name}.test.ts`),
  ...["barrier", "connection", "connection-limit", "connections", "describe", "event-loop"].map(
    unit,
  ),
  ...["layout", "libc", "listen", "log", "notify", "udp", "watchdog"].map(unit),
];
function unit(name: string): string {
  return `test/unit/${name}.test.ts`;
}

const args = process.argv.slice(2).map((arg) => arg.replace(/\/$/, ""));
const isFolder = (path: string) => statSync(path, { throwIfNoEntry: false })?.isDirectory();
const given = args.length > 0 ? args : process.env["ROOT"] ? ["test/system"] : undefined;

/** The arguments of each call of `bun test`. */
function calls(): string[][] {
  if (given?.every(isFolder) === false) return [given];
  if (EMULATED) return [["--parallel=3", "--no-isolate", "--timeout=30000", ...EMULATED_FILES]];
  const isChosen = (path: string) => given?.some((folder) => path.startsWith(folder)) ?? true;
  const groups = GROUPS.flatMap(({ paths, atOnce }) => {
    const chosen = paths.filter(isChosen);
    if (chosen.length === 0) return [];
    const options = [`--parallel=${atOnce}`, "--no-isolate", "--timeout=30000"];
    // With 20, the default, the tests that wait keep each other from running, and none ends sooner.
    options.push("--max-concurrency=8");
    // Only the module's own tests call it in their own process.
    if (given === undefined && chosen.includes("test/unit")) options.push("--coverage");
    if (!chosen.includes(INSIDE)) options.push(`--path-ignore-patterns=${INSIDE}*`);
    return [[...options, ...chosen]];
  });
  return groups.length > 0 ? groups : [given ?? []];
}

using directory = scratch();
const file = join(directory.path, "skipped");
// Once, and not in each process during its first test. Unit tests start nothing.
if (given?.join() !== "test/unit") buildNow();
const env = { ...testEnvironment(), SKIPPED: file, BUILT: "yes" };
const COUNTED = ["pass", "skip", "fail"] as const;
const sums = { pass: 0, skip: 0, fail: 0 };
const unexplained: string[] = [];
let status = 0;
for (const call of calls()) {
  const runner = Bun.spawn([process.execPath, "test", ...call], {
    env,
    stdio: ["inherit", "inherit", "pipe"],
  });
  let said = "";
  const decoder = new TextDecoder();
  for await (const bytes of runner.stderr) {
    process.stderr.write(bytes);
    said += decoder.decode(bytes, { stream: true });
  }
  // The last one: before it, a failure may quote the report of another run.
  const [own = ""] = [...said.matchAll(/^ *\d+ pass\n( *\d+ [a-z]+\n)*/gm)].at(-1) ?? [];
  const counted = (what: string) => Number(RegExp(`^ *(\\d+) ${what}$`, "m").exec(own)?.[1] ?? 0);
  for (const what of COUNTED) sums[what] += counted(what);
  if ((await runner.exited) === 0) continue;
  status = 1;
  if (counted("fail") === 0)
    unexplained.push(`no test failed: too little coverage, or a crash: ${call.join(" ")}`);
}
// Tests that cannot run under an emulator are marked so. Nobody could run them here.
if (EMULATED) sums.skip = 0;
console.log(
  `\n${Object.entries(sums)
    .map(([what, count]) => ` ${count} ${what}`)
    .join("\n")}`,
);
for (const line of unexplained) console.log(line);
if (existsSync(file)) readFileSync(file, "utf8").trim().split("\n").forEach(addSkipped);
process.stdout.write(report("test"));
process.exitCode = status;
