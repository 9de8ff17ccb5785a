/** Shared by the tests of the units: a machine with the services installed, and their clients. */
import { join } from "node:path";
import { lines } from "../support/lines.ts";
import { lacks, skipped } from "../support/needs.ts";
import { SERVICES } from "../support/services.ts";
import { until } from "../support/until.ts";
import type { Tally } from "./client.ts";
import { CHECKOUT, Machine, ROOT } from "../support/machine.ts";

export const SOCKETS = SERVICES.map(({ name }) => `${name}.socket`);

let filters = false;
const obstacle = await Machine.obstacle({}, async (machine) => {
  filters = await machine.canFilterAddresses();
});
if (obstacle !== undefined && ROOT !== "/") throw new Error(`ROOT=${ROOT}: ${obstacle}`);
if (obstacle !== undefined) skipped("test/system", obstacle);

/** Whether the tests of this folder cannot run here. */
export const cannotRun = obstacle !== undefined;

/** Whether a test of IPAddressDeny= cannot run here, for `test.skipIf`. */
export function lacksFilters(): boolean {
  if (!filters && !cannotRun) skipped("IPAddressDeny=", "systemd cannot call bpf(2) here");
  return !filters;
}

/** The same as `lacks` for programs in a machine: another root has all of them. */
export const lacksInside: typeof lacks = (...names) => ROOT === "/" && lacks(...names);

/** A machine on which an administrator has installed the services and started their sockets. */
export async function installed(): Promise<Machine> {
  const machine = await Machine.boot();
  await machine.must("make", "-C", CHECKOUT, "install");
  await machine.systemctl("daemon-reload");
  await machine.systemctl("enable", "--now", ...SOCKETS);
  return machine;
}

/** Ends a machine, and throws if a unit of it has failed meanwhile. */
export async function nothingFailed(machine: Machine): Promise<void> {
  const { stdout } = await machine.run("systemctl", "--failed", "--no-legend", "--plain");
  await machine.shutdown();
  if (stdout !== "") throw new Error(`failed units:\n${stdout}`);
}

export type Kind = "once" | "load" | "pulse" | "silent" | "trickle" | "reset";

/** A running client.ts, which ends with the test. */
export class Clients implements AsyncDisposable {
  readonly #process: Bun.Subprocess<"pipe", "pipe", "inherit">;
  readonly #lines: AsyncIterableIterator<string>;

  /** `pause`, in milliseconds, is for `pulse`. */
  constructor(machine: Machine, kind: Kind, port: number, count: number, pause = 0) {
    const args = [kind, String(port), String(count), String(pause)];
    this.#process = machine.client(join(import.meta.dir, "client.ts"), ...args);
    this.#lines = lines(this.#process.stdout);
  }

  /** Returns the tally so far. */
  async tally(): Promise<Tally> {
    this.#process.stdin.write("\n");
    await this.#process.stdin.flush();
    const line = await this.#lines.next();
    if (line.done === true) throw new Error("client.ts has ended");
    return JSON.parse(line.value);
  }

  /** Begins no more connections, waits for those that are open, and says how it has gone. */
  async finish(): Promise<Tally> {
    await this.#process.stdin.end();
    let last = "";
    for await (const line of this.#lines) last = line;
    await this.#process.exited;
    return JSON.parse(last);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#process.exited;
  }
}

/** Returns the tally of one client. */
export async function greeting(machine: Machine, port: number): Promise<Tally> {
  return new Clients(machine, "once", port, 1).finish();
}

/** Returns the answer of an address to nc, which sends nothing by default. */
export async function netcat(machine: Machine, address: string, text = ""): Promise<string> {
  return (await machine.run("sh", "-c", `printf '${text}' | nc -w 2 ${address}`)).stdout;
}

/** Adds a drop-in to a unit until it is disposed of. */
export async function dropIn(
  machine: Machine,
  unit: string,
  ...lines: string[]
): Promise<AsyncDisposable> {
  const path = `/run/systemd/system/${unit}.d/90-test.conf`;
  const section = unit.endsWith(".socket") ? "Socket" : "Service";
  await machine.write(path, `[${section}]\n${lines.join("\n")}\n`);
  await machine.systemctl("daemon-reload");
  return {
    async [Symbol.asyncDispose]() {
      await machine.must("rm", path);
      await machine.systemctl("daemon-reload");
    },
  };
}

/** The lines of a drop-in that has a unit run another command of /usr/local/bin. */
export const runs = (command: string) => ["ExecStart=", `ExecStart=/usr/local/bin/${command}`];

/** Waits until systemd lists no unit whose name matches. */
export async function noUnits(machine: Machine, pattern: string): Promise<void> {
  await until(`no ${pattern} is listed`, 10, async () => {
    return (await machine.systemctl("list-units", "--all", "--no-legend", pattern)) === "";
  });
}

/** A new user with a manager of its own, which runs until it is disposed of. */
export async function userOf(machine: Machine, name: string) {
  await machine.must("useradd", "--create-home", name);
  const id = await machine.must("id", "--user", name);
  await machine.systemctl("start", `user@${id}.service`);
  const user = ["setpriv", "--reuid", id, "--regid", id, "--clear-groups", "env"];
  user.push(`HOME=/home/${name}`, `XDG_RUNTIME_DIR=/run/user/${id}`);
  return {
    id,
    run: (...command: string[]) => machine.run(...user, ...command),
    must: (...command: string[]) => machine.must(...user, ...command),
    async [Symbol.asyncDispose]() {
      await machine.systemctl("stop", `user@${id}.service`);
    },
  };
}

/** The lines of a unit in the journal, each with its priority: `3 socket-service: …`. */
export async function journal(machine: Machine, unit: string): Promise<string[]> {
  const fields = "--output-fields=PRIORITY,MESSAGE";
  const entries = await machine.must("journalctl", "--unit", unit, "--output=json", fields);
  return entries
    .split("\n")
    .filter((entry) => entry !== "")
    .map((entry) => JSON.parse(entry))
    .map((entry) => `${String(entry.PRIORITY)} ${String(entry.MESSAGE)}`);
}
