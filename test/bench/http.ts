/** HTTP: `serve` on a passed socket beside `Bun.serve` on a port of its own, and beside others. */
import { readdirSync, readFileSync } from "node:fs";
import { join, relative, resolve } from "node:path";

import { CHECKOUT, type Machine } from "../support/machine.ts";
import { build, find, ours, PROXYD, proxied, run, turns } from "./contenders.ts";
import { Stopwatch } from "./stopwatch.ts";

export const plain = "Bun.serve";

export interface HttpContender {
  readonly name: string;
  readonly command: readonly string[];
  /** It opens a port of its own and prints it, for it can be passed none. */
  readonly own?: true;
}

/** Builds into `directory` what this machine can run, where assemble() has put the rest. */
export function assembleHttp(directory: string): HttpContender[] {
  const peers = join(import.meta.dir, "peers/http");
  const bun = (name: string): string =>
    build(join(peers, `${name}.ts`), join(directory, `http-${name}`));
  const own = bun("plain");
  const contenders: HttpContender[] = [
    { name: ours, command: [bun("ours")] },
    { name: plain, command: [own], own: true },
    { name: "node:http in Bun", command: [bun("node")] },
  ];
  const proxyd = find(PROXYD);
  if (proxyd !== undefined)
    contenders.push({ name: proxied, command: [join(directory, "behind"), proxyd, own] });
  const node = find("node");
  if (node !== undefined)
    contenders.push({ name: "Node", command: [node, join(peers, "node.cjs")] });
  const go = buildGoHttp(directory);
  if (go !== undefined) contenders.push({ name: "Go", command: [go] });
  return contenders;
}

/** The program in Go, or undefined without Go. */
export function buildGoHttp(directory: string): string | undefined {
  const go = find("go");
  if (go === undefined) return undefined;
  const path = join(directory, "peer-http-go");
  const env = { ...process.env, GO111MODULE: "off", CGO_ENABLED: "0", GOFLAGS: "" };
  run([go, "build", "-o", path, join(import.meta.dir, "peers/http/http.go")], env);
  return path;
}

/** Nanoseconds of processor time of a process, all its threads. */
function clockOf(pid: number): number {
  const tasks = `/proc/${pid}/task`;
  return readdirSync(tasks)
    .map((task) => Number(readFileSync(`${tasks}/${task}/schedstat`, "utf8").split(" ")[0]))
    .reduce((sum, one) => sum + one, 0);
}

export interface Slice {
  /** Requests a second. */
  readonly rate: number;
  /** Microseconds of processor time for each. */
  readonly cpu: number;
  /** Milliseconds. */
  readonly p99: number;
}

/** A second of wrk over 64 kept connections. */
export async function slice(port: number, pids: readonly number[]): Promise<Slice> {
  const clock = (): number => pids.map(clockOf).reduce((sum, one) => sum + one, 0);
  const before = clock();
  const url = `http://127.0.0.1:${port}/`;
  const wrk = Bun.spawn([
    "wrk",
    "--threads=1",
    "--connections=64",
    "--duration=1s",
    "--latency",
    url,
  ]);
  const said = await wrk.stdout.text();
  const [, p99 = "", unit = ""] = /^ +99% +([\d.]+)(us|ms|s)$/m.exec(said) ?? [];
  const [, requests = "", rate = ""] =
    /(\d+) requests in [^]*^Requests\/sec: +([\d.]+)/m.exec(said) ?? [];
  if (rate === "" || p99 === "" || /Socket errors|Non-2xx/.test(said))
    throw new Error(`wrk: ${said}`);
  const scale = { us: 1e-3, ms: 1, s: 1e3 }[unit] ?? Number.NaN;
  const cpu = (clock() - before) / 1000 / Number(requests);
  return { rate: Number(rate), cpu, p99: Number(p99) * scale };
}

/** Cold to the first response, through a booted systemd: `record` gets milliseconds from connect(2). */
export async function httpThroughSystemd(
  machine: Machine,
  rounds: number,
  contenders: readonly HttpContender[],
  directory: string,
  record: (who: string, first: number) => void,
): Promise<void> {
  const inside = `${CHECKOUT}/${relative(resolve(import.meta.dir, "../.."), directory)}`;
  const peers = resolve(import.meta.dir, "../..");
  const units = contenders
    .filter(({ own }) => own === undefined)
    .map(({ name, command }, i) => {
      const program = command.join(" ").replaceAll(directory, inside).replaceAll(peers, CHECKOUT);
      return { name, program, unit: `bench-http-${i}`, port: 6000 + i };
    });
  for (const { unit, port, program } of units) {
    const at = `/run/systemd/system/${unit}`;
    // They start more often than systemd allows by default.
    const socket = `ListenStream=127.0.0.1:${port}\nTriggerLimitIntervalSec=0`;
    await machine.write(`${at}.socket`, `[Socket]\n${socket}\n`);
    const service = `[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=${program}\n`;
    await machine.write(`${at}.service`, service);
  }
  await machine.must("systemctl", "daemon-reload");
  await machine.must("systemctl", "start", ...units.map(({ unit }) => `${unit}.socket`));
  await using stopwatch = new Stopwatch(machine);
  for (let round = -1; round < rounds; round++)
    for (const { name, port, unit } of turns(units, round)) {
      const { first } = await stopwatch.time(port, true);
      if (round >= 0) record(name, first);
      await machine.must("systemctl", "stop", `${unit}.service`);
    }
}
