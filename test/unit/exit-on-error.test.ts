/* A program ends at an error that nobody has caught: each test has a process of its own. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { fstatSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";

import { Running, scratch } from "../support/daemon.ts";

setDefaultTimeout(30_000);

const MODULE = resolve(import.meta.dir, "../../src/activation/index.ts");
const SETUP = `import { ActivationError, exitOnError, requireListenFds } from ${JSON.stringify(MODULE)};
process.on("uncaughtException", exitOnError);
`;
const LINE = /^no socket was passed, because LISTEN_PID is not set: [^\n]+\n$/;

let directory: ReturnType<typeof scratch>;
beforeAll(() => void (directory = scratch()));
afterAll(() => directory[Symbol.dispose]());

function program(source: string): string {
  const path = join(directory.path, `${crypto.randomUUID()}.ts`);
  writeFileSync(path, SETUP + source);
  return path;
}

/** The exit status of a command and all that it writes to stderr. */
async function end(command: string[], env: Record<string, string> = {}): Promise<[number, string]> {
  const stdio = ["ignore", "pipe", "pipe"] as const;
  await using running = new Running(
    Bun.spawn(command, { env: { NO_COLOR: "1", ...env }, stdio: [...stdio] }),
  );
  const status = await running.status();
  return [status, running.stderr];
}
const run = (source: string) => end([process.execPath, program(source)]);

const WAYS = {
  "at the top level": "requireListenFds();",
  "after an await": "await Bun.sleep(1); requireListenFds();",
  "in an awaited promise": "await Promise.reject(new ActivationError(71, 'no memory'));",
  "in a callback": "setTimeout(requireListenFds, 1); setInterval(() => {}, 1000);",
  "in a signal handler":
    "process.on('SIGUSR1', () => void requireListenFds()); process.kill(process.pid, 'SIGUSR1'); setInterval(() => {}, 1000);",
  "in a promise that nobody awaits":
    "process.on('unhandledRejection', exitOnError); (async () => requireListenFds())(); setInterval(() => {}, 1000);",
};

describe("an ActivationError becomes its line and its status", () => {
  test.concurrent.each(Object.entries(WAYS))("%s", async (_, source) => {
    const no = source.includes("no memory");
    expect(await run(source)).toEqual([
      no ? 71 : 78,
      no ? "no memory\n" : expect.stringMatching(LINE),
    ]);
  });

  test("in a Worker, which ends it and not the program", async () => {
    const [status, stderr] = await run(`
      if (!Bun.isMainThread) throw new ActivationError(71, "in a Worker");
      new Worker(import.meta.url).addEventListener("close", ({ code }) => process.exit(code + 1));`);
    expect([status, stderr]).toEqual([72, "in a Worker\n"]);
  });

  test("in an executable with bytecode", async () => {
    const outfile = join(directory.path, "executable");
    const flags = ["--compile", "--bytecode", "--format=esm", "--minify", "--outfile", outfile];
    const source = program("await Bun.sleep(1); requireListenFds();");
    const built = Bun.spawnSync([process.execPath, "build", ...flags, source]);
    expect([built.exitCode, built.stderr.toString()]).toEqual([0, ""]);
    expect(await end([outfile])).toEqual([78, expect.stringMatching(LINE)]);
  });

  test("with its level if stderr is the journal", async () => {
    const log = openSync(join(directory.path, "journal"), "w+");
    const { dev, ino } = fstatSync(log, { bigint: true });
    const command = [process.execPath, program("requireListenFds();")];
    const env = { JOURNAL_STREAM: `${dev}:${ino}` };
    expect(await Bun.spawn(command, { env, stdio: ["ignore", "ignore", log] }).exited).toBe(78);
    expect(readFileSync(join(directory.path, "journal"), "utf8")).toMatch(
      RegExp(`^<3>${LINE.source.slice(1)}`),
    );
  });

  test("after an edit under bun --hot, where the class is a new one", async () => {
    const path = program("console.error('first'); setInterval(() => {}, 1000);");
    const command = [process.execPath, "--hot", path];
    await using running = new Running(Bun.spawn(command, { stdio: ["ignore", "pipe", "pipe"] }));
    await running.says(/^first$/m);
    writeFileSync(
      path,
      `${SETUP}setTimeout(() => { throw new ActivationError(71, "second"); }, 1);`,
    );
    expect([await running.status(), running.stderr]).toEqual([71, "first\nsecond\n"]);
  });
});

describe("another error is printed as by Bun, and the status is 1", () => {
  test("an error, with its place in the source", async () => {
    const [status, stderr] = await run("null.property;\n");
    expect(status).toBe(1);
    expect(stderr).toMatch(
      /^3 \| null\.property;\n +\^\nTypeError: null is not an object [^\n]*\n +at \S+:3:\d+\n\s*$/m,
    );
  });

  test.concurrent.each([
    ["'some text'", /^some text\n$/],
    ["{ name: 'ActivationError', status: 78, message: 'no error' }", /message: "no error"/],
    ["Object.assign(new Error('m'), { name: 'ActivationError' })", /ActivationError: m\n +at /],
    ["Object.assign(new Error('m'), { name: 'ActivationError', status: 0 })", / status: 0,\n/],
    ["Object.assign(new Error('m'), { status: 78 })", /error: m\n status: 78,\n/],
  ])("%s, which is none of this module's", async (thrown, printed) => {
    expect(await run(`throw ${thrown};\n`)).toEqual([1, expect.stringMatching(printed)]);
  });
});
