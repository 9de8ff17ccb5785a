/* The package that others install: packed, added to an empty project, type-checked and run. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

setDefaultTimeout(60_000);

const ROOT = resolve(import.meta.dir, "../..");

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "socket-service-"));
});
afterAll(() => rmSync(directory, { recursive: true }));

/** Runs a command to its end; what it says is the error where it fails. */
function run(cwd: string, ...command: string[]): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync(command, { cwd });
  if (exitCode !== 0) throw new Error(`${command.join(" ")}: ${stdout}${stderr}`);
  return stdout.toString();
}

test("the module is added to an empty project from its tarball, type-checks and runs", () => {
  run(
    ROOT,
    process.execPath,
    "pm",
    "pack",
    "--quiet",
    "--ignore-scripts",
    "--destination",
    directory,
  );
  const tarball = join(directory, run(directory, "ls").trim());

  const held = run(directory, "tar", "-tzf", tarball).trim().split("\n");
  expect(
    held.filter((name) => !/^package\/src\/activation\/[a-z-]+(\.d)?\.ts$/.test(name)).sort(),
  ).toEqual([
    "package/LICENSE",
    "package/README.md",
    "package/package.json",
    "package/src/activation/README.md",
  ]);

  const project = join(directory, "project");
  mkdirSync(project);
  writeFileSync(join(project, "package.json"), `{ "name": "project", "type": "module" }`);
  run(project, process.execPath, "add", "--ignore-scripts", tarball);
  expect(JSON.parse(readFileSync(join(project, "package.json"), "utf8"))).toHaveProperty([
    "dependencies",
    "socket-service",
  ]);
  // The compiler and the types of Bun are the project's own affair.
  for (const name of readdirSync(join(ROOT, "node_modules")).filter((name) => /^[^.]/.test(name)))
    symlinkSync(join(ROOT, "node_modules", name), join(project, "node_modules", name));

  // All of the README's programs, and more options than `bun init` sets.
  const readme = readFileSync(
    join(project, "node_modules/socket-service/src/activation/README.md"),
    "utf8",
  );
  const programs = [...readme.matchAll(/```ts\n\/\/ (\S+)\n(.*?)```/gs)];
  expect(programs.length).toBe(5);
  for (const [, name = "", source = ""] of programs) writeFileSync(join(project, name), source);
  const compilerOptions = {
    target: "esnext",
    lib: ["esnext"],
    types: ["bun-types"],
    module: "preserve",
    allowImportingTsExtensions: true,
    noEmit: true,
    strict: true,
    verbatimModuleSyntax: true,
    erasableSyntaxOnly: true,
    noUncheckedIndexedAccess: true,
    noPropertyAccessFromIndexSignature: true,
    exactOptionalPropertyTypes: true,
    noUnusedLocals: true,
    noUnusedParameters: true,
  };
  writeFileSync(
    join(project, "tsconfig.json"),
    JSON.stringify({ compilerOptions, include: ["*.ts"] }),
  );
  run(project, process.execPath, join(ROOT, "node_modules/typescript/bin/tsc"));

  // A wrong call does not compile.
  writeFileSync(
    join(project, "wrong.ts"),
    `import { listenFds, notify, pick, serve } from "socket-service/activation";
    // @ts-expect-error: an assignment that does not exist
    notify({ redy: true });
    // @ts-expect-error: READY=0 does not exist
    notify({ ready: false });
    // @ts-expect-error: a name of one's own begins with X_
    notify({ custom: { READY: "1" } });
    // @ts-expect-error: there may be none
    serve(pick(listenFds(), { http: "optional" }).http, { fetch: () => new Response() });
    // @ts-expect-error: the address comes with the socket
    serve(3, { port: 4000, fetch: () => new Response() });
    // @ts-expect-error: nothing answers
    serve(3, {});`,
  );
  run(project, process.execPath, join(ROOT, "node_modules/typescript/bin/tsc"));

  const hello = `
    import { booted, listenFds, serve } from "socket-service/activation";
    const server = serve({ port: 0 }, { fetch: () => new Response("installed") });
    console.log(typeof booted(), listenFds().length, await (await fetch(server.url)).text());
    await server.stop();`;
  writeFileSync(join(project, "hello.ts"), hello);
  expect(run(project, process.execPath, "hello.ts")).toBe("boolean 0 installed\n");
});
