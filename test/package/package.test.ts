/* The package that others install: packed, added to an empty project, type-checked and run. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { scratch } from "../support/daemon.ts";
import { programs, ROOT } from "./programs.ts";

setDefaultTimeout(60_000);

/** Runs a command to its end; what it says is the error where it fails. */
function run(cwd: string, ...command: string[]): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync(command, { cwd });
  if (exitCode !== 0) throw new Error(`${command.join(" ")}: ${stdout}${stderr}`);
  return stdout.toString();
}

test("the module is added to an empty project from its tarball, type-checks and runs", () => {
  using scratched = scratch();
  const directory = scratched.path;
  const pack = ["pm", "pack", "--quiet", "--ignore-scripts", "--destination", directory];
  run(ROOT, process.execPath, ...pack);
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
  const readme = "node_modules/socket-service/src/activation/README.md";
  const sources = programs(join(project, readme));
  expect(sources.size).toBe(6);
  for (const [name, source] of sources) writeFileSync(join(project, name), source);
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
    `import { drain, listen, listenFds, notify, passedFd, pick, serve } from "socket-service/activation";
    const fetch = () => new Response();
    const socket = { data() {} };
    // @ts-expect-error: an assignment that does not exist
    notify({ redy: true });
    // @ts-expect-error: READY=0 does not exist
    notify({ ready: false });
    // @ts-expect-error: a name of one's own begins with X_
    notify({ custom: { READY: "1" } });
    // @ts-expect-error: a port is no descriptor
    serve(4000, { fetch });
    // @ts-expect-error: a list is no descriptor
    serve({ fd: pick(listenFds(), { http: "any" }).http, fetch });
    // @ts-expect-error: an option that does not exist
    serve({ fd: 3, prot: 4000, fetch });
    // @ts-expect-error: nothing answers
    serve({ fd: 3 });
    // @ts-expect-error: nothing may have been passed, and there is no address then
    listen({ fd: passedFd(), socket });
    // @ts-expect-error: an option that does not exist
    listen({ fd: 3, bocklog: 5, socket });
    // @ts-expect-error: an option that does not exist
    drain(serve({ fetch }), { grece: 5 });
    // @ts-expect-error: Bun's own types are as they were
    Bun.listen({ fd: 3, socket });`,
  );
  run(project, process.execPath, join(ROOT, "node_modules/typescript/bin/tsc"));

  const hello = `
    import { booted, listenFds, passedFd, serve } from "socket-service/activation";
    const server = serve({ fd: passedFd(), port: 0, fetch: () => new Response("installed") });
    console.log(typeof booted(), listenFds().length, await (await fetch(server.url)).text());
    await server.stop();`;
  writeFileSync(join(project, "hello.ts"), hello);
  expect(run(project, process.execPath, "hello.ts")).toBe("boolean 0 installed\n");
});
