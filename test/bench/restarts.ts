/**
 * HTTP under restarts: clients keep their connections and pause between requests, while systemd
 * restarts the service again and again. Compares `drain` with ends that a program has without it.
 * The table is for the module's README.
 *
 *     bun test/bench/restarts.ts [REQUESTS]
 */
import { join } from "node:path";

import { programs, ROOT } from "../package/programs.ts";
import { show } from "../system/harness.ts";
import type { Tally } from "../system/http.ts";
import { CHECKOUT, Machine } from "../system/machine.ts";
import { until } from "../support/until.ts";

const PORT = 4100;
const SERVICE = "restarts.service";
const BUN = `${CHECKOUT}/node_modules/${process.execPath.split("/node_modules/").pop()}`;

/** What a program does when it is asked to stop. */
export const ENDS = {
  drain: (grace: number) => `await drain(server, { grace: ${grace} });`,
  "server.stop()": () => "await server.stop();",
  "process.exit()": () => "",
} as const;

export interface Load {
  readonly end: keyof typeof ENDS;
  readonly connections: number;
  /** The longest between two requests of one connection, in milliseconds. */
  readonly pause: number;
  readonly grace?: number;
  readonly restarts: number;
  /** How many at least. */
  readonly requests: number;
  /** Directives of the service. */
  readonly sandbox?: readonly string[];
}

export interface Result extends Tally {
  /** Milliseconds from exec to readiness of the slowest start. */
  readonly start: number;
  /** The status text of the last process. */
  readonly status: string;
}

export async function restarts(machine: Machine, load: Load): Promise<Result> {
  const { connections, pause, grace = 1000, requests, sandbox = [] } = load;
  const source = programs(join(ROOT, "src/activation/README.md")).get("http.ts") ?? "";
  const program = source.replace("await drain(server);", ENDS[load.end](grace));
  if (program === source) throw new Error("http.ts of the README does not end as expected");
  await machine.must("install", "-d", "/srv/programs/node_modules");
  await machine.must("ln", "-sfn", CHECKOUT, "/srv/programs/node_modules/socket-service");
  await machine.write("/srv/programs/restarts.ts", program);
  const units = {
    service: ["Type=notify", `ExecStart=${BUN} /srv/programs/restarts.ts`, ...sandbox],
    socket: [`ListenStream=127.0.0.1:${PORT}`, "Backlog=4096"],
  };
  const path = "/run/systemd/system/restarts";
  const unlimited = "[Unit]\nStartLimitIntervalSec=0\n";
  await machine.write(`${path}.service`, `${unlimited}[Service]\n${units.service.join("\n")}\n`);
  await machine.write(`${path}.socket`, `[Socket]\n${units.socket.join("\n")}\n`);
  await machine.must("systemctl", "daemon-reload");
  await machine.must("systemctl", "start", "restarts.socket");

  const numbers = [PORT, requests, connections, pause].map(String);
  const client = machine.client(join(ROOT, "test/system/http.ts"), ...numbers);
  const output = client.stdout.text();
  await until("the service runs", 20, async () => {
    return (await show(machine, SERVICE, "ActiveState")) === "active";
  });
  const time = async (event: string) =>
    Number(await show(machine, SERVICE, `${event}TimestampMonotonic`)) / 1000;
  let start = 0;
  for (let i = 0; i < load.restarts; i++) {
    // Every client asks on a connection that it keeps.
    await Bun.sleep(200 + pause);
    await machine.must("systemctl", "restart", SERVICE);
    start = Math.max(start, (await time("ActiveEnter")) - (await time("ExecMainStart")));
  }
  await client.stdin.end();
  const tally: Tally = JSON.parse(await output);
  const status = await show(machine, SERVICE, "StatusText");
  await machine.must("systemctl", "stop", "restarts.socket", SERVICE);
  return { ...tally, start, status };
}

if (import.meta.main) {
  const requests = Number(process.argv[2] ?? 100_000);
  await using machine = await Machine.boot();
  console.log("| connections, pause | end | answered | lost | longest wait | start |");
  console.log("| --- | --- | --- | --- | --- | --- |");
  for (const pause of [0, 200, 1000])
    for (const connections of [64, 256])
      for (const end of ["drain", "server.stop()", "process.exit()"] as const) {
        const grace = pause < 1000 ? 1000 : 1500;
        // Without drain the losses are those of the restarts, however long it goes on.
        const least = end === "drain" ? requests : 0;
        const load = { end, connections, pause, grace, restarts: 12, requests: least };
        const { answered, lost, longest, start } = await restarts(machine, load);
        const kinds = Object.entries(lost).map(([kind, count]) => `${count} ${kind}`);
        const times = [longest, start].map((time) => `${time.toFixed(0)} ms`);
        const row = [`${connections}, ${pause}`, end, answered, kinds.join(", ") || 0, ...times];
        console.log(`| ${row.join(" | ")} |`);
      }
}
