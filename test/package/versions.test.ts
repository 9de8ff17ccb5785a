/* The module refuses a Bun that is too old. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";

import own from "../../package.json" with { type: "json" };
import { scratch } from "../support/daemon.ts";
import { ROOT } from "../support/pages.ts";
import { must } from "../support/project.ts";

setDefaultTimeout(120_000);

/** The last that is too old. */
const OLD = "1.3.14";

test("an older Bun gets a clear error from the import of the module", () => {
  const bun = join(ROOT, `node_modules/.bun-${OLD}`);
  must(["make", "--silent", bun.slice(ROOT.length + 1)]);
  using directory = scratch();
  const program = join(directory.path, "old.ts");
  const module = JSON.stringify(join(ROOT, "src/activation/index.ts"));
  writeFileSync(
    program,
    `await import(${module}).catch(({ name, status, message }) => console.log(name, status, message));`,
  );
  const env = { ...process.env, NOTIFY_SOCKET: "/run/none", LISTEN_FDS: "1" };
  const { stdout, stderr } = Bun.spawnSync([bun, program], { env });
  expect([stdout.toString(), stderr.toString()]).toEqual([
    `ActivationError 71 Bun ${OLD} is too old for socket-service/activation: use Bun 1.4.0 or newer\n`,
    "",
  ]);
});

test("package.json requires the same version of Bun", () => {
  expect(own).toMatchObject({ engines: { bun: ">=1.4.0" }, os: ["linux"], cpu: ["x64", "arm64"] });
});
