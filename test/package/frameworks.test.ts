/* The programs of the module's page that need a framework, by its commands, under systemd-socket-activate. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { activate, freePort, Running, scratch } from "../support/daemon.ts";
import { lacks } from "../support/needs.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import { linkModule, must } from "../support/project.ts";
import { echoed } from "../support/unchanged.ts";
import { until } from "../support/until.ts";
import { activation, programs, README, ROOT } from "../support/pages.ts";

setDefaultTimeout(120_000);

/** Installed for these tests, into a directory of their own. */
const FRAMEWORKS = ["hono@4.13.19"];

const PROGRAMS = programs(README);
/** What each answers, and whether it echoes on a WebSocket. */
const ANSWERS = {
  "hono.ts": ["Hello from Hono\n", true],
} as const;
const NAMES = Object.keys(ANSWERS);

let directory: ReturnType<typeof scratch>;
beforeAll(() => {
  directory = scratch();
  const cwd = directory.path;
  writeFileSync(join(cwd, "package.json"), `{ "type": "module" }`);
  must([process.execPath, "add", "--ignore-scripts", "--silent", ...FRAMEWORKS], { cwd });
  linkModule(cwd);
  for (const name of NAMES) writeFileSync(join(cwd, name), PROGRAMS.get(name) ?? "");
});
afterAll(() => directory[Symbol.dispose]());

const activated = test.skipIf(lacks("systemd-socket-activate"));

/** Runs the README's command for a program, with a service manager, until it is disposed of. */
async function run(cwd: string, program: string, port: number) {
  const receiver = new NotifyReceiver(join(cwd, "notify"));
  const { args, ...activator } = activation(README, program, [port]);
  const env = { NOTIFY_SOCKET: receiver.address };
  const service = await activate(process.execPath, { ...activator, args, cwd, env });
  return {
    service,
    ready: async () => (await receiver.next()).text,
    async [Symbol.asyncDispose]() {
      await service[Symbol.asyncDispose]();
      receiver.close();
      rmSync(receiver.address);
    },
  };
}

activated.each(Object.entries(ANSWERS))(
  "%s serves on a passed socket, and tells systemd that it is ready",
  async (name, [answer, echoes]) => {
    const port = freePort();
    await using it = await run(directory.path, name, port);
    expect(await (await fetch(`http://127.0.0.1:${port}/`)).text()).toBe(answer);
    if (echoes) expect(await echoed(`ws://127.0.0.1:${port}/echo`)).toBe("echo");
    expect(await it.ready()).toBe("READY=1\n");
    expect(it.service.stderr).not.toContain("error");
  },
);

activated("hono.ts is served a second time by Bun if it exports the application too", async () => {
  const source = `${PROGRAMS.get("hono.ts")}export default app;\n`;
  writeFileSync(join(directory.path, "default.ts"), source);
  const [port, second] = [freePort(), freePort()];
  // Without this variable it is port 3000.
  const env = { BUN_PORT: String(second) };
  const options = { listen: [`127.0.0.1:${port}`], args: ["default.ts"], cwd: directory.path, env };
  await using _ = await activate(process.execPath, options);
  for (const at of [`127.0.0.1:${port}`, `127.0.0.1:${second}`, `127.0.0.2:${second}`])
    expect(await (await fetch(`http://${at}/`)).text()).toBe("Hello from Hono\n");
});

test.each(NAMES)("%s serves on the loopback's first address alone by itself", async (name) => {
  const port = freePort();
  const source = PROGRAMS.get(name)?.replace("4000", String(port)) ?? "";
  writeFileSync(join(directory.path, `alone-${name}`), source);
  const child = Bun.spawn([process.execPath, `alone-${name}`], {
    cwd: directory.path,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  await using _ = new Running(child);
  const get = (host: string) => fetch(`http://${host}:${port}/`).catch(() => undefined);
  await until("it answers", 10, () => get("127.0.0.1"));
  // What listens on all addresses has this one too.
  expect(await get("127.0.0.2")).toBeUndefined();
});

test("the programs of frameworks type-check", () => {
  for (const name of ["bun-types", "@types", "typescript", "@typescript", "undici-types"])
    symlinkSync(join(ROOT, "node_modules", name), join(directory.path, "node_modules", name));
  const compilerOptions = {
    lib: ["esnext"],
    target: "esnext",
    module: "preserve",
    types: ["bun-types"],
    moduleDetection: "force",
    allowImportingTsExtensions: true,
    skipLibCheck: true,
    noEmit: true,
    strict: true,
  };
  const configuration = JSON.stringify({ compilerOptions, files: NAMES });
  writeFileSync(join(directory.path, "tsconfig.json"), configuration);
  const tsc = join(ROOT, "node_modules/typescript/bin/tsc");
  const { stdout } = Bun.spawnSync([process.execPath, tsc], { cwd: directory.path });
  expect(stdout.toString()).toBe("");
});
