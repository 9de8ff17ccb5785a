/* Frameworks that hand out a `fetch`, or the options of Bun.serve, on a passed socket. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { activate, freePort, scratch } from "../support/daemon.ts";
import { lacks } from "../support/needs.ts";
import { ROOT } from "./programs.ts";

setDefaultTimeout(120_000);

/** Installed for these tests, into a directory of their own. */
const FRAMEWORKS = ["hono@4.13.19", "elysia@1.4.30", "srvx@1.0.8"];

const START = `import { passedFd, serve } from "socket-service/activation";\n`;
const PROGRAMS = {
  hono: `
    import { Hono } from "hono";
    import { upgradeWebSocket, websocket } from "hono/bun";
    const app = new Hono()
      .get("/", (context) => context.text("Hello from hono"))
      .get("/socket", upgradeWebSocket(() => ({ onMessage: (event, socket) => socket.send(String(event.data)) })));
    const options = { port: 4000, fetch: app.fetch, websocket };
    serve({ ...options, fd: passedFd() });`,
  elysia: `
    import { Elysia } from "elysia";
    const app = new Elysia().get("/", "Hello from elysia");
    serve({ fd: passedFd(), port: 4000, fetch: app.fetch });`,
  srvx: `
    import { serve as create } from "srvx";
    const app = create({ manual: true, fetch: () => new Response("Hello from srvx") });
    serve({ fd: passedFd(), port: 4000, fetch: app.fetch });`,
};

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
});
afterAll(() => directory[Symbol.dispose]());

test.skipIf(lacks("systemd-socket-activate")).each(Object.entries(PROGRAMS))(
  "%s serves on a passed socket",
  async (name, source) => {
    const path = join(directory.path, `${name}.ts`);
    writeFileSync(path, START + source);
    const port = freePort();
    const listen = [`127.0.0.1:${port}`];
    await using service = await activate(process.execPath, { listen, args: [path] });
    expect(await (await fetch(`http://127.0.0.1:${port}/`)).text()).toBe(`Hello from ${name}`);
    if (name === "hono") {
      const socket = new WebSocket(`ws://127.0.0.1:${port}/socket`);
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
  const files = Object.keys(PROGRAMS).map((name) => `${name}.ts`);
  const configuration = JSON.stringify({ compilerOptions, files });
  writeFileSync(join(directory.path, "tsconfig.json"), configuration);
  const tsc = join(ROOT, "node_modules/typescript/bin/tsc");
  const { stdout } = Bun.spawnSync([process.execPath, tsc], { cwd: directory.path });
  expect(stdout.toString()).toBe("");
});
