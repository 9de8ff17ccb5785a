/**
 * HTTP under restarts: clients keep their connections and pause between requests, while systemd
 * restarts the service again and again. Compares `drain` with ends that a program has without it.
 */
import type { Machine } from "../support/machine.ts";
import { type Load, restarts, type Result } from "../support/restarts.ts";
import type { Recorder } from "./figures.ts";

export type End = Load["end"];
const OF_A_PROGRAM = ["drain", "server.stop()", "process.exit()"] as const;
export const ENDS_OF_ALL: readonly End[] = [...OF_A_PROGRAM, "proxyd", "Go Shutdown"];

/** Connections, the longest pause in milliseconds, and who is compared. */
const LOADS: readonly (readonly [connections: number, pause: number, ends: readonly End[]])[] = [
  [64, 0, ENDS_OF_ALL],
  [64, 200, ENDS_OF_ALL],
  [256, 0, OF_A_PROGRAM],
  [256, 200, OF_A_PROGRAM],
  [64, 1000, OF_A_PROGRAM],
  [256, 1000, OF_A_PROGRAM],
];

/** In milliseconds: pauses with which 100,000 requests take minutes. */
const PATIENT = 1000;

export function restartsGroup(connections: number, pause: number): string {
  const words = pause === 0 ? "no pause" : pause < 1000 ? `to ${pause} ms` : `to ${pause / 1000} s`;
  return `restarts, ${connections}, ${words}`;
}
/** The groups of the figures. */
export const RESTARTS = LOADS.map(([connections, pause]) => restartsGroup(connections, pause));

/** How much longer `drain` is measured without a pause: a loss of one in 100,000 is to be seen. */
const LONGER = { restarts: 5, requests: 9 };

/**
 * Every load with each of its ends that `ends` has: `restarts` restarts, and with `drain` at least
 * `requests` requests, without a pause ten times as many. The losses of the others are those of the
 * restarts, however long they go on.
 */
export async function allRestarts(
  machine: Machine,
  { go, ends, ...least }: Pick<Load, "go" | "restarts" | "requests"> & { ends: readonly End[] },
  record: Recorder,
): Promise<void> {
  let port = 4100;
  const measure = (
    connections: number,
    pause: number,
    end: End,
    requests: number,
    times = least.restarts,
  ) => {
    const grace = pause < PATIENT ? 1000 : 1500;
    const load = { restarts: times, end, connections, pause, grace, requests, port: port++ };
    return restarts(machine, { ...load, ...(go && { go }) });
  };
  const note = (
    connections: number,
    pause: number,
    end: End,
    of: Result,
    kind: "all" | "losses only",
  ) => {
    const add = (metric: string, value: number) =>
      record(restartsGroup(connections, pause), metric, end, value);
    const lost = (kinds: readonly string[]) =>
      kinds.reduce((sum, kind) => sum + (of.lost[kind] ?? 0), 0);
    add("requests lost", lost(Object.keys(of.lost)));
    add("of them reset", lost(["ECONNRESET", "EPIPE"]));
    add("answered", of.answered);
    if (kind === "losses only") return;
    add("longest wait ms", of.longest);
    // Only a program that notifies systemd says when it has started.
    if (of.status !== "") add("next start ms", of.start);
  };
  for (const [connections, pause, all] of LOADS)
    for (const end of all.filter((end) => ends.includes(end))) {
      const requests = end === "drain" && pause < PATIENT ? least.requests : 0;
      note(connections, pause, end, await measure(connections, pause, end, requests), "all");
    }
  for (const [connections, pause] of LOADS.filter(([, pause]) => pause === 0)) {
    const [times, requests] = [least.restarts * LONGER.restarts, least.requests * LONGER.requests];
    const result = await measure(connections, pause, "drain", requests, times);
    note(connections, pause, "drain", result, "losses only");
  }
  // The clients mostly wait, and 64 of them would take thirteen minutes for all requests: four loads
  // share those, and run beside the one of 256 clients. A wait then holds the restarts of the others.
  const patient = LOADS.filter(([, pause]) => pause >= PATIENT);
  await Promise.all(
    patient.flatMap(([connections, pause]) => {
      const loads = Math.ceil(256 / connections);
      return Array.from({ length: loads }, async () => {
        const result = await measure(connections, pause, "drain", least.requests / loads);
        note(connections, pause, "drain", result, "losses only");
      });
    }),
  );
}
