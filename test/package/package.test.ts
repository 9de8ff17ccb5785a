/* The package that others install: packed, added to an empty project, type-checked and run. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import own from "../../package.json" with { type: "json" };
import { scratch } from "../support/daemon.ts";
import { programs, ROOT } from "../support/pages.ts";
import { must } from "../support/project.ts";

setDefaultTimeout(120_000);

const run = (cwd: string, ...command: string[]) => must(command, { cwd });

let directory: ReturnType<typeof scratch>;
let tarball: string;
let project: string;
beforeAll(() => {
  directory = scratch();
  // The last line is the path.
  tarball = run(ROOT, "make", "--silent", "pack").trim().split("\n").at(-1) ?? "";
  project = join(directory.path, "project");
  mkdirSync(project);
  writeFileSync(join(project, "package.json"), `{ "name": "project", "type": "module" }`);
  const { "bun-types": types, typescript } = own.devDependencies;
  const others = [`@types/bun@${types}`, `typescript@${typescript}`];
  run(project, process.execPath, "add", "--ignore-scripts", tarball, ...others);
});
afterAll(() => directory[Symbol.dispose]());

/** A file of the installed package. */
const installed = (path: string) =>
  readFileSync(join(project, "node_modules/socket-service", path), "utf8");

/** The compiler, in the project, with these options and files. */
function tsc(compilerOptions: object, files: readonly string[]): void {
  writeFileSync(join(project, "tsconfig.json"), JSON.stringify({ compilerOptions, files }));
  run(project, process.execPath, "node_modules/typescript/bin/tsc");
}

test("the tarball holds the sources, a declaration for each, and the module's own pages", () => {
  const all = readdirSync(join(ROOT, "src/activation"), { recursive: true, encoding: "utf8" });
  const sources = all.filter((name) => name.endsWith(".ts"));
  const packed = [
    ...["LICENSE", "README.md", "REFERENCE.md", "package.json", "register.js"],
    ...["register/main.js", "register/main.js.jsc"],
    ...sources.map((name) => `src/activation/${name}`),
    ...sources.map((name) => `types/${name.replace(/ts$/, "d.ts")}`),
  ];
  expect(run(ROOT, "tar", "-tzf", tarball).trim().split("\n").sort()).toEqual(
    packed.map((name) => `package/${name}`).sort(),
  );
  for (const page of ["README.md", "REFERENCE.md"])
    expect(installed(page)).toBe(readFileSync(join(ROOT, "src/activation", page), "utf8"));
  const ofOurs = ["private", "scripts", "devDependencies"];
  const published = Object.entries(own).filter(([name]) => !ofOurs.includes(name));
  expect(JSON.parse(installed("package.json"))).toEqual(Object.fromEntries(published));
});

test("the preload is at the package's root, and loads one file if there is something to do", () => {
  const register = installed("register.js");
  expect(register.match(/"\.[^"]*"/g)).toEqual(['"./register/main.js"']);
  // A byte more is parsed at each start, with nothing to do too.
  expect(register.length).toBeLessThan(256);
  const main = installed("register/main.js");
  expect(main).not.toMatch(/\bfrom *"\.|require\("\./);
  expect(main.length).toBeLessThan(96 * 1024);
  writeFileSync(
    join(project, "program.ts"),
    `import "socket-service/register"; console.log("runs");`,
  );
  expect(run(project, process.execPath, "--no-install", "program.ts")).toBe("runs\n");
});

test("the declarations leave Bun's own types and the global names as they are", () => {
  const types = join(project, "node_modules/socket-service/types");
  const declarations = readdirSync(types, { recursive: true, encoding: "utf8" });
  for (const name of declarations.filter((file) => file.endsWith(".ts"))) {
    const text = installed(`types/${name}`);
    expect(text).not.toMatch(/declare (module|global)|\/\/\/ *<reference/);
    // A file without an export declares global names.
    expect(text).toMatch(/^export /m);
  }
});

const EMPTY = { target: "esnext", module: "preserve", types: ["bun"], noEmit: true };
/** As `bun init` writes them. */
const BUN_INIT = {
  lib: ["ESNext"],
  target: "ESNext",
  module: "Preserve",
  moduleDetection: "force",
  jsx: "react-jsx",
  allowJs: true,
  types: ["bun"],
  moduleResolution: "bundler",
  allowImportingTsExtensions: true,
  verbatimModuleSyntax: true,
  noEmit: true,
  strict: true,
  skipLibCheck: true,
  noFallthroughCasesInSwitch: true,
  noUncheckedIndexedAccess: true,
  noImplicitOverride: true,
  noUnusedLocals: false,
  noUnusedParameters: false,
  noPropertyAccessFromIndexSignature: false,
};
const CONFIGURATIONS = {
  "the options of bun init": BUN_INIT,
  "skipLibCheck: false, and all that is strict": {
    ...BUN_INIT,
    skipLibCheck: false,
    erasableSyntaxOnly: true,
    exactOptionalPropertyTypes: true,
    noPropertyAccessFromIndexSignature: true,
    noUnusedLocals: true,
    noUnusedParameters: true,
  },
  "strict: false": { ...EMPTY, strict: false },
  "declarations and JavaScript emitted": {
    target: "esnext",
    module: "esnext",
    moduleResolution: "bundler",
    types: ["bun"],
    declaration: true,
    outDir: "emitted",
  },
  "lib: ES2022": { ...EMPTY, target: "es2022", lib: ["es2022"] },
  "module: nodenext": { ...EMPTY, module: "nodenext" },
};

/** These calls must not compile, in any configuration. */
const WRONG = `
import { drain, listen, listenFds, notify, pick, serve } from "socket-service/activation";
const fetch = () => new Response();
const socket = { data() {} };
// @ts-expect-error: an assignment that does not exist
notify({ redy: true });
// @ts-expect-error: READY=0 does not exist
notify({ ready: false });
// @ts-expect-error: a name of your own begins with X_
notify({ custom: { READY: "1" } });
// @ts-expect-error: a port is no descriptor
serve(4000, { fetch });
// @ts-expect-error: a list is no descriptor
serve({ fd: pick(listenFds(), { http: "any" }).http, fetch });
// @ts-expect-error: an option that does not exist
serve({ fd: 3, prot: 4000, fetch });
// @ts-expect-error: nothing answers
serve({ fd: 3 });
// @ts-expect-error: an option that does not exist
listen({ fd: 1, unknown: 1, socket });
// @ts-expect-error: nothing handles the connections
listen({ fd: 1 });
// @ts-expect-error: an option that does not exist
drain(serve({ fetch }), { grece: 5 });
// @ts-expect-error: Bun's own types are as they were
Bun.listen({ fd: 3, socket });
`;
/** This call must not compile if undefined is a type of its own. */
const WRONG_IF_STRICT = `
import { listen, passedFd } from "socket-service/activation";
// @ts-expect-error: nothing may have been passed, and there is no address then
listen({ fd: passedFd(), socket: { data() {} } });
`;
const HELLO = `
import { booted, listenFds, passedFd, serve } from "socket-service/activation";
const server = serve({ fd: passedFd(), port: 0, fetch: () => new Response("installed") });
console.log(typeof booted(), listenFds().length, await (await fetch(server.url)).text());
await server.stop();
`;

test.each(Object.entries(CONFIGURATIONS))("a project type-checks with %s", (_, options) => {
  // The README's programs, too, but for those that need a framework: see frameworks.test.ts.
  const sources = programs(join(project, "node_modules/socket-service/README.md"));
  for (const [name, source] of sources)
    if (/(from |import\()"(?!node:|socket-service\/)/.test(source)) sources.delete(name);
  expect(sources.size).toBeGreaterThan(4);
  sources.set("hello.ts", HELLO).set("wrong.ts", WRONG);
  if (!("strict" in options) || options.strict) sources.set("strict.ts", WRONG_IF_STRICT);
  for (const [name, source] of sources) writeFileSync(join(project, name), source);
  tsc(options, [...sources.keys()]);
});

test("the installed module runs, from TypeScript and from emitted JavaScript", () => {
  for (const program of ["hello.ts", "emitted/hello.js"])
    expect(run(project, process.execPath, program)).toBe("boolean 0 installed\n");
});
