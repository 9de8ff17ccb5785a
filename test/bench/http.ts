/**
 * HTTP: `serve` on a passed socket beside `Bun.serve` on its own port, programs that are run unchanged by
 * the preload beside the same programs on their own ports, and peers.
 */
import { copyFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative, resolve } from "node:path";

import { CHECKOUT, type Machine } from "../support/machine.ts";
import { build, find, ours, PROXYD, proxied, run, turns } from "./contenders.ts";
import { Stopwatch } from "./stopwatch.ts";

/** Programs that know nothing of systemd, each on its own port. */
export const UNCHANGED = ["Bun.serve", "node:http", "Express"] as const;
export const plain = UNCHANGED[0];
/** A program with `serve` that is not compiled, as those with the preload are not. */
export const source = "uncompiled serve";
/** The name of such a program that the preload has given the passed socket. */
export const preloaded = (program: string): string => `${program} with preload`;

export interface HttpContender {
  readonly name: string;
  readonly command: readonly string[];
  /** Whether it opens its own port and prints it, instead of taking the passed socket. */
  readonly own?: boolean;
}

/**
 * Builds into `directory`, in which assemble() has put the rest, everything that this machine can run.
 *
 * @throws {Error} if Express cannot be installed, or a program does not build.
 */
export function assembleHttp(directory: string): HttpContender[] {
  const peers = join(import.meta.dir, "peers/http");
  const express = join(directory, "express");
  mkdirSync(express);
  writeFileSync(join(express, "package.json"), "{}");
  copyFileSync(join(peers, "express.mjs"), join(express, "express.mjs"));
  const add = ["add", "--ignore-scripts", "--silent", "express@5.3.0"];
  run([process.execPath, ...add], { cwd: express });

  const register = join(import.meta.dir, "../../dist/register.js");
  const preload = [process.execPath, "--no-install", "--preload", register];
  const unchanged = (name: string, program: string): HttpContender[] => [
    { name, command: [process.execPath, program], own: true },
    // Any port but 0 is the passed socket's.
    { name: preloaded(name), command: [...preload, program, "3000"] },
  ];
  const contenders: HttpContender[] = [
    { name: ours, command: [build(join(peers, "ours.ts"), join(directory, "http-ours"))] },
    { name: source, command: [process.execPath, join(peers, "ours.ts")] },
    ...unchanged(plain, join(peers, "plain.ts")),
    ...unchanged(UNCHANGED[1], join(peers, "node.ts")),
    ...unchanged(UNCHANGED[2], join(express, "express.mjs")),
  ];
  const proxyd = find(PROXYD);
  if (proxyd !== undefined) {
    const own = build(join(peers, "plain.ts"), join(directory, "http-plain"));
    contenders.push({ name: proxied, command: [join(directory, "behind"), proxyd, own] });
  }
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
  run([go, "build", "-o", path, join(import.meta.dir, "peers/http/http.go")], { env });
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
    .filter(({ own = false }) => !own)
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
