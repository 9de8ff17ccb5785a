/**
 * Activation through a real systemd: the installed units in a booted machine, with and without
 * their hardening, each copied for every contender with another port and `ExecStart=`. The programs
 * run from this disk, because what is installed in the machine lies in its memory, which a large
 * executable starts from more slowly.
 */
import { relative, resolve } from "node:path";

import { CHECKOUT, type Machine } from "../support/machine.ts";
import { type Contender, services, turns, type Style, styles } from "./contenders.ts";
import { Stopwatch } from "./stopwatch.ts";

/** Gets what one connection took, in milliseconds from connect(2). */
type Report = (activation: {
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
 * @param directory Where the contenders' programs are: in this checkout, and readable for all.
 */
export async function throughSystemd(
  machine: Machine,
  rounds: number,
  contenders: readonly Contender[],
  directory: string,
  record: Report,
): Promise<void> {
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

  await using stopwatch = new Stopwatch(machine);
  for (let round = -1; round < rounds; round++)
    // What systemd cleans up after one is in the time of the next.
    for (const { style, hardened, who, port, unit } of turns(variants, round)) {
      const { first, end } = await stopwatch.time(port);
      if (round >= 0) record({ style, hardened, who, first, end });
      if (style === "listen") await machine.must("systemctl", "stop", `${unit}.service`);
      await Bun.sleep(30);
    }
}
