/* The programs of the module's page that need a framework, by its commands, under systemd-socket-activate. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { activate, execute, freePort, get, scratch } from "../support/daemon.ts";
import { lacks } from "../support/needs.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import { linkModule, must } from "../support/project.ts";
import { echoed } from "../support/unchanged.ts";
import { until } from "../support/until.ts";
import { activation, programs, README, ROOT } from "../support/pages.ts";

setDefaultTimeout(120_000);

/** Installed for these tests, into a directory of their own. */
const FRAMEWORKS = ["hono@4.13.19"];

const HONO = programs(README).get("hono.ts") ?? "";

let directory: ReturnType<typeof scratch>;
beforeAll(() => {
  directory = scratch();
  const cwd = directory.path;
  writeFileSync(join(cwd, "package.json"), `{ "type": "module" }`);
  must([process.execPath, "add", "--ignore-scripts", "--silent", ...FRAMEWORKS], { cwd });
  linkModule(cwd);
  writeFileSync(join(cwd, "hono.ts"), HONO);
});
afterAll(() => directory[Symbol.dispose]());

const activated = test.skipIf(lacks("systemd-socket-activate"));

activated(
  "hono.ts serves by the README's command, and tells systemd that it is ready",
  async () => {
    const port = freePort();
    using receiver = new NotifyReceiver();
    const options = { cwd: directory.path, env: { NOTIFY_SOCKET: receiver.address } };
    const command = activation(README, "hono.ts", [port]);
    await using service = await activate(process.execPath, { ...command, ...options });
    expect(await get(port)).toBe("Hello from Hono\n");
    expect(await echoed(`ws://127.0.0.1:${port}/echo`)).toBe("echo");
    expect(await receiver.text()).toBe("READY=1\n");
    expect(service.stderr).not.toContain("error");
  },
);

activated("hono.ts is served a second time by Bun if it exports the application too", async () => {
  const source = `${HONO}export default app;\n`;
  writeFileSync(join(directory.path, "default.ts"), source);
  const [port, second] = [freePort(), freePort()];
  // Without this variable it is port 3000.
  const env = { BUN_PORT: String(second) };
  const options = { listen: [`127.0.0.1:${port}`], args: ["default.ts"], cwd: directory.path, env };
  await using _ = await activate(process.execPath, options);
  for (const at of [`127.0.0.1:${port}`, `127.0.0.1:${second}`, `127.0.0.2:${second}`])
    expect(await (await fetch(`http://${at}/`)).text()).toBe("Hello from Hono\n");
});

test("hono.ts serves on the loopback's first address alone by itself", async () => {
  const port = freePort();
  writeFileSync(join(directory.path, "alone.ts"), HONO.replace("4000", String(port)));
  const variables = { LISTEN_PID: undefined, LISTEN_FDS: undefined };
  await using _ = execute(process.execPath, [], variables, ["alone.ts"], directory.path);
  await until("it answers", 10, () => get(port).catch(() => undefined));
  // A server on all addresses would have this one too.
  expect(await get(port, "/", "127.0.0.2").catch(() => undefined)).toBeUndefined();
});

test("hono.ts type-checks", () => {
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
  const configuration = JSON.stringify({ compilerOptions, files: ["hono.ts"] });
  writeFileSync(join(directory.path, "tsconfig.json"), configuration);
  const tsc = join(ROOT, "node_modules/typescript/bin/tsc");
  const { stdout } = Bun.spawnSync([process.execPath, tsc], { cwd: directory.path });
  expect(stdout.toString()).toBe("");
});
