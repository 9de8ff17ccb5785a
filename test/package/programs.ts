import { readFileSync } from "node:fs";
import { resolve } from "node:path";

export const ROOT = resolve(import.meta.dir, "../..");

/** The programs of a README, by the file name in the comment that each begins with. */
export function programs(readme: string): Map<string, string> {
  const found = readFileSync(readme, "utf8").matchAll(/```ts\n\/\/ (\S+)\n(.*?)```/gs);
  return new Map([...found].map(([, name = "", source = ""]) => [name, source]));
}
