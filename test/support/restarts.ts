/* A service over HTTP that systemd restarts again and again, under clients that keep their connections. */
import { join } from "node:path";

import type { Tally } from "./http.ts";
import { BUN, CHECKOUT, linkModule, type Machine } from "./machine.ts";
import { programs, README, ROOT } from "./pages.ts";
import { until } from "./until.ts";

const PLAIN = `${CHECKOUT}/test/bench/peers/http/plain.ts`;

/** The last lines of a program that is asked to stop. */
const ENDS = {
  drain: (grace: number) => `await drain(server, { grace: ${grace} });`,
  "server.stop()": () => "await server.stop();",
  "process.exit()": () => "",
} as const;

export interface Load {
  /** proxyd: `Bun.serve` behind systemd-socket-proxyd. Go Shutdown: a server in Go. */
  readonly end: keyof typeof ENDS | "proxyd" | "Go Shutdown";
  readonly connections: number;
  /** The longest between two requests of one connection, in milliseconds. */
  readonly pause: number;
  readonly grace?: number;
  readonly restarts: number;
  /** The least number of requests. */
  readonly requests: number;
  /** Directives of the service. */
  readonly sandbox?: readonly string[];
  /** Each of those that run beside each other has its own. */
  readonly port?: number;
  /** Whether the socket is one of AF_UNIX, and not on a port. */
  readonly unix?: boolean;
  /** Whether the clients ask nginx, which keeps its connections to the service. */
  readonly nginx?: boolean;
  /** The bytes that each request sends. The program does not read them. */
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
  const source = programs(README).get("http.ts") ?? "";
  const program = source.replace("await drain(server);", end);
  if (program === source) throw new Error("http.ts of the README does not end as expected");
  await linkModule(machine);
  await machine.write(`/srv/programs/${name}.ts`, program);
  return `/srv/programs/${name}.ts`;
}

/** Loads side by side restart in turn: several starts at once would take the clients' processors. */
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
    // systemd restarts the program behind it.
    service = `${name}-behind.service`;
    const own = [`ExecStart=${BUN} ${PLAIN} ${behind}`, `ExecStartPre=rm -f ${behind}`];
    await unit("-behind.service", "Service", own);
    await machine.systemctl("daemon-reload");
    await machine.systemctl("start", service);
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
  await machine.systemctl("daemon-reload");
  await machine.systemctl("start", `${name}.socket`);

  const address = nginx ? port + 1000 : unix ? path : port;
  if (nginx)
    await startNginx(machine, `${name}-nginx`, port + 1000, unix ? `unix:${path}` : listen);
  const args = [address, requests, connections, pause, body].map(String);
  const client = machine.client(join(ROOT, "test/support/http.ts"), ...args);
  const output = client.stdout.text();
  await machine.becomes(`${name}.service`, "ActiveState", "active", 20);
  const time = async (event: string) =>
    Number(await machine.show(service, `${event}TimestampMonotonic`)) / 1000;
  let start = 0;
  for (let i = 0; i < load.restarts; i++) {
    // Every client asks on a connection that it keeps.
    await Bun.sleep(200 + pause);
    turn = turn.then(() => machine.systemctl("restart", service));
    await turn;
    start = Math.max(start, (await time("ActiveEnter")) - (await time("ExecMainStart")));
  }
  await client.stdin.end();
  const tally: Tally = JSON.parse(await output);
  const status = await machine.show(service, "StatusText");
  const units = [`${name}.socket`, `${name}.service`, service];
  if (nginx) units.push(`${name}-nginx.service`);
  await machine.systemctl("stop", ...units);
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
