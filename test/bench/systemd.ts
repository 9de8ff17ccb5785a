/**
 * Activation through a real systemd: the installed units in a booted machine, with and without
 * their hardening, each copied for every contender with another port and `ExecStart=`. The programs
 * run from this disk, because what is installed in the machine lies in its memory, which a large
 * executable starts from more slowly.
 */
import { relative, resolve } from "node:path";

import { lines } from "../support/lines.ts";
import { CHECKOUT, Machine } from "../system/machine.ts";
import { type Contender, services, type Style, styles } from "./contenders.ts";

/** Gets what one connection took through which systemd, in milliseconds from connect(2). */
type Record = (activation: {
  readonly systemd: number;
  readonly style: Style;
  readonly hardened: boolean;
  readonly who: string;
  readonly first: number;
  readonly end: number;
}) => void;

const INSTALLED = "/usr/local/lib/systemd/system";

/**
 * Activates each contender in each unit once a round.
 *
 * @param root What the machine is booted from.
 * @param directory Where the contenders' programs are: in this checkout, and readable for all.
 * @returns Why it could not be measured here, or undefined.
 */
export async function throughSystemd(
  root: string,
  rounds: number,
  contenders: readonly Contender[],
  directory: string,
  record: Record,
): Promise<string | undefined> {
  // What the other parts measure is not to be lost over this one.
  const obstacle = await Machine.obstacle(20, root);
  if (obstacle !== undefined) return obstacle;
  await using machine = await Machine.boot(30, root);
  const { systemd } = machine;
  await machine.must("make", "-C", CHECKOUT, "install");

  const inside = `${CHECKOUT}/${relative(resolve(import.meta.dir, "../.."), directory)}`;
  const variants = styles.flatMap((style, i) =>
    [false, true].flatMap((hardened, j) =>
      contenders.map(({ name: who, command }, k) => {
        const port = 5000 + i * 100 + j * 50 + k;
        const program = command(style).join(" ").replaceAll(directory, inside);
        const [name, unit] = [services[style], `bench-${port}`];
        return { style, name, hardened, who, port, unit, program };
      }),
    ),
  );
  for (const { style, name, hardened, port, unit, program } of variants) {
    const suffix = style === "listen" ? ".service" : "@.service";
    const copy = async (from: string, to: string, ...edits: [RegExp, string][]): Promise<void> => {
      let text = await machine.must("cat", `${INSTALLED}/${name}${from}`);
      for (const [what, by] of edits) text = text.replace(what, by);
      await machine.write(`/run/systemd/system/${unit}${to}`, `${text}\n`);
    };
    await copy(".socket", ".socket", [/^ListenStream=.*$/m, `ListenStream=127.0.0.1:${port}`]);
    await copy(suffix, suffix, [/^ExecStart=.*$/m, `ExecStart=${program}`]);
    const dropIn = "50-hardening.conf";
    if (hardened) await copy(`${suffix}.d/${dropIn}`, `${suffix}.d/${dropIn}`);
  }
  await machine.must("systemctl", "daemon-reload");
  await machine.must("systemctl", "start", ...variants.map(({ unit }) => `${unit}.socket`));

  const client = machine.client(import.meta.path);
  const answers = lines(client.stdout);
  for (let round = -1; round < rounds; round++) {
    // In another order each time: what systemd cleans up after one is in the time of the next.
    const order = round <= 0 ? variants : shuffled(variants);
    for (const { style, hardened, who, port, unit } of order) {
      client.stdin.write(`${port}\n`);
      await client.stdin.flush();
      const [first = Number.NaN, end = Number.NaN] = ((await answers.next()).value ?? "")
        .split(" ")
        .map(Number);
      if (Number.isNaN(first + end)) throw new Error(`${unit} (${who}, ${style}) did not answer`);
      if (round >= 0) record({ systemd, style, hardened, who, first, end });
      if (style === "listen") await machine.must("systemctl", "stop", `${unit}.service`);
      await Bun.sleep(30);
    }
  }
  await client.stdin.end();
  await client.exited;
  return undefined;
}

function shuffled<T>(items: readonly T[]): T[] {
  return items
    .map((item) => ({ item, at: Math.random() }))
    .toSorted((a, b) => a.at - b.at)
    .map(({ item }) => item);
}

/** The client, in the machine's network: for each port on a line, one connection's times. */
async function connect(port: number): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>();
  let first = Number.NaN;
  const began = performance.now();
  const finish = (): void => resolve(`${first} ${performance.now() - began}`);
  await Bun.connect({
    hostname: "127.0.0.1",
    port,
    socket: {
      data: () => void (first = performance.now() - began),
      end: finish,
      close: finish,
    },
  });
  return promise;
}

if (import.meta.main)
  for await (const line of console) if (line !== "") console.log(await connect(Number(line)));
