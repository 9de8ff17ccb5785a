/**
 * Several processes that share the work, in the two ways of the module's README: how evenly they share
 * connections, what they answer on two cores, and how long clients wait while one after the other
 * restarts.
 */
import { join } from "node:path";

import { programs, ROOT, units } from "../package/programs.ts";
import { README } from "../package/reference.ts";
import type { Tally } from "../system/http.ts";
import { BUN, CHECKOUT, type Machine } from "../system/machine.ts";
import { find, turns } from "./contenders.ts";
import type { Recorder } from "./figures.ts";

const PORT = 4100;

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
  await machine.must("install", "-d", "/srv/programs/node_modules");
  await machine.must("ln", "-sfn", CHECKOUT, "/srv/programs/node_modules/socket-service");
  await machine.must("systemctl", "daemon-reload");
  const names = Array.from({ length: count }, (_, i) => `web@${i + 1}`);
  const sockets = way === "web.socket" ? [way] : names.map((name) => `${name}.socket`);
  await machine.must("systemctl", "start", ...sockets, ...names.map((name) => `${name}.service`));
  return {
    async [Symbol.asyncDispose]() {
      await machine.must("systemctl", "stop", "web*.socket", "web@*.service");
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
  const client = machine.client(join(ROOT, "test/system/http.ts"), ...[PORT, ...args].map(String));
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
    await machine.must("systemctl", "restart", `web@${1 + (i % 2)}.service`);
  }
}

/** A program whose connections serve one request each. */
export const closing = (program: string) =>
  program.replace("argv[2])", 'argv[2], { headers: { Connection: "close" } })');

/** A program whose every answer takes a millisecond of a processor. */
const computing = (program: string) =>
  program
    .replace(
      "fetch: () =>",
      "fetch: (request, server, end = performance.now() + 1) => { while (performance.now() < end); return",
    )
    .replace("argv[2]),\n", "argv[2]); },\n");

/** Where the figures are: a metric for each way, and a row for each of these. */
export const SHARING = "several processes";
export const BURST = { total: 200, connections: 200, row: "of 200 at once, with the first" };
export const SINGLE = { total: 400, connections: 1, row: "of 400 one by one, with the first" };
/** The clients' connections, their longest pause in milliseconds, and what the program changes. */
export const KINDS = [
  ["kept, no pause", 0],
  ["kept", 200],
  ["new", 200, closing],
] as const;
export const rateOf = (what: string, count: number): string => `${what}, ${count}: requests/s`;

/** Both ways, so many times: `rolls` restarts of each instance, and throughput if there is wrk. */
export async function severalProcesses(
  machine: Machine,
  { rounds, rolls }: { rounds: number; rolls: number },
  record: Recorder,
): Promise<void> {
  for (const way of WAYS) {
    const note = (row: string, value: number): void => record(SHARING, way, row, value);
    {
      await using _ = await instances(machine, way, 2, closing);
      for (let round = 0; round < rounds; round++)
        for (const { total, connections, row } of [BURST, SINGLE])
          note(row, (await ask(machine, [total, connections])).answers["1"] ?? 0);
    }
    for (const [what, pause, change] of KINDS) {
      await using _ = await instances(machine, way, 2, change);
      const args = [10_000, 64, pause];
      const still = await ask(machine, args, () => Bun.sleep(rolls * 800));
      const rolled = await ask(machine, args, () => roll(machine, rolls, pause));
      note(`${what}: longest wait ms`, still.longest);
      note(`${what}, restarts: longest wait ms`, rolled.longest);
      note(`${what}, restarts: answered`, rolled.answered);
      const lost = Object.values(rolled.lost).reduce((sum, one) => sum + one, 0);
      note(`${what}, restarts: lost`, lost);
    }
  }
  if (find("wrk") === undefined) return;
  const cases = (["Hello", "1 ms"] as const).flatMap((what) =>
    WAYS.flatMap((way) => [1, 2].map((count) => ({ what, way, count }))),
  );
  for (let round = 0; round < rounds; round++)
    for (const { what, way, count } of turns(cases, round)) {
      await using _ = await instances(machine, way, count, what === "1 ms" ? computing : undefined);
      const load = ["-t1", "-c64", "-d2s", `http://127.0.0.1:${PORT}/`];
      const rate = /^Requests\/sec: *([\d.]+)/m.exec(await machine.must("wrk", ...load))?.[1];
      record(SHARING, way, rateOf(what, count), Number(rate));
    }
}
