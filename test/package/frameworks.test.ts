/* The programs of the README that need a framework, under systemd-socket-activate. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";

import { activate, freePort, scratch } from "../support/daemon.ts";
import { lacks } from "../support/needs.ts";
import { programs, ROOT } from "./programs.ts";

setDefaultTimeout(120_000);

/** Installed for these tests, into directories of their own. */
const FRAMEWORKS = ["hono@4.13.19", "elysia@1.4.30", "srvx@1.0.8"];

const NAMES = ["Hono", "Elysia", "srvx"];
const file = (name: string) => `${name.toLowerCase()}.ts`;
const PROGRAMS = programs(join(ROOT, "src/activation/README.md"));

/** What has a build of its own: its packages, that build, and the smallest application. */
const BUILT = {
  SvelteKit: {
    packages: [
      "svelte-adapter-bun@1.0.1",
      "@sveltejs/kit@2.70.4",
      "@sveltejs/vite-plugin-svelte@6.2.4",
      "svelte@5.57.3",
      "vite@7.3.8",
    ],
    build: ["vite", "build"],
    files: {
      "svelte.config.js": `import adapter from "svelte-adapter-bun";
        export default { kit: { adapter: adapter() } };`,
      "vite.config.js": `import { sveltekit } from "@sveltejs/kit/vite";
        export default { plugins: [sveltekit()] };`,
      "src/app.html": "%sveltekit.head% %sveltekit.body%",
      "src/routes/+page.svelte": "Hello from SvelteKit",
      "static/file.txt": "a file",
    },
  },
  Nitro: {
    packages: ["nitro@3.0.0"],
    build: ["nitro", "build", "--preset", "bun"],
    files: {
      "routes/index.ts": `import { defineEventHandler } from "nitro/h3";
        export default defineEventHandler(() => "Hello from Nitro");`,
      "public/file.txt": "a file",
    },
  },
};

/** Runs Bun to its end. */
function bun(cwd: string, ...args: string[]): void {
  const { exitCode, stderr } = Bun.spawnSync([process.execPath, ...args], { cwd });
  if (exitCode !== 0) throw new Error(`bun ${args.join(" ")}: ${stderr}`);
}

function install(cwd: string, packages: readonly string[], names: readonly string[]): void {
  writeFileSync(join(cwd, "package.json"), `{ "type": "module" }`);
  bun(cwd, "add", "--ignore-scripts", "--silent", ...packages);
  symlinkSync(ROOT, join(cwd, "node_modules/socket-service"));
  for (const name of names) writeFileSync(join(cwd, file(name)), PROGRAMS.get(file(name)) ?? "");
}

let directory: ReturnType<typeof scratch>;
beforeAll(() => {
  directory = scratch();
  install(directory.path, FRAMEWORKS, NAMES);
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

test.skipIf(lacks("systemd-socket-activate")).each(Object.entries(BUILT))(
  "the output of %s serves on a passed socket",
  async (name, { packages, build, files }) => {
    using directory = scratch();
    const cwd = directory.path;
    install(cwd, packages, [name]);
    for (const [path, text] of Object.entries(files)) {
      mkdirSync(dirname(join(cwd, path)), { recursive: true });
      writeFileSync(join(cwd, path), text);
    }
    const [command = "", ...args] = build;
    bun(cwd, "--bun", join("node_modules/.bin", command), ...args);
    const url = `http://127.0.0.1:${freePort()}`;
    const listen = [url.slice("http://".length)];
    await using service = await activate(process.execPath, { listen, args: [file(name)], cwd });
    const get = async (path: string) => await (await fetch(url + path)).text();
    expect(await get("/")).toContain(`Hello from ${name}`);
    expect(await get("/file.txt")).toBe("a file");
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
