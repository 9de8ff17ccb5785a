/**
 * Several processes that share the work, in the two ways of the module's README: how evenly they share
 * connections, what they answer on two cores, and how long clients wait while one after the other
 * restarts. The figures are for that README. It needs wrk (Debian package wrk).
 *
 *     bun test/bench/instances.ts
 */
import { join } from "node:path";

import { programs, ROOT } from "../package/programs.ts";
import { README } from "../package/reference.ts";
import type { Tally } from "../system/http.ts";
import { CHECKOUT, Machine } from "../system/machine.ts";

const PORT = 4100;
const BUN = `${CHECKOUT}/node_modules/${process.execPath.split("/node_modules/").pop()}`;

/** The two ways, by the README's socket unit. */
export const WAYS = ["web.socket", "web@.socket"] as const;
export type Way = (typeof WAYS)[number];

/**
 * Starts instances of http.ts with the README's units, each of which answers with its number, until it is
 * disposed of.
 */
export async function instances(
  machine: Machine,
  way: Way,
  count: number,
  change: (program: string) => string = (program) => program,
): Promise<AsyncDisposable> {
  const readme = await Bun.file(README).text();
  const unit = (name: string) => {
    const [, text = ""] = readme.split(`# ${name}\n`);
    return text.slice(0, text.search(/\n# |```/)).replace("=4000", `=127.0.0.1:${PORT}`);
  };
  const start = `ExecStart=${BUN} /srv/programs/web.ts %i`;
  const service = unit("web@.service").replace(/^ExecStart=.*$/m, start);
  const alone = service.replace(/^(Sockets|NonBlocking)=.*\n/gm, "");
  const program = programs(README).get("http.ts")?.replace('"Hello\\n"', "process.argv[2]") ?? "";
  const files = {
    [`/run/systemd/system/${way}`]: unit(way),
    "/run/systemd/system/web@.service": way === "web.socket" ? service : alone,
    "/srv/programs/web.ts": change(program),
  };
  for (const [path, text] of Object.entries(files)) await machine.write(path, text);
  await machine.must("install", "-d", "/srv/programs/node_modules");
  await machine.must("ln", "-sfn", CHECKOUT, "/srv/programs/node_modules/socket-service");
  await machine.must("systemctl", "daemon-reload");
  const names = Array.from({ length: count }, (_, i) => `web@${i + 1}`);
  const sockets = way === "web.socket" ? [way] : names.map((name) => `${name}.socket`);
  await machine.must("systemctl", "start", ...sockets, ...names.map((name) => `${name}.service`));
  return {
    async [Symbol.asyncDispose]() {
      await machine.must("systemctl", "stop", "web*.socket", "web@*.service");
      await machine.must("rm", ...Object.keys(files));
    },
  };
}

/** Asks with http.ts, whose arguments follow the port. Its input ends when `meanwhile` has. */
export async function ask(
  machine: Machine,
  args: readonly number[],
  meanwhile?: () => Promise<void>,
): Promise<Tally> {
  const client = machine.client(join(ROOT, "test/system/http.ts"), ...[PORT, ...args].map(String));
  const output = client.stdout.text();
  await meanwhile?.();
  await client.stdin.end();
  return JSON.parse(await output);
}

/** Restarts both instances, one after the other, so many times. */
export async function roll(machine: Machine, times: number, pause: number): Promise<void> {
  for (let i = 0; i < 2 * times; i++) {
    // Every client asks on a connection that it keeps.
    await Bun.sleep(200 + pause);
    await machine.must("systemctl", "restart", `web@${1 + (i % 2)}.service`);
  }
}

/** A program whose connections serve one request each. */
export const closing = (program: string) =>
  program.replace("argv[2])", 'argv[2], { headers: { Connection: "close" } })');

/** A program whose every answer takes a millisecond of a processor. */
const computing = (program: string) =>
  program
    .replace(
      "fetch: () =>",
      "fetch: (request, server, end = performance.now() + 1) => { while (performance.now() < end); return",
    )
    .replace("argv[2]),\n", "argv[2]); },\n");

if (import.meta.main) {
  await using machine = await Machine.boot();
  const shares = ({ answers }: Tally) => `${answers["1"] ?? 0}:${answers["2"] ?? 0}`;
  const repeat = async <T>(count: number, once: () => Promise<T>) => {
    const all: T[] = [];
    for (let i = 0; i < count; i++) all.push(await once());
    return all.join(" ");
  };
  for (const way of WAYS) {
    {
      await using _ = await instances(machine, way, 2, closing);
      const burst = await repeat(3, async () => shares(await ask(machine, [200, 200])));
      const single = await repeat(3, async () => shares(await ask(machine, [400, 1])));
      console.log(`${way}: of 200 at once ${burst}, of 400 one by one ${single}`);
    }
    for (const [what, pause, change] of [
      ["kept", 0],
      ["kept", 200],
      ["new for each request", 200, closing],
    ] as const) {
      await using _ = await instances(machine, way, 2, change);
      const args = [10_000, 64, pause];
      const still = await ask(machine, args, () => Bun.sleep(5000));
      const rolled = await ask(machine, args, () => roll(machine, 6, pause));
      const waits = [still, rolled].map(({ longest }) => `${longest.toFixed(0)} ms`);
      const { answered, lost } = rolled;
      console.log(`${way}: 64, ${what}, ${pause}: ${answered}, lost`, lost, ...waits);
    }
  }
  const load = `TIMEFORMAT="%U %S"; time wrk -t1 -c64 -d2s http://127.0.0.1:${PORT}/`;
  const rates = new Map<string, string[]>();
  for (let round = 0; round < 3; round++)
    for (const [what, change] of [["Hello"], ["1 ms", computing]] as const)
      for (const way of WAYS)
        for (const count of [1, 2]) {
          await using _ = await instances(machine, way, count, change);
          const { stdout, stderr } = await machine.run("bash", "-c", load);
          const rate = Number(/^Requests\/sec: *([\d.]+)/m.exec(stdout)?.[1]);
          const [user = 0, system = 0] = stderr.trim().split(" ").map(Number);
          const figure = `${rate.toFixed(0)}/s (wrk ${(50 * (user + system)).toFixed(0)} %)`;
          const key = `${what}, ${way}, ${count}`;
          rates.set(key, [...(rates.get(key) ?? []), figure]);
        }
  for (const [key, figures] of rates) console.log(`${key}: ${figures.join(" ")}`);
}
