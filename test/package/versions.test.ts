/* What a program gets from a Bun that is too old. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";

import own from "../../package.json" with { type: "json" };
import * as activation from "../../src/activation/index.ts";
import { scratch } from "../support/daemon.ts";
import { ROOT } from "./programs.ts";

setDefaultTimeout(120_000);

/** The last that is too old. */
const OLD = "1.3.14";

/** What needs no more than the language, or has a server that `serve` made. */
const NEED_NOTHING = ["ActivationError", "drain", "formatAddress", "formatDescriptor", "pick"];

test("an older Bun gets the same clear error from every function", () => {
  const environment = {
    ...process.env,
    MAKEFLAGS: "",
    NOTIFY_SOCKET: "/run/none",
    LISTEN_FDS: "1",
  };
  const bun = join(ROOT, `node_modules/.bun-${OLD}`);
  const make = Bun.spawnSync(["make", "--silent", bun.slice(ROOT.length + 1)], {
    cwd: ROOT,
    env: environment,
    stderr: "inherit",
  });
  expect(make.exitCode).toBe(0);

  const names = Object.entries(activation)
    .filter(([name, value]) => typeof value === "function" && !NEED_NOTHING.includes(name))
    .map(([name]) => name);
  expect(names.length).toBeGreaterThan(14);

  using directory = scratch();
  const program = join(directory.path, "old.ts");
  writeFileSync(
    program,
    `import * as activation from ${JSON.stringify(join(ROOT, "src/activation/index.ts"))};
    const numbers = { describe: 3, notifyBarrier: 100 };
    const answers = {};
    for (const name of ${JSON.stringify(names)})
      try {
        answers[name] = await activation[name](numbers[name] ?? { ready: true });
      } catch (error) {
        answers[name] = \`\${error.name} \${error.status} \${error.message}\`;
      }
    console.log(JSON.stringify(answers));`,
  );
  const { stdout, stderr } = Bun.spawnSync([bun, program], { env: environment });
  expect(stderr.toString()).toBe("");
  const error = `ActivationError 71 Bun ${OLD} is too old for socket-service/activation: use Bun 1.4.0 or newer`;
  expect(JSON.parse(stdout.toString())).toEqual(
    Object.fromEntries(names.map((name) => [name, error])),
  );
});

test("package.json says the same", () => {
  expect(own).toMatchObject({ engines: { bun: ">=1.4.0" }, os: ["linux"], cpu: ["x64", "arm64"] });
});
