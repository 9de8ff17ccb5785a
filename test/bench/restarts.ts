/**
 * HTTP under restarts: clients keep their connections and pause between requests, while systemd
 * restarts the service again and again. Compares `drain` with ends that a program has without it.
 */
import { join } from "node:path";

import { programs, ROOT } from "../package/programs.ts";
import type { Tally } from "../system/http.ts";
import { BUN, CHECKOUT, type Machine } from "../system/machine.ts";
import { until } from "../support/until.ts";
import type { Recorder } from "./figures.ts";

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
  /** Whether the socket is one of AF_UNIX, and not on a port. */
  readonly unix?: boolean;
  /** Whether the clients ask nginx, which keeps its connections to the service. */
  readonly nginx?: boolean;
  /** How many bytes each request sends, which the program does not read. */
  readonly body?: number;
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
  const { unix = false, nginx = false, body = 0 } = load;
  const name = `restarts-${port}`;
  const unit = async (suffix: string, section: string, lines: readonly string[]): Promise<void> => {
    const unlimited = suffix.endsWith(".service") ? "[Unit]\nStartLimitIntervalSec=0\n" : "";
    const text = `${unlimited}[${section}]\n${lines.join("\n")}\n`;
    await machine.write(`/run/systemd/system/${name}${suffix}`, text);
  };
  let service = `${name}.service`;
  if (end === "proxyd") {
    const behind = `/run/${name}.socket`;
    const proxyd = "/lib/systemd/systemd-socket-proxyd --connections-max=4096";
    await unit(".service", "Service", [`ExecStart=${proxyd} ${behind}`]);
    // What is restarted is the program behind it.
    service = `${name}-behind.service`;
    const own = [`ExecStart=${BUN} ${PLAIN} ${behind}`, `ExecStartPre=rm -f ${behind}`];
    await unit("-behind.service", "Service", own);
    await machine.must("systemctl", "daemon-reload");
    await machine.must("systemctl", "start", service);
    await until("the program listens", 20, async () => {
      return (await machine.run("test", "-S", behind)).status === 0;
    });
  } else {
    const start =
      end === "Go Shutdown"
        ? [`ExecStart=${load.go}`]
        : ["Type=notify", `ExecStart=${BUN} ${await install(machine, ENDS[end](grace), name)}`];
    await unit(".service", "Service", [...start, ...sandbox]);
  }
  // The clients have the machine's network, but not its files.
  const path = nginx ? `/run/${name}.socket` : `@${name}`;
  const listen = unix ? path : `127.0.0.1:${port}`;
  await unit(".socket", "Socket", [`ListenStream=${listen}`, "Backlog=4096"]);
  await machine.must("systemctl", "daemon-reload");
  await machine.must("systemctl", "start", `${name}.socket`);

  const address = nginx ? port + 1000 : unix ? path : port;
  if (nginx)
    await startNginx(machine, `${name}-nginx`, port + 1000, unix ? `unix:${path}` : listen);
  const args = [address, requests, connections, pause, body].map(String);
  const client = machine.client(join(ROOT, "test/system/http.ts"), ...args);
  const output = client.stdout.text();
  await until("the service runs", 20, async () => {
    return (await machine.show(`${name}.service`, "ActiveState")) === "active";
  });
  const time = async (event: string) =>
    Number(await machine.show(service, `${event}TimestampMonotonic`)) / 1000;
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
  const status = await machine.show(service, "StatusText");
  const units = [`${name}.socket`, `${name}.service`, service];
  if (nginx) units.push(`${name}-nginx.service`);
  await machine.must("systemctl", "stop", ...units);
  return { ...tally, start, status };
}

/** Debian's nginx as a service of a machine, before a server at `upstream`. */
async function startNginx(machine: Machine, name: string, port: number, upstream: string) {
  const configuration = `
daemon off;
pid /run/${name}.pid;
error_log stderr;
events { worker_connections 4096; }
http {
  access_log off;
  client_max_body_size 16m;
  upstream service { server ${upstream}; keepalive 64; }
  server {
    listen 127.0.0.1:${port};
    location / {
      proxy_pass http://service;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }
  }
}
`;
  await machine.write(`/run/${name}.conf`, configuration);
  const start = ["nginx", "-c", `/run/${name}.conf`];
  await machine.must("systemd-run", `--unit=${name}`, ...start);
  await until("nginx listens", 20, async () => {
    const { stdout } = await machine.run("ss", "-Htln", `sport = :${port}`);
    return stdout !== "";
  });
}

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
  const words = pause === 0 ? "none" : pause < 1000 ? `to ${pause} ms` : `to ${pause / 1000} s`;
  return `restarts, ${connections}, ${words}`;
}
/** The groups of the figures. */
export const RESTARTS = LOADS.map(([connections, pause]) => restartsGroup(connections, pause));

/**
 * Every load with each of its ends that `ends` has: `restarts` restarts, and with `drain` at least
 * `requests` requests. The losses of the others are those of the restarts, however long they go on.
 */
export async function allRestarts(
  machine: Machine,
  { go, ends, ...least }: Pick<Load, "go" | "restarts" | "requests"> & { ends: readonly End[] },
  record: Recorder,
): Promise<void> {
  let port = 4100;
  const measure = (connections: number, pause: number, end: End, requests: number) => {
    const grace = pause < PATIENT ? 1000 : 1500;
    const load = { ...least, end, connections, pause, grace, requests, port: port++ };
    return restarts(machine, { ...load, ...(go && { go }) });
  };
  const note = (
    connections: number,
    pause: number,
    end: End,
    of: Result,
    ran: "alone" | "beside",
  ) => {
    const add = (metric: string, value: number) =>
      record(restartsGroup(connections, pause), metric, end, value);
    const lost = (kinds: readonly string[]) =>
      kinds.reduce((sum, kind) => sum + (of.lost[kind] ?? 0), 0);
    add("requests lost", lost(Object.keys(of.lost)));
    add("of them reset", lost(["ECONNRESET", "EPIPE"]));
    add("answered", of.answered);
    // The waits of loads that run beside each other hold what the others' restarts take.
    if (ran === "beside") return;
    add("longest wait ms", of.longest);
    // Only a program that notifies systemd says when it has started.
    if (of.status !== "") add("next start ms", of.start);
  };
  for (const [connections, pause, all] of LOADS)
    for (const end of all.filter((end) => ends.includes(end))) {
      const requests = end === "drain" && pause < PATIENT ? least.requests : 0;
      note(connections, pause, end, await measure(connections, pause, end, requests), "alone");
    }
  // The clients mostly wait, and 64 of them would take thirteen minutes for all requests: four loads
  // share those, and run beside the one of 256 clients.
  const patient = LOADS.filter(([, pause]) => pause >= PATIENT);
  await Promise.all(
    patient.flatMap(([connections, pause]) => {
      const loads = Math.ceil(256 / connections);
      return Array.from({ length: loads }, async () => {
        const result = await measure(connections, pause, "drain", least.requests / loads);
        note(connections, pause, "drain", result, "beside");
      });
    }),
  );
}
