import { expect, test } from "bun:test";
import { mkdirSync, readFileSync, symlinkSync } from "node:fs";
import { join, resolve } from "node:path";

import { activate, Client, freePort, scratch } from "../support/daemon.ts";

const ROOT = resolve(import.meta.dir, "../..");

test("the service in the README compiles and runs as it stands", async () => {
  const readme = readFileSync(join(ROOT, "README.md"), "utf8");
  const program = /<!-- example: echo -->\s*```ts\n([^]*?)```/.exec(readme)?.[1] ?? "";
  expect(program).not.toBe("");
  using directory = scratch();
  mkdirSync(join(directory.path, "node_modules"));
  symlinkSync(ROOT, join(directory.path, "node_modules/socket-service"));
  const source = join(directory.path, "echo.ts");
  const executable = join(directory.path, "echo");
  await Bun.write(source, program);
  const build = Bun.spawn(
    [process.execPath, "build", "--compile", source, "--outfile", executable],
    {
      cwd: directory.path,
      stdout: "ignore",
    },
  );
  expect(await build.exited).toBe(0);

  const port = freePort();
  await using service = await activate(executable, { flags: ["--fdname=echo"], listen: [port] });
  const client = await Client.connect(port);
  client.send("Hello\n");
  client.finish();
  expect(await client.received()).toBe("Welcome to echo\nHello\n");
  expect(service.stderr).not.toContain("error");
});
