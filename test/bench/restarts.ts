/**
 * HTTP under restarts: clients keep their connections and pause between requests, while systemd
 * restarts the service again and again. Compares `drain` with ends that a program has without it.
 * The table is for the module's README, and takes some ten minutes.
 *
 *     bun test/bench/restarts.ts [REQUESTS]
 */
import { join } from "node:path";

import { programs, ROOT } from "../package/programs.ts";
import { show } from "../system/harness.ts";
import type { Tally } from "../system/http.ts";
import { CHECKOUT, Machine } from "../system/machine.ts";
import { until } from "../support/until.ts";

const BUN = `${CHECKOUT}/node_modules/${process.execPath.split("/node_modules/").pop()}`;
const PLAIN = `${CHECKOUT}/test/bench/peers/http/plain.ts`;

/** What a program does when it is asked to stop. */
const ENDS = {
  drain: (grace: number) => `await drain(server, { grace: ${grace} });`,
  "server.stop()": () => "await server.stop();",
  "process.exit()": () => "",
} as const;

export interface Load {
  /** The others are no end of the module's: `Bun.serve` behind systemd-socket-proxyd, and Go's. */
  readonly end: keyof typeof ENDS | "proxyd" | "Go Shutdown";
  readonly connections: number;
  /** The longest between two requests of one connection, in milliseconds. */
  readonly pause: number;
  readonly grace?: number;
  readonly restarts: number;
  /** How many at least. */
  readonly requests: number;
  /** Directives of the service. */
  readonly sandbox?: readonly string[];
  /** Each of those that run beside each other has its own. */
  readonly port?: number;
  /** The program in Go, as the machine sees it. */
  readonly go?: string;
}

export interface Result extends Tally {
  /** Milliseconds from exec to readiness of the slowest start, of a program that notifies systemd. */
  readonly start: number;
  /** The status text of the last process. */
  readonly status: string;
}

/** Writes http.ts of the README with another end, and returns where. */
async function install(machine: Machine, end: string, name: string): Promise<string> {
  const source = programs(join(ROOT, "src/activation/README.md")).get("http.ts") ?? "";
  const program = source.replace("await drain(server);", end);
  if (program === source) throw new Error("http.ts of the README does not end as expected");
  await machine.must("install", "-d", "/srv/programs/node_modules");
  await machine.must("ln", "-sfn", CHECKOUT, "/srv/programs/node_modules/socket-service");
  await machine.write(`/srv/programs/${name}.ts`, program);
  return `/srv/programs/${name}.ts`;
}

/** What runs side by side restarts in turn: several starts at once would take the clients' processors. */
let turn: Promise<unknown> = Promise.resolve();

export async function restarts(machine: Machine, load: Load): Promise<Result> {
  const { end, connections, pause, grace = 1000, requests, sandbox = [], port = 4100 } = load;
  const name = `restarts-${port}`;
  const unit = async (suffix: string, section: string, lines: readonly string[]): Promise<void> => {
    const unlimited = suffix.endsWith(".service") ? "[Unit]\nStartLimitIntervalSec=0\n" : "";
    const text = `${unlimited}[${section}]\n${lines.join("\n")}\n`;
    await machine.write(`/run/systemd/system/${name}${suffix}`, text);
  };
  let service = `${name}.service`;
  if (end === "proxyd") {
    const path = `/run/${name}.socket`;
    const proxyd = "/lib/systemd/systemd-socket-proxyd --connections-max=4096";
    await unit(".service", "Service", [`ExecStart=${proxyd} ${path}`]);
    // What is restarted is the program behind it.
    service = `${name}-behind.service`;
    const own = [`ExecStart=${BUN} ${PLAIN} ${path}`, `ExecStartPre=rm -f ${path}`];
    await unit("-behind.service", "Service", own);
    await machine.must("systemctl", "daemon-reload");
    await machine.must("systemctl", "start", service);
    await until("the program listens", 20, async () => {
      return (await machine.run("test", "-S", path)).status === 0;
    });
  } else {
    const start =
      end === "Go Shutdown"
        ? [`ExecStart=${load.go}`]
        : ["Type=notify", `ExecStart=${BUN} ${await install(machine, ENDS[end](grace), name)}`];
    await unit(".service", "Service", [...start, ...sandbox]);
  }
  await unit(".socket", "Socket", [`ListenStream=127.0.0.1:${port}`, "Backlog=4096"]);
  await machine.must("systemctl", "daemon-reload");
  await machine.must("systemctl", "start", `${name}.socket`);

  const numbers = [port, requests, connections, pause].map(String);
  const client = machine.client(join(ROOT, "test/system/http.ts"), ...numbers);
  const output = client.stdout.text();
  await until("the service runs", 20, async () => {
    return (await show(machine, `${name}.service`, "ActiveState")) === "active";
  });
  const time = async (event: string) =>
    Number(await show(machine, service, `${event}TimestampMonotonic`)) / 1000;
  let start = 0;
  for (let i = 0; i < load.restarts; i++) {
    // Every client asks on a connection that it keeps.
    await Bun.sleep(200 + pause);
    turn = turn.then(() => machine.must("systemctl", "restart", service));
    await turn;
    start = Math.max(start, (await time("ActiveEnter")) - (await time("ExecMainStart")));
  }
  await client.stdin.end();
  const tally: Tally = JSON.parse(await output);
  const status = await show(machine, service, "StatusText");
  await machine.must("systemctl", "stop", `${name}.socket`, `${name}.service`, service);
  return { ...tally, start, status };
}

/** Several at once, as if they were one. */
function together(results: readonly Result[]): Result {
  const [first] = results;
  if (first === undefined) throw new Error("there is no result");
  return results.slice(1).reduce<Result>((sum, one) => {
    const lost = { ...sum.lost };
    for (const [kind, n] of Object.entries(one.lost)) lost[kind] = (lost[kind] ?? 0) + n;
    return {
      ...sum,
      lost,
      answered: sum.answered + one.answered,
      connections: sum.connections + one.connections,
      longest: Math.max(sum.longest, one.longest),
      start: Math.max(sum.start, one.start),
    };
  }, first);
}

if (import.meta.main) {
  const requests = Number(process.argv[2] ?? 100_000);
  await using machine = await Machine.boot();
  const ends = ["drain", "server.stop()", "process.exit()"] as const;
  let port = 4100;
  /** One row: `copies` of it at once, each with all the restarts, share the requests. */
  const row = async (
    connections: number,
    pause: number,
    end: (typeof ends)[number],
    copies = 1,
  ): Promise<string[]> => {
    const grace = pause < 1000 ? 1000 : 1500;
    // Without drain the losses are those of the restarts, however long it goes on.
    const [least, times] = end === "drain" ? [requests / copies, copies] : [0, 1];
    const load = { end, connections, pause, grace, restarts: 12, requests: least };
    const all = Array.from({ length: times }, () => restarts(machine, { ...load, port: port++ }));
    const { answered, lost, longest, start } = together(await Promise.all(all));
    const count = (kinds: readonly string[]): number =>
      kinds.reduce((sum, kind) => sum + (lost[kind] ?? 0), 0);
    const sum = count(Object.keys(lost));
    const reset = count(["ECONNRESET", "EPIPE"]);
    const kinds = sum === 0 ? "0" : `${sum} (${reset} reset, ${sum - reset} closed)`;
    const clients = `${connections}, ${pause === 0 ? "none" : pause < 1000 ? `to ${pause} ms` : "to 1 s"}`;
    const waits = [longest, start].map((wait) => `${wait.toFixed(0)} ms`);
    return [clients, `\`${end}\``, answered.toLocaleString("en"), kinds, ...waits];
  };

  const head = ["clients, pause", "end", "answered", "lost", "longest wait", "start"];
  console.log(`| ${head.join(" | ")} |\n|${head.map(() => " --- |").join("")}`);
  const print = (rows: string[][]): void => {
    for (const cells of rows) console.log(`| ${cells.join(" | ")} |`);
  };
  // Those take both processors, and so run alone.
  for (const connections of [64, 256])
    for (const end of ends) print([await row(connections, 0, end)]);
  // The others mostly wait. With 64 clients that pause up to a second, 100,000 requests would take
  // thirteen minutes: four such loads, each with a service of its own, share them.
  for (const [connections, copies] of [
    [64, 4],
    [256, 1],
  ] as const) {
    const rows = [200, 1000].flatMap((pause) =>
      ends.map((end) => row(connections, pause, end, pause === 1000 ? copies : 1)),
    );
    print(await Promise.all(rows));
  }
}
