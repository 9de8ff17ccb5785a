import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { scratch } from "./daemon.ts";
import { ROOT } from "./pages.ts";

/** A directory with these files, whose programs find this checkout as `socket-service`, until the test is over. */
export function project(files: Readonly<Record<string, string>> = {}): ReturnType<typeof scratch> {
  const directory = scratch();
  for (const [name, text] of Object.entries(files)) writeFileSync(join(directory.path, name), text);
  linkModule(directory.path);
  return directory;
}

/** A program in a directory of its own, where it finds this checkout as `socket-service`. */
export function program(source: string): { path: string } & Disposable {
  const directory = project({ "program.ts": source });
  const path = join(directory.path, "program.ts");
  return { path, [Symbol.dispose]: () => directory[Symbol.dispose]() };
}

/** Has the programs of a directory find this checkout as `socket-service`. */
export function linkModule(directory: string): void {
  mkdirSync(join(directory, "node_modules"), { recursive: true });
  symlinkSync(ROOT, join(directory, "node_modules/socket-service"));
}

/** Runs a command to its end, and returns its output. If it fails, the error has all that it said. */
export function must(
  command: readonly string[],
  {
    cwd = ROOT,
    env = {},
  }: { cwd?: string; env?: Readonly<Record<string, string | undefined>> } = {},
): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command], {
    cwd,
    // The tests may run under `make test`, whose job server is not theirs.
    env: { ...process.env, MAKEFLAGS: "", ...env },
  });
  if (exitCode !== 0) throw new Error(`${command.join(" ")}: ${stdout}${stderr}`);
  return stdout.toString();
}
