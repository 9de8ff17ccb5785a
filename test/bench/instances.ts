/**
 * Several processes that share the work, in the two ways of the module's README: how evenly they share
 * connections, what they answer on two cores, and how long clients wait while one after the other
 * restarts.
 */
import { ask, closing, instances, PORT, roll, WAYS } from "../support/instances.ts";
import type { Machine } from "../support/machine.ts";
import { find, turns } from "./contenders.ts";
import type { Recorder } from "./figures.ts";

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
