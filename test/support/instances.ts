/* Several processes that share the work, in the two ways of the module's README. */
import { join } from "node:path";

import type { Tally } from "./http.ts";
import { BUN, linkModule, type Machine } from "./machine.ts";
import { programs, README, ROOT, units } from "./pages.ts";

export const PORT = 4100;

/** The two ways, by the README's socket unit. */
export const WAYS = ["web.socket", "web@.socket"] as const;
export type Way = (typeof WAYS)[number];

/**
 * Starts instances of http.ts with the README's units, each of which answers with its number, until it is
 * disposed of.
 */
export async function instances(
  machine: Machine,
  way: Way,
  count: number,
  change: (program: string) => string = (program) => program,
): Promise<AsyncDisposable> {
  const unit = (name: string) =>
    units(README).get(name)?.replace("=127.0.0.1:4000", `=127.0.0.1:${PORT}`) ?? "";
  const start = `ExecStart=${BUN} /srv/programs/web.ts %i`;
  const service = unit("web@.service").replace(/^ExecStart=.*$/m, start);
  const alone = service
    .replace(/^(Sockets|NonBlocking)=.*\n/gm, "")
    .replaceAll("=web.socket", "=web@%i.socket");
  const program = programs(README).get("http.ts")?.replace('"Hello\\n"', "process.argv[2]") ?? "";
  const files = {
    [`/run/systemd/system/${way}`]: unit(way),
    "/run/systemd/system/web@.service": way === "web.socket" ? service : alone,
    "/srv/programs/web.ts": change(program),
  };
  for (const [path, text] of Object.entries(files)) await machine.write(path, text);
  await linkModule(machine);
  await machine.systemctl("daemon-reload");
  const names = Array.from({ length: count }, (_, i) => `web@${i + 1}`);
  const sockets = way === "web.socket" ? [way] : names.map((name) => `${name}.socket`);
  await machine.systemctl("start", ...sockets, ...names.map((name) => `${name}.service`));
  return {
    async [Symbol.asyncDispose]() {
      await machine.systemctl("stop", "web*.socket", "web@*.service");
      await machine.must("rm", ...Object.keys(files));
    },
  };
}

/** Asks with http.ts, whose arguments follow the port. Its input ends when `meanwhile` has. */
export async function ask(
  machine: Machine,
  args: readonly number[],
  meanwhile?: () => Promise<void>,
): Promise<Tally> {
  const client = machine.client(join(ROOT, "test/support/http.ts"), ...[PORT, ...args].map(String));
  const output = client.stdout.text();
  await meanwhile?.();
  await client.stdin.end();
  return JSON.parse(await output);
}

/** Restarts both instances, one after the other, so many times. */
export async function roll(machine: Machine, times: number, pause: number): Promise<void> {
  for (let i = 0; i < 2 * times; i++) {
    // Every client asks on a connection that it keeps.
    await Bun.sleep(200 + pause);
    await machine.systemctl("restart", `web@${1 + (i % 2)}.service`);
  }
}

/** A program whose connections serve one request each. */
export const closing = (program: string) =>
  program.replace("argv[2])", 'argv[2], { headers: { Connection: "close" } })');
