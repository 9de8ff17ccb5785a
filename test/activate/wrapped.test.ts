/* A program that is not what was started, but a child of it: the sockets are for its parent. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";

import { activate, Client, freePort, Running, scratch } from "../support/daemon.ts";
import { lacks, lacksNpm, skipped } from "../support/needs.ts";
import * as sockets from "../support/sockets.ts";

setDefaultTimeout(30_000);

const BUN = process.execPath;
const MODULE = join(import.meta.dir, "../../src/activation/index.ts");
const WARNING =
  /^the sockets were passed to process \d+ \((.*)\), which started this process, \d+, so this process gets none: write the program itself in ExecStart=, or put exec before it in the shell$/gm;

let directory: ReturnType<typeof scratch>;
let program: string;
beforeAll(() => {
  directory = scratch();
  program = join(directory.path, "program.ts");
  writeFileSync(
    program,
    `import { acceptedFd, listenFds, passedFd, requireListenFds } from ${JSON.stringify(MODULE)};
    const calls = { acceptedFd, listenFds, passedFd, requireListenFds };
    const attempt = (name) => { try { return calls[name](); } catch (error) { return error.message; } };
    console.log(JSON.stringify([...process.argv.slice(2), "listenFds"].map(attempt)));`,
  );
  const scripts = { start: `${BUN} program.ts passedFd` };
  writeFileSync(join(directory.path, "package.json"), JSON.stringify({ scripts }));
});
afterAll(() => directory[Symbol.dispose]());

/** Starts a command with a passed socket. Returns whom each warning names, and what the calls gave. */
async function start(...[command = "", ...args]: string[]) {
  const port = freePort();
  const env = {
    PATH: process.env["PATH"] ?? "",
    HOME: directory.path,
    // npm would ask its registry whether there is a newer one.
    npm_config_update_notifier: "false",
  };
  const options = { listen: [`127.0.0.1:${port}`], args, env, cwd: directory.path };
  await using service = await activate(command, options);
  const client = await Client.connect(port);
  const output = service.process.stdout.text();
  expect(await service.status()).toBe(0);
  client.close();
  const wrappers = [...service.stderr.matchAll(WARNING)].map(([, name]) => name);
  const results: unknown = JSON.parse((await output).split("\n").at(-2) ?? "");
  return { wrappers, results };
}

const notPassed = [null, []];

describe.skipIf(lacks("systemd-socket-activate"))(
  "a program whose parent was passed the sockets finds none, and warns once",
  () => {
    test("under a shell", async () => {
      const run = '"$0" "$1" passedFd; :';
      expect(await start("/bin/sh", "-c", run, BUN, program)).toEqual({
        wrappers: ["sh"],
        results: notPassed,
      });
    });

    test.each(["listenFds", "acceptedFd", "requireListenFds"])("from %s", async (call) => {
      const { wrappers, results } = await start(
        "/bin/sh",
        "-c",
        '"$@"; :',
        "sh",
        BUN,
        program,
        call,
      );
      const why = expect.stringMatching(
        /^no (socket|connection) was passed, because LISTEN_PID is \d+ and this is process \d+: write the program itself in ExecStart=, or /,
      );
      expect({ wrappers, results }).toEqual({
        wrappers: ["sh"],
        results: [call === "listenFds" ? [] : why, []],
      });
    });

    test("under bun run", async () => {
      const { wrappers, results } = await start(BUN, "run", "start");
      expect({ count: wrappers.length, results }).toEqual({ count: 1, results: notPassed });
    });

    test.skipIf(lacksNpm())("under npm, which starts a shell in between", async () => {
      const { wrappers, results } = await start(Bun.which("npm") ?? "npm", "run", "start");
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
    const run = 'exec "$0" "$1" passedFd';
    expect(await start("/bin/sh", "-c", run, BUN, program)).toEqual({
      wrappers: [],
      results: [3, []],
    });
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
  async function contained(...command: string[]) {
    const passed = sockets.listening(sockets.AF_INET, 5);
    const env = {
      PATH: process.env["PATH"] ?? "",
      HOME: directory.path,
      npm_config_update_notifier: "false",
      LISTEN_PID: "1",
      LISTEN_FDS: "1",
    };
    await using running = new Running(
      Bun.spawn([...CONTAINER, ...command], {
        env,
        cwd: directory.path,
        stdio: ["ignore", "pipe", "pipe", passed],
      }),
    );
    sockets.close(passed);
    const output = running.process.stdout.text();
    expect([await running.status(), running.stderr]).toEqual([0, expect.any(String)]);
    const results: unknown = JSON.parse((await output).split("\n").at(-2) ?? "");
    const warnings = [...running.stderr.matchAll(CONTAINED)].map(([, name]) => name);
    return { warnings, results, rest: running.stderr.replaceAll(CONTAINED, "").trim() };
  }
  const CONTAINED =
    /^the sockets were passed to process 1 \((.*)\), which started this process, \d+, so this process gets none: write the program itself in the command of the container, or put exec before it in the shell$/gm;

  test("a shell that is process 1 is named", async () => {
    const run = '"$0" "$1" passedFd; :';
    expect(await contained("/bin/sh", "-c", run, BUN, program)).toEqual({
      warnings: ["sh"],
      results: notPassed,
      rest: "",
    });
  });

  test("the error of a program that needs a socket says the same", async () => {
    const run = '"$0" "$1" requireListenFds; :';
    const { warnings, results } = await contained("/bin/sh", "-c", run, BUN, program);
    const why = expect.stringMatching(
      /^no socket was passed, because LISTEN_PID is 1 and this is process \d+: write the program itself in the command of the container, or put exec before it in the shell$/,
    );
    expect({ warnings, results }).toEqual({ warnings: ["sh"], results: [why, []] });
  });

  test("bun run is named", async () => {
    const { warnings, results } = await contained(BUN, "run", "start");
    expect({ count: warnings.length, results }).toEqual({ count: 1, results: notPassed });
  });

  test.skipIf(lacksNpm())("npm is named", async () => {
    const { warnings, results } = await contained(Bun.which("npm") ?? "npm", "run", "start");
    expect({ count: warnings.length, results }).toEqual({ count: 1, results: notPassed });
  });

  test("a program that is process 1 itself takes the socket, with no warning", async () => {
    const run = 'exec "$0" "$1" passedFd';
    expect(await contained("/bin/sh", "-c", run, BUN, program)).toEqual({
      warnings: [],
      results: [3, []],
      rest: "",
    });
  });

  test.each(["systemd", "init"])("process 1 of a machine, %s, is not named", async (name) => {
    const run = `cp /bin/sh ${name} && exec ./${name} -c '"$0" "$1" passedFd; :' "$0" "$1"`;
    expect(await contained("/bin/sh", "-c", run, BUN, program)).toEqual({
      warnings: [],
      results: notPassed,
      rest: "",
    });
  });

  test("a process that /proc hides is not named: process 1, or one between", async () => {
    // Covers /proc/PID of the shell by an empty directory.
    const hide = 'mkdir -p empty && mount --bind empty /proc/$$; "$0" "$1" passedFd; :';
    expect(await contained("/bin/sh", "-c", hide, BUN, program)).toEqual({
      warnings: [],
      results: notPassed,
      rest: "",
    });
    const between = `/bin/sh -c '${hide}' "$0" "$1"; :`;
    expect(await contained("/bin/sh", "-c", between, BUN, program)).toEqual({
      warnings: [],
      results: notPassed,
      rest: "",
    });
    // The parent itself is known without /proc.
    const parent = `LISTEN_PID=$$; ${hide}`;
    const { rest } = await contained(
      "/bin/sh",
      "-c",
      `/bin/sh -c '${parent}' "$0" "$1"; :`,
      BUN,
      program,
    );
    expect(rest).toMatch(
      /^the sockets were passed to process \d+, which started this process, \d+, so /,
    );
  });
});
