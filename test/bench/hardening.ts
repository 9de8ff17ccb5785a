/**
 * What the hardening drop-ins cost and give. For each service: the time until a client has the
 * first byte of a connection that starts the service, and the exposure that
 * `systemd-analyze security` sees, with no hardening, with each group of directives alone (what
 * stands between two blank lines of the drop-in), and with the whole drop-in. The tables are for
 * the README of this folder.
 *
 *     bun test/bench/hardening.ts [ROUNDS]
 *
 * All variants are units of one booted systemd and take turns, one connection each, so that what
 * disturbs the machine disturbs them alike. Ends with status 1 if a target is missed: exposure at
 * most 0.5 for socket-service, and for the other two at most 1.5, with a median time of at most 1.6
 * times that of the same unit with no hardening.
 */
import { join } from "node:path";
import { lines } from "../support/lines.ts";
import { SERVICES } from "../system/harness.ts";
import { CHECKOUT, Machine } from "../system/machine.ts";

/** Run in the machine's network: for each port on a line of input, one connection's time. */
async function client(): Promise<void> {
  for await (const line of console) {
    if (line === "") continue;
    const { promise, resolve } = Promise.withResolvers<number>();
    const begun = performance.now();
    await Bun.connect({
      hostname: "127.0.0.1",
      port: Number(line),
      socket: {
        data(socket) {
          resolve(performance.now() - begun);
          socket.end();
        },
        close: () => resolve(Number.NaN),
      },
    });
    console.log(await promise);
  }
}

interface Group {
  title: string;
  directives: string[];
}

const units = join(import.meta.dir, "../../units");

async function groups(unit: string): Promise<Group[]> {
  const text = await Bun.file(join(units, `${unit}.d/50-hardening.conf`)).text();
  const [, body = ""] = text.split("[Service]\n");
  return body.split("\n\n").map((block) => {
    const directives = block.split("\n").filter((line) => /^\w/.test(line));
    const names = new Set(directives.map((line) => `\`${line.replace(/=.*/, "=")}\``));
    return { title: [...names].join(" "), directives };
  });
}

/** One table, and whether the whole drop-in is within its targets. */
async function measure(
  machine: Machine,
  { name, unit }: (typeof SERVICES)[number],
  rounds: number,
): Promise<boolean> {
  const each = unit.includes("@");
  const parts = await groups(unit);
  const all = parts.flatMap(({ directives }) => directives);
  const variants = [
    { title: "none", directives: [] },
    ...parts,
    { title: "all of them", directives: all },
  ].map((group, i) => ({ ...group, name: `bench-${name}-${i}`, port: 5000 + i, times: [NaN] }));

  const service = (await Bun.file(join(units, unit)).text()).replace("@BINDIR@", "/usr/local/bin");
  const socket = await Bun.file(join(units, `${name}.socket`)).text();
  const suffix = each ? "@.service" : ".service";
  for (const variant of variants) {
    const at = `/run/systemd/system/${variant.name}`;
    const listen = `ListenStream=127.0.0.1:${variant.port}`;
    await machine.write(`${at}.socket`, socket.replace(/ListenStream=.*/, listen));
    await machine.write(`${at}${suffix}`, service);
    const dropIn = `[Service]\n${variant.directives.join("\n")}\n`;
    await machine.write(`${at}${suffix}.d/50-hardening.conf`, dropIn);
  }
  await machine.must("systemctl", "daemon-reload");
  const sockets = variants.map((variant) => `${variant.name}.socket`);
  await machine.must("systemctl", "start", ...sockets);

  const process_ = machine.client(import.meta.path, "client");
  const answers = lines(process_.stdout);
  for (let round = 0; round <= rounds; round += 1) {
    for (const variant of variants) {
      process_.stdin.write(`${variant.port}\n`);
      await process_.stdin.flush();
      const time = Number((await answers.next()).value);
      // The first of each has cold caches.
      if (round === 0) variant.times = [];
      else variant.times.push(time);
      // The end of one instance is not to be in the time of the next.
      if (!each) await machine.must("systemctl", "stop", `${variant.name}${suffix}`);
      await Bun.sleep(40);
    }
  }
  await process_.stdin.end();
  await process_.exited;
  await machine.must("systemctl", "stop", ...sockets);

  console.log(`\n${name}, ${rounds} connections each:\n`);
  console.log("| directives | median, ms | best tenth | ratio | exposure |");
  console.log("|---|---|---|---|---|");
  let base = Number.NaN;
  let good = false;
  for (const { name, title, times } of variants) {
    times.sort((a, b) => a - b);
    const median = times[times.length >> 1] ?? Number.NaN;
    const best = times[Math.floor(times.length / 10)] ?? Number.NaN;
    if (Number.isNaN(base)) base = median;
    const security = ["security", `${name}${suffix}`.replace("@", "@1")];
    const { stdout } = await machine.run("systemd-analyze", ...security);
    const exposure = Number(/Overall exposure level for .*: ([\d.]+)/.exec(stdout)?.[1]);
    const ratio = median / base;
    console.log(
      `| ${title} | ${median.toFixed(1)} | ${best.toFixed(1)} | ${ratio.toFixed(2)} | ${exposure} |`,
    );
    // Of the last, which is the whole drop-in.
    good = each ? exposure <= 1.5 && ratio <= 1.6 : exposure <= 0.5;
  }
  return good;
}

if (process.argv[2] === "client") {
  await client();
  process.exit(0);
}
const obstacle = await Machine.obstacle();
if (obstacle !== undefined) {
  console.error(`No systemd can be booted here: ${obstacle}.`);
  process.exit(1);
}
await using machine = await Machine.boot();
await machine.must("make", "-C", CHECKOUT, "install");
for (const service of SERVICES) {
  const good = await measure(machine, service, Number(process.argv[2] ?? 60));
  console.log(good ? "\nWithin its targets." : "\nA target is missed.");
  if (!good) process.exitCode = 1;
}
