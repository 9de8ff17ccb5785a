/**
 * Measures the services and their peers in one run, in turn, so that noise hits all alike, and
 * prints one table: ratios first, then the figures.
 *
 *   bun test/bench/run.ts [--quick] [--only 1,3] [--json FILE]
 *
 * Every sample is in FILE (dist/bench/results.json) afterwards.
 *
 * Parts: 1 cold activation, 2 the same through a booted systemd, 3 warm throughput, 4 a process per
 * connection, 5 memory, 6 size and build time, 7 HTTP, 8 HTTP under restarts, 9 several processes,
 * 10 the sandbox. Parts 2, 8, 9, 10 and some of 7 boot a systemd, for which root is needed.
 * `--quick` is for trying things out: few minutes, and too few runs to quote.
 */
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { cpus, release, totalmem } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";

import {
  able,
  assemble,
  build,
  bunFloor,
  type Contender,
  type Field,
  greetings,
  ours,
  find,
  PROXYD,
  proxied,
  services,
  turns,
  type Style,
  styles,
} from "./contenders.ts";
import { lines } from "../support/lines.ts";
import type { Results } from "./draw.ts";
import { columns, Figures, ratio, show, tables } from "./figures.ts";
import {
  assembleHttp,
  buildGoHttp,
  type HttpContender,
  httpThroughSystemd,
  plain,
  preloaded,
  slice as wrk,
  source,
  UNCHANGED,
} from "./http.ts";
import { ALL, NONE, sandboxes, sandboxGroup } from "./hardening.ts";
import { severalProcesses } from "./instances.ts";
import { CHECKOUT, Machine, ROOT } from "../support/machine.ts";
import { allRestarts, ENDS_OF_ALL, RESTARTS, restartsGroup } from "./restarts.ts";
import { throughSystemd } from "./systemd.ts";

// Here, and not with temporary files, for the booted systemd: it sees this checkout, but not those.
const dist = join(import.meta.dir, "../../dist");
const { values: options } = parseArgs({
  options: {
    quick: { type: "boolean", default: false },
    only: { type: "string", default: "1,2,3,4,5,6,7,8,9,10" },
    json: { type: "string", default: join(dist, "bench/results.json") },
  },
});
const parts = new Set(options.only.split(",").map(Number));
const pick = (full: number, quick: number): number => (options.quick ? quick : full);

mkdirSync(dist, { recursive: true });
const directory = mkdtempSync(join(dist, "bench-"));
chmodSync(directory, 0o755);
process.on("exit", () => rmSync(directory, { recursive: true, force: true }));
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(1));

const figures = new Figures();
const notes: string[] = [];

/** Boots a systemd for a part. If none can be, a note says why. */
async function boot(what: string, files = "/"): Promise<Machine | undefined> {
  const obstacle = await Machine.obstacle({ files });
  if (obstacle === undefined) return Machine.boot({ files });
  notes.push(`${what}: ${obstacle}`);
  return undefined;
}

/** The activator, and the lines it answers with. Its servers end with it, and it with us. */
class Activator {
  readonly #process;
  readonly #answers;

  constructor(program: string) {
    this.#process = Bun.spawn([program], { stdin: "pipe", stdout: "pipe", stderr: "inherit" });
    this.#answers = lines(this.#process.stdout);
  }

  /** @throws {Error} when the activator ends instead of answering. */
  async ask(...words: (string | number)[]): Promise<string> {
    this.#process.stdin.write(`${words.join(" ")}\n`);
    await this.#process.stdin.flush();
    const { value } = await this.#answers.next();
    if (value === undefined) throw new Error(`the activator gave up on: ${words.join(" ")}`);
    return value;
  }

  async end(): Promise<void> {
    await this.#process.stdin.end();
    await this.#process.exited;
  }
}

const numbers = (answer: string): number[] => answer.split(" ").map(Number);

/** 1. From the client's connect(2), which starts the program, to what the client sees. */
async function cold(activator: Activator, { contenders, files }: Field): Promise<void> {
  await activator.ask("refresh", ...files);
  const all = styles.flatMap((style) => able(contenders, style).map((one) => ({ style, ...one })));
  for (let round = -2; round < pick(150, 5); round++)
    for (const { style, name, command } of turns(all, round)) {
      const [first, end, exit, cpu, ...text] = (
        await activator.ask("cold", style, ...command(style))
      ).split(" ");
      if (text.join(" ") !== greetings[style])
        throw new Error(`${name}, ${style}: the client received "${text.join(" ")}"`);
      if (round < 0) continue; // the page cache fills
      const record = (metric: string, microseconds = ""): void =>
        figures.record(`cold, ${services[style]}`, metric, name, Number(microseconds) / 1000);
      record("first byte ms", first);
      record("end of file ms", end);
      if (style !== "listen") record("exit ms", exit);
      record("processor ms", cpu);
    }
}

/** Of the systemds: "" for this machine's own, " 257" for another root's. */
const versions = new Set([""]);
const systemdGroup = (style: Style, hardened: boolean, version = ""): string =>
  `through systemd${version}${hardened ? ", hardened" : ""}, ${services[style]}`;

/**
 * 2. The same through a booted systemd with the installed units, C in the same units beside ours. With
 * ROOT, through the systemd of that root as well.
 */
async function systemd(activator: Activator, { contenders, files }: Field): Promise<void> {
  await activator.ask("refresh", ...files);
  const both = contenders.filter(({ name }) => name === ours || name === "C");
  for (const root of new Set(["/", ROOT])) {
    await using machine = await boot(`through systemd, ${root}`, root);
    if (machine === undefined) continue;
    const version = root === "/" ? "" : ` ${machine.systemd}`;
    versions.add(version);
    await throughSystemd(machine, pick(100, 4), both, directory, (of) => {
      const group = systemdGroup(of.style, of.hardened, version);
      figures.record(group, "first byte ms", of.who, of.first);
      figures.record(group, "end of file ms", of.who, of.end);
    });
  }
}

interface Server extends Contender {
  readonly pids: readonly number[];
  readonly port: number;
}

/** Whom the activator has started. */
function serverOf(name: string, answer: string): Pick<Server, "pids" | "port"> {
  const [pid = 0, port = 0] = numbers(answer);
  if (name !== proxied) return { pids: [pid], port };
  // What stands in front and what is behind it are two, below a third that only waits.
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8");
  return { pids: numbers(children.trim()), port };
}

/** Starts the listening service of each contender; `stop` ends them all. */
async function serve(activator: Activator, { contenders }: Field): Promise<Server[]> {
  const servers: Server[] = [];
  for (const contender of able(contenders, "listen")) {
    const forEver = contender.name === ours ? ["--idle-timeout=infinity"] : [];
    const answer = await activator.ask(
      "start",
      "listen",
      ...contender.command("listen"),
      ...forEver,
    );
    servers.push({ ...contender, ...serverOf(contender.name, answer) });
  }
  return servers;
}

/**
 * @returns Elapsed and the server's processor time in microseconds, how busy the clients were, and how
 *   many connections were served: ours serves all.
 */
async function slice(program: string, { name, pids, port }: Server, clients: number, n: number) {
  const load = Bun.spawn([program, ...[port, clients, n, ...pids].map(String)], {
    stderr: "inherit",
  });
  const answer = await load.stdout.text();
  const [elapsed = 0, own = 0, cpu = 0, errors = -1, loops = 1] = numbers(answer);
  if (errors < 0 || (errors > 0 && name === ours))
    throw new Error(`${name}: ${errors} of ${n} connections failed`);
  return { elapsed, busy: own / elapsed / loops, cpu, served: n - errors };
}

const warmGroup = (clients: number): string => `warm, ${clients} at a time`;

/** 3. Connections a second, and what each costs. */
async function warm(activator: Activator, field: Field): Promise<void> {
  const servers = await serve(activator, field);
  for (const clients of [64, 1, 1024]) {
    const group = warmGroup(clients);
    const sizes = new Map<string, number>();
    for (let round = -1; round < pick(10, 2); round++)
      for (const server of turns(servers, round)) {
        // The first slice is not counted: compilers warm up. It tells how many take a second, which
        // is enough for the slower ones.
        const size = sizes.get(server.name) ?? pick(4_000, 1_000);
        const { elapsed, busy, cpu, served } = await slice(field.load, server, clients, size);
        const most = pick(20_000, 2_000);
        if (round < 0) {
          const aSecond = Math.ceil((size / elapsed) * 1e6);
          sizes.set(server.name, server.name === ours ? most : Math.min(aSecond, most));
          continue;
        }
        figures.record(group, "connections/s", server.name, (served / elapsed) * 1e6);
        figures.record(group, "processor us/connection", server.name, cpu / served);
        figures.record(group, "generator busy %", server.name, busy * 100);
        figures.record(group, "failed", server.name, size - served);
      }
  }
  await activator.ask("stop");
}

/** 4. A process for each connection, four at a time. */
async function perConnection(activator: Activator, { contenders, files }: Field): Promise<void> {
  await activator.ask("refresh", ...files);
  const n = pick(100, 20);
  for (let round = 0; round < pick(6, 1); round++)
    for (const style of styles.filter((style) => style !== "listen"))
      for (const { name, command } of turns(able(contenders, style), round)) {
        const answer = await activator.ask("storm", style, n, 4, ...command(style));
        const [elapsed = 0, cpu = 0, failures = -1] = numbers(answer);
        if (failures !== 0) throw new Error(`${name}: ${failures} of ${n} activations failed`);
        const group = `a process per connection, ${services[style]}`;
        figures.record(group, "activations/s", name, (n / elapsed) * 1e6);
        figures.record(group, "processor ms/activation", name, cpu / n / 1000);
      }
}

const MiB = 1024;
const memoryGroup = "memory, socket-service";

/** Mebibytes of a process. */
interface Memory {
  /** What it alone wrote to. */
  readonly own: number;
  readonly resident: number;
  /** Its share of what is resident. */
  readonly share: number;
}

const sum = (all: readonly Memory[], of: keyof Memory): number =>
  all.reduce((total, one) => total + one[of], 0);

function memory(pid: number): Memory {
  const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, "utf8");
  const field = (name: string): number =>
    Number(new RegExp(`^${name}: +(\\d+) kB`, "m").exec(rollup)?.[1]) / MiB;
  return { own: field("Anonymous"), resident: field("Rss"), share: field("Pss") };
}

/** 5. Private and shared memory of the listener in four states, and of a hundred processes. */
async function memories(activator: Activator, field: Field): Promise<void> {
  const servers = await serve(activator, field);
  const settle = pick(10_000, 1_000);
  const record = (state: string, { name, pids }: Server): void => {
    const all = pids.map(memory);
    const [own, resident] = [sum(all, "own"), sum(all, "resident")];
    figures.record(memoryGroup, `${state}: private MiB`, name, own);
    if (state === "idle") figures.record(memoryGroup, "shared MiB", name, resident - own);
  };
  await Bun.sleep(pick(2_000, 500));
  for (const server of servers) record("idle", server);
  // As many for the others as fit into the time that the slower ones are given.
  for (const server of servers)
    for (let done = 0, began = performance.now(); done < pick(200_000, 20_000); done += 10_000)
      if (server.name === ours || performance.now() - began < pick(10_000, 500))
        await slice(field.load, server, 64, 10_000);
  await Bun.sleep(settle);
  for (const server of servers) record("10 s after 200,000", server);
  const clients = pick(10_000, 1_000);
  for (const server of servers) {
    const load = Bun.spawn([field.load, `${server.port}`, `${clients}`, "hold"], {
      stdin: "pipe",
      stderr: "inherit",
    });
    const { value } = await lines(load.stdout).next();
    if (Number(value) !== clients)
      throw new Error(`${server.name}: not all of ${clients} clients were greeted`);
    record("10,000 open", server);
    load.stdin.write("\n");
    await load.stdin.end();
    await load.exited;
  }
  await Bun.sleep(settle);
  for (const server of servers) record("10 s after those", server);
  await activator.ask("stop");

  const group = "memory, 100 of socket-service-accepted at once";
  for (const { name, command } of able(field.contenders, "accepted")) {
    const pids = numbers(await activator.ask("hold", "accepted", 100, ...command("accepted")));
    const all = pids.map(memory);
    figures.record(group, "private MiB, each", name, sum(all, "own") / pids.length);
    figures.record(group, "MiB, all together", name, sum(all, "share"));
    await activator.ask("stop");
  }
}

/** 6. What is added to the runtime, and how long it takes. */
function sizes(): void {
  const group = "executable";
  const runtime = statSync(process.execPath).size;
  for (const [style, name] of Object.entries(services)) {
    const { size } = statSync(join(directory, name));
    figures.record(group, "MiB", name, size / MiB / MiB);
    figures.record(group, "over the runtime", name, size / runtime);
    const source = join(import.meta.dir, "../../src/daemons", `${name}.ts`);
    for (let i = 0; i < pick(5, 1); i++) {
      const began = performance.now();
      build(source, join(directory, `again-${style}`));
      figures.record(group, "build s", name, (performance.now() - began) / 1000);
    }
  }
  figures.record(group, "MiB", "the runtime", runtime / MiB / MiB);
}

const httpGroup = "HTTP, 64 kept connections";
const coldHttp = "HTTP, cold";

/** 7. HTTP: cold to the first response, and requests over kept connections. */
async function http(activator: Activator): Promise<void> {
  const contenders = assembleHttp(directory);
  const passed = contenders.filter(({ own = false }) => !own);
  const files = contenders.flatMap(({ command }) => command.filter((word) => word.startsWith("/")));
  await activator.ask("refresh", ...new Set(files));
  for (let round = -2; round < pick(60, 5); round++)
    for (const { name, command } of turns(passed, round)) {
      const [first, , , cpu, text] = (await activator.ask("cold", "http", ...command)).split(" ");
      if (text !== "Hello") throw new Error(`${name}: the response was "${text}"`);
      if (round < 0) continue;
      figures.record(coldHttp, "first response ms", name, Number(first) / 1000);
      figures.record(coldHttp, "processor ms", name, Number(cpu) / 1000);
    }
  {
    // This machine's own files, whatever ROOT is: another root has not all of the programs.
    await using machine = await boot("HTTP through systemd");
    if (machine !== undefined)
      await httpThroughSystemd(machine, pick(40, 3), contenders, directory, (who, first) =>
        figures.record(`${coldHttp}, through systemd`, "first response ms", who, first),
      );
  }

  if (find("wrk") === undefined)
    return void notes.push("requests a second: wrk is not installed (Debian package wrk)");
  await using stack = new AsyncDisposableStack();
  const servers: (HttpContender & Pick<Server, "pids" | "port">)[] = [];
  for (const contender of contenders)
    if (contender.own) {
      const started = Bun.spawn([...contender.command], { stdout: "pipe" });
      stack.defer(async () => {
        started.kill();
        await started.exited;
      });
      const port = Number((await lines(started.stdout).next()).value);
      servers.push({ ...contender, pids: [started.pid], port });
    } else {
      const answer = await activator.ask("start", "http", ...contender.command);
      servers.push({ ...contender, ...serverOf(contender.name, answer) });
    }
  for (let round = -1; round < pick(24, 3); round++)
    for (const { name, pids, port } of turns(servers, round)) {
      const { rate, cpu, p99 } = await wrk(port, pids);
      if (round < 0) continue; // compilers warm up
      figures.record(httpGroup, "requests/s", name, rate);
      figures.record(httpGroup, "processor us/request", name, cpu);
      figures.record(httpGroup, "99th percentile ms", name, p99);
    }
  await activator.ask("stop");
}

/** 8. What HTTP clients lose, and how long they wait, while systemd restarts the service 12 times. */
async function underRestarts(): Promise<void> {
  await using machine = await boot("restarts");
  if (machine === undefined) return;
  const go = buildGoHttp(directory)?.replace(join(dist, ".."), CHECKOUT);
  const hasProxyd = find(PROXYD) !== undefined;
  const ends = ENDS_OF_ALL.filter(
    (end) => !(end === "Go Shutdown" && go === undefined) && !(end === "proxyd" && !hasProxyd),
  );
  const size = { ends, restarts: pick(12, 2), requests: pick(100_000, 1_000) };
  await allRestarts(machine, { ...size, ...(go && { go }) }, figures.record);
}

/** 9. Instances of one service, with one socket or with one for each. */
async function instances(): Promise<void> {
  await using machine = await boot("several processes");
  const size = { rounds: pick(3, 1), rolls: pick(6, 1) };
  if (machine !== undefined) await severalProcesses(machine, size, figures.record);
}

/** 10. What each group of the units' hardening costs the first connection. */
async function sandbox(): Promise<void> {
  await using machine = await boot("the sandbox");
  if (machine !== undefined) await sandboxes(machine, pick(60, 2), figures.record);
}

/** A line of the table of what the services must show. */
function claims(): string[][] {
  const rows: string[][] = [];
  const claim = (
    what: string,
    [group, metric]: [string, string],
    of: string,
    over: string,
    bound?: number,
    atLeast = false,
  ): void => {
    const [a, b] = [figures.find(group, metric, of), figures.find(group, metric, over)];
    const label = `${what}${of === ours ? "" : `: ${of}`} over ${over}`;
    if (a === undefined || b === undefined) return;
    const { value, from, to, runs } = ratio(a, b);
    const middle = runs > 1 ? `${from.toFixed(2)} - ${to.toFixed(2)}` : "";
    const row = [label, value.toFixed(2), middle, `${runs}`];
    if (bound === undefined) return void rows.push([...row, "", ""]);
    const shown = Number(value.toFixed(2));
    const met = atLeast ? shown >= bound : shown <= bound;
    const wanted = `${atLeast ? "at least" : "at most"} ${bound.toFixed(2)}`;
    rows.push([...row, wanted, met ? "yes" : "NO"]);
  };
  const within = (what: string, value: number, bound: number): void => {
    if (Number.isNaN(value)) return;
    const met = value <= bound ? "yes" : "NO";
    rows.push([what, show(value), "", "1", `at most ${bound}`, met]);
  };

  for (const style of styles)
    for (const [metric, aims] of [
      ["first byte", { Node: 0.25, Go: 2 }],
      ["end of file", {}],
    ] as const) {
      const of: [string, string] = [`cold, ${services[style]}`, `${metric} ms`];
      const what = `cold, ${metric}: ${services[style]}`;
      claim(what, of, ours, bunFloor, style === "listen" ? 1.15 : 1.05);
      for (const [over, bound] of Object.entries(aims)) claim(what, of, ours, over, bound);
      if (metric === "first byte") claim(what, of, ours, proxied);
    }
  for (const version of versions)
    for (const style of styles)
      for (const hardened of [false, true]) {
        const group = systemdGroup(style, hardened, version);
        claim(group.replace(", socket", ": socket"), [group, "first byte ms"], ours, "C", 1.4);
      }
  const busy = warmGroup(64);
  for (const [over, bound] of [
    ["C", 0.95],
    ["Go", 1.05],
    ["Node", 1.8],
    [proxied, undefined],
  ] as const)
    claim(
      `connections/s, 64 clients: ${services.listen}`,
      [busy, "connections/s"],
      ours,
      over,
      bound,
      true,
    );
  for (const [over, bound] of [
    ["C", 1.15],
    ["Go", 0.8],
    [proxied, undefined],
  ] as const)
    claim(
      `processor time per connection: ${services.listen}`,
      [busy, "processor us/connection"],
      ours,
      over,
      bound,
    );

  for (const [metric, bound, atLeast] of [
    ["requests/s", 0.98, true],
    ["processor us/request", 1.02, false],
    ["99th percentile ms", 1.05, false],
  ] as const)
    claim(`HTTP, ${metric}: serve`, [httpGroup, metric], ours, plain, bound, atLeast);
  for (const program of UNCHANGED)
    claim("HTTP, requests/s", [httpGroup, "requests/s"], preloaded(program), program, 0.97, true);
  for (const over of ["Node", "Go", proxied])
    claim("HTTP, requests/s: serve", [httpGroup, "requests/s"], ours, over);
  claim("HTTP, cold", [coldHttp, "first response ms"], preloaded(plain), source, 1.05);
  for (const group of [coldHttp, `${coldHttp}, through systemd`])
    for (const over of ["Node", "Go", proxied])
      claim(`${group}: serve`, [group, "first response ms"], ours, over);

  for (const group of RESTARTS) {
    const of = (metric: string): number =>
      figures.find(group, metric, "drain")?.samples.reduce((a, b) => a + b) ?? Number.NaN;
    within(`${group}: requests lost with drain`, of("requests lost"), 0);
    // With pauses, the wait depends on the client that happens to ask at that moment.
    const most =
      group === restartsGroup(64, 0) || group === restartsGroup(256, 0) ? 1.1 : undefined;
    claim(`${group}, wait`, [group, "longest wait ms"], "drain", "server.stop()", most);
  }
  for (const [service, exposed, slower] of [
    [services.listen, 0.5, undefined],
    [services.accepted, 1.5, 1.6],
    [services.inet, 1.5, 1.6],
  ] as const) {
    const group = sandboxGroup(service);
    claim(`${service}, sandbox`, [group, "first byte ms"], ALL, NONE, slower);
    const exposure = figures.find(group, "exposure", ALL)?.samples[0] ?? Number.NaN;
    within(`${service}: exposure, of 10`, exposure, exposed);
  }

  const held = (state: string): number =>
    figures.find(memoryGroup, `${state}: private MiB`, ours)?.samples[0] ?? Number.NaN;
  within("private memory, idle, MiB", held("idle"), 3);
  const growth = held("10 s after 200,000") - held("idle");
  within("more private memory 10 s after 200,000 connections, MiB", growth, 1);
  for (const name of Object.values(services)) {
    const over = figures.find("executable", "over the runtime", name)?.samples[0] ?? Number.NaN;
    within(`size of ${name} over the Bun runtime`, over, 1.02);
  }
  return rows;
}

const machine = [
  `${cpus().length} x ${cpus()[0]?.model ?? "unknown processor"}`,
  `${Math.round(totalmem() / MiB ** 3)} GiB`,
  `Linux ${release()}`,
  `Bun ${Bun.version}`,
].join(", ");

let field: Field;
try {
  field = assemble(directory);
} catch (error) {
  console.error(`bench: ${error instanceof Error ? error.message : error}`);
  process.exit(1);
}
notes.push(...field.missing);
const activator = new Activator(field.activator);
const measure: [part: number, of: () => void | Promise<void>][] = [
  [1, () => cold(activator, field)],
  [2, () => systemd(activator, field)],
  [3, () => warm(activator, field)],
  [4, () => perConnection(activator, field)],
  [5, () => memories(activator, field)],
  [6, sizes],
  [7, () => http(activator)],
  [8, underRestarts],
  [9, instances],
  [10, sandbox],
];
const began = performance.now();
for (const [part, of] of measure)
  try {
    if (parts.has(part)) await of();
  } catch (error) {
    // What was measured before it is not to be lost.
    notes.push(`part ${part}, from here on: ${error instanceof Error ? error.message : error}`);
    process.exitCode = 1;
  }
await activator.end();
const seconds = (performance.now() - began) / 1000;

console.log(
  `${machine}; ${seconds.toFixed(0)} s${options.quick ? "; quick, not to be quoted" : ""}`,
);
for (const note of notes) console.log(`not measured: ${note}`);
const rows = claims();
console.log(`\n${columns([["ratio", "", "middle half", "runs", "wanted", "met"], ...rows])}`);
console.log(`\nfigures: median (10th - 99th percentile)\n\n${tables(figures)}`);
const date = new Date().toISOString();
const results: Results = { date, machine, seconds, notes, ratios: rows, figures: figures.all };
await Bun.write(options.json, `${JSON.stringify(results, undefined, 2)}\n`);
console.log(`\nwritten: ${options.json}`);
