/* A program whose parent was started by systemd gets no socket: the sockets are for the parent. */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";

import { activate, Running, scratch } from "../support/daemon.ts";
import { lacks, lacksNpm, skipped } from "../support/needs.ts";
import * as sockets from "../support/sockets.ts";

setDefaultTimeout(30_000);

const BUN = process.execPath;
const MODULE = join(import.meta.dir, "../../src/activation/index.ts");
const WARNING =
  /^the sockets were passed to process \d+ \((.*)\), which started this process \(\d+\), so this process gets none: write the program itself in ExecStart=, or put exec before it in the shell$/gm;

const directory = scratch();
afterAll(() => directory[Symbol.dispose]());
const program = join(directory.path, "program.ts");
writeFileSync(
  program,
  `import { acceptedFd, listenFds, passedFd, requireListenFds } from ${JSON.stringify(MODULE)};
  const calls = { acceptedFd, listenFds, passedFd, requireListenFds };
  const attempt = (name) => { try { return calls[name](); } catch (error) { return error.message; } };
  console.log(JSON.stringify([...process.argv.slice(2), "listenFds"].map(attempt)));`,
);
const scripts = { start: `${BUN} program.ts passedFd` };
writeFileSync(join(directory.path, "package.json"), JSON.stringify({ scripts }));

const ENVIRONMENT = {
  PATH: process.env["PATH"] ?? "",
  HOME: directory.path,
  // npm would ask its registry whether there is a newer one.
  npm_config_update_notifier: "false",
};
/** A shell as the parent of the program, and one that becomes the program. */
const PARENT = '"$0" "$1" passedFd; :';
const BECOMES = 'exec "$0" "$1" passedFd';
const shell = (run: string) => ["/bin/sh", "-c", run, BUN, program] as const;
/** The results of the program: the last line of an output, in which npm writes as well. */
const resultsIn = (output: string): unknown => JSON.parse(output.split("\n").at(-2) ?? "");

/** Starts a command with a passed socket. Returns the process of each warning, and the results of the calls. */
async function start(...[command = "", ...args]: readonly string[]) {
  const options = { args, env: ENVIRONMENT, cwd: directory.path };
  await using service = await activate(command, options);
  const client = await service.client();
  const output = service.process.stdout.text();
  expect(await service.status()).toBe(0);
  client.close();
  const wrappers = [...service.stderr.matchAll(WARNING)].map(([, name]) => name);
  return { wrappers, results: resultsIn(await output) };
}

const notPassed = [null, []];
/** npm starts a shell in between. */
const MANAGERS = Object.entries({ bun: BUN, npm: Bun.which("npm") ?? "npm" });

describe.skipIf(lacks("systemd-socket-activate"))(
  "a program whose parent was passed the sockets finds none, and warns once",
  () => {
    test("under a shell", async () => {
      expect(await start(...shell(PARENT))).toEqual({ wrappers: ["sh"], results: notPassed });
    });

    test.each(["listenFds", "acceptedFd", "requireListenFds"])("from %s", async (call) => {
      const why = expect.stringMatching(
        /^no (socket|connection) was passed, because LISTEN_PID is \d+ and this is process \d+: write the program itself in ExecStart=, or /,
      );
      expect(await start(...shell(PARENT.replace("passedFd", call)))).toEqual({
        wrappers: ["sh"],
        results: [call === "listenFds" ? [] : why, []],
      });
    });

    for (const [manager, command] of MANAGERS)
      test.skipIf(manager === "npm" && lacksNpm())(`under ${manager} run`, async () => {
        const { wrappers, results } = await start(command, "run", "start");
        expect({ count: wrappers.length, results }).toEqual({ count: 1, results: notPassed });
      });

    test("under a process whose name looks like the end of a name", async () => {
      const shell = join(directory.path, "a) S 1 (");
      const run = `ln -s /bin/sh "$0" && exec "$0" -c '"$0" "$1" passedFd; :' "$1" "$2"`;
      const { wrappers } = await start("/bin/sh", "-c", run, shell, BUN, program);
      expect(wrappers).toEqual(["a) S 1 ("]);
    });
  },
);

describe("it does not warn", () => {
  test.skipIf(lacks("systemd-socket-activate"))("if the shell becomes the program", async () => {
    expect(await start(...shell(BECOMES))).toEqual({ wrappers: [], results: [3, []] });
  });

  test("if LISTEN_PID is a process that is no ancestor, or none", async () => {
    await using other = Bun.spawn(["sleep", "60"]);
    for (const pid of [other.pid, 0x7fffffff]) {
      const child = Bun.spawn([BUN, program, "passedFd"], {
        env: { LISTEN_PID: String(pid), LISTEN_FDS: "1" },
        stdout: "pipe",
        stderr: "pipe",
      });
      expect(await child.stderr.text()).toBe("");
      expect(JSON.parse(await child.stdout.text())).toEqual(notPassed);
    }
  });
});

/** A pid namespace with a /proc of its own, as a container has them. */
const CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
if (process.geteuid?.() !== 0) CONTAINER.splice(1, 0, "--user", "--map-root-user");
const noContainer = Bun.spawnSync([...CONTAINER, "true"]);
if (!noContainer.success)
  skipped("a wrapper that is process 1", `${noContainer.stderr.toString().trim()}`);

describe.skipIf(!noContainer.success)("in a container, where the sockets are for process 1", () => {
  /** Runs a command as process 1, as container engines pass it a socket. */
  async function contained(...command: readonly string[]) {
    const passed = sockets.listening(sockets.AF_INET, 5);
    await using running = new Running(
      Bun.spawn([...CONTAINER, ...command], {
        env: { ...ENVIRONMENT, LISTEN_PID: "1", LISTEN_FDS: "1" },
        cwd: directory.path,
        stdio: ["ignore", "pipe", "pipe", passed],
      }),
    );
    sockets.close(passed);
    const output = running.process.stdout.text();
    expect([await running.status(), running.stderr]).toEqual([0, expect.any(String)]);
    const results = resultsIn(await output);
    const warnings = [...running.stderr.matchAll(CONTAINED)].map(([, name]) => name);
    return { warnings, results, rest: running.stderr.replaceAll(CONTAINED, "").trim() };
  }
  const CONTAINED =
    /^the sockets were passed to process 1 \((.*)\), which started this process \(\d+\), so this process gets none: write the program itself in the command of the container, or put exec before it in the shell$/gm;

  // Covers /proc/PID of the shell by an empty directory.
  const hide = `mkdir -p empty && mount --bind empty /proc/$$; ${PARENT}`;
  const named = (name: string) => `cp /bin/sh ${name} && exec ./${name} -c '${PARENT}' "$0" "$1"`;
  test.each([
    ["a shell that is process 1 is named", PARENT, ["sh"], notPassed],
    ["a program that is process 1 itself gets the socket, no warning", BECOMES, [], [3, []]],
    ["process 1 of a machine, systemd, is not named", named("systemd"), [], notPassed],
    ["process 1 of a machine, init, is not named", named("init"), [], notPassed],
    ["a process 1 that /proc hides is not named", hide, [], notPassed],
    ["a process between that /proc hides", `/bin/sh -c '${hide}' "$0" "$1"; :`, [], notPassed],
  ])("%s", async (_, run, warnings, results) => {
    expect(await contained(...shell(run))).toEqual({ warnings, results, rest: "" });
  });

  test("the program is told if it is process 1, and the sockets are for a process outside", async () => {
    const run = `LISTEN_PID=4242 ${BECOMES} requireListenFds`;
    const { rest, results } = await contained(...shell(run));
    const remedy = "start the program without a PID namespace of its own";
    expect(rest).toBe(
      `the sockets were passed to process 4242, outside of the PID namespace of this process (1), so this process gets none: ${remedy}`,
    );
    const why = `no socket was passed, because LISTEN_PID is 4242 and this is process 1: ${remedy}`;
    expect(results).toEqual([null, why, []]);
  });

  test("the parent itself is known without /proc", async () => {
    const run = `/bin/sh -c 'LISTEN_PID=$$; ${hide}' "$0" "$1"; :`;
    expect((await contained(...shell(run))).rest).toMatch(
      /^the sockets were passed to process \d+, which started this process \(\d+\), so /,
    );
  });

  test("the error of a program that needs a socket says the same", async () => {
    const run = PARENT.replace("passedFd", "requireListenFds");
    const { warnings, results } = await contained(...shell(run));
    const why = expect.stringMatching(
      /^no socket was passed, because LISTEN_PID is 1 and this is process \d+: write the program itself in the command of the container, or put exec before it in the shell$/,
    );
    expect({ warnings, results }).toEqual({ warnings: ["sh"], results: [why, []] });
  });

  for (const [manager, command] of MANAGERS)
    test.skipIf(manager === "npm" && lacksNpm())(`${manager} run is named`, async () => {
      const { warnings, results } = await contained(command, "run", "start");
      expect({ count: warnings.length, results }).toEqual({ count: 1, results: notPassed });
    });
});
