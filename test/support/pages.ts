import { readFileSync } from "node:fs";
import { resolve } from "node:path";

import type { ActivateOptions } from "./daemon.ts";

export const ROOT = resolve(import.meta.dir, "../..");

/** The module's two pages. In the package both are at its root, so their links to each other lead there, too. */
export const README = resolve(ROOT, "src/activation/README.md");
export const REFERENCE = resolve(ROOT, "src/activation/REFERENCE.md");

/** The programs of a README, by the file name in the comment that each begins with. */
export function programs(readme: string): Map<string, string> {
  const found = readFileSync(readme, "utf8").matchAll(/```ts\n\/\/ (\S+)\n(.*?)```/gs);
  return new Map([...found].map(([, name = "", source = ""]) => [name, source]));
}

/** The units of a README, by the file name in the comment that each begins with. */
export function units(readme: string): Map<string, string> {
  const found = readFileSync(readme, "utf8").matchAll(
    /^# (\S+\.(?:socket|service))\n(.*?)(?=^# \S+\.service\n|^```)/gms,
  );
  return new Map([...found].map(([, name = "", text = ""]) => [name, text.trimEnd()]));
}

/** The further lines that a README has for a unit, by its name. */
export function furtherLines(readme: string): Map<string, string> {
  const found = readFileSync(readme, "utf8").matchAll(
    /^# (\S+), further lines\n(.*?)(?=^# |^```)/gms,
  );
  return new Map([...found].map(([, name = "", text = ""]) => [name, text.trimEnd()]));
}

/** Returns the command of a README that starts a program under systemd-socket-activate, on these ports. */
export function activation(
  readme: string,
  program: string,
  ports: readonly number[],
): ActivateOptions & { readonly args: readonly string[] } {
  const found = readFileSync(readme, "utf8").matchAll(
    /^ {4}systemd-socket-activate (.*) bun (.*)$/gm,
  );
  const [, before = "", after = ""] =
    [...found].find(([, , run = ""]) => run.split(" ").at(-1) === program) ?? [];
  const others = [...ports];
  const listen: string[] = [];
  const flags = before.replace(/-l (\S*?)\d+(?: |$)/g, (_, host) => {
    listen.push(`${host}${others.shift()}`);
    return "";
  });
  return { listen, flags: flags.split(" ").filter(Boolean), args: after.split(" ") };
}
