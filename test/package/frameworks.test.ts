/* The programs of the README that need a framework, under systemd-socket-activate. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { activate, freePort, scratch } from "../support/daemon.ts";
import { lacks } from "../support/needs.ts";
import { programs, ROOT } from "./programs.ts";

setDefaultTimeout(120_000);

/** Installed for these tests, into a directory of their own. */
const FRAMEWORKS = ["hono@4.13.19", "elysia@1.4.30", "srvx@1.0.8"];

const NAMES = ["Hono", "Elysia", "srvx"];
const file = (name: string) => `${name.toLowerCase()}.ts`;
const PROGRAMS = programs(join(ROOT, "src/activation/README.md"));

let directory: ReturnType<typeof scratch>;
beforeAll(() => {
  directory = scratch();
  const cwd = directory.path;
  writeFileSync(join(cwd, "package.json"), "{}");
  const install = [process.execPath, "add", "--ignore-scripts", "--silent", ...FRAMEWORKS];
  const { exitCode, stderr } = Bun.spawnSync(install, { cwd });
  if (exitCode !== 0) throw new Error(`${install.join(" ")}: ${stderr}`);
  mkdirSync(join(cwd, "node_modules"), { recursive: true });
  symlinkSync(ROOT, join(cwd, "node_modules/socket-service"));
  for (const name of NAMES) writeFileSync(join(cwd, file(name)), PROGRAMS.get(file(name)) ?? "");
});
afterAll(() => directory[Symbol.dispose]());

test.skipIf(lacks("systemd-socket-activate")).each(NAMES)(
  "%s serves on a passed socket",
  async (name) => {
    const path = join(directory.path, file(name));
    const port = freePort();
    const listen = [`127.0.0.1:${port}`];
    await using service = await activate(process.execPath, { listen, args: [path] });
    expect(await (await fetch(`http://127.0.0.1:${port}/`)).text()).toBe(`Hello from ${name}\n`);
    if (name === "Hono") {
      const socket = new WebSocket(`ws://127.0.0.1:${port}/echo`);
      socket.addEventListener("open", () => socket.send("echo"));
      const { data } = await new Promise<MessageEvent>((resolve, reject) => {
        socket.addEventListener("message", resolve);
        socket.addEventListener("close", reject);
      });
      expect(data).toBe("echo");
      socket.close();
    }
    expect(service.stderr).not.toContain("error");
  },
);

test("they type-check", () => {
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
  const files = NAMES.map(file);
  const configuration = JSON.stringify({ compilerOptions, files });
  writeFileSync(join(directory.path, "tsconfig.json"), configuration);
  const tsc = join(ROOT, "node_modules/typescript/bin/tsc");
  const { stdout } = Bun.spawnSync([process.execPath, tsc], { cwd: directory.path });
  expect(stdout.toString()).toBe("");
});
