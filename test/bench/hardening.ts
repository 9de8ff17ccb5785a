/**
 * What the hardening drop-ins cost and give. For each service: the time until a client has the first
 * byte of a connection that starts the service, and the exposure that `systemd-analyze security`
 * sees, with no hardening, with each group of directives alone (what stands between two blank lines
 * of the drop-in), and with the whole drop-in. All variants are units of one booted systemd.
 */
import { join } from "node:path";

import { CHECKOUT, type Machine } from "../support/machine.ts";
import { services, styles, turns } from "./contenders.ts";
import type { Recorder } from "./figures.ts";
import { Stopwatch } from "./stopwatch.ts";

/** The variants without a drop-in, and with all of it. */
export const [NONE, ALL] = ["no directive", "all directives"] as const;
export const sandboxGroup = (service: string): string => `sandbox, ${service}`;

interface Variant {
  /** The names of its directives. */
  readonly title: string;
  readonly directives: readonly string[];
}

const units = join(import.meta.dir, "../../units");

async function variantsOf(unit: string): Promise<Variant[]> {
  const text = await Bun.file(join(units, `${unit}.d/50-hardening.conf`)).text();
  const [, body = ""] = text.split("[Service]\n");
  const groups = body.split("\n\n").map((block) => {
    const directives = block.split("\n").filter((line) => /^\w/.test(line));
    const [first = "", ...others] = new Set(
      directives.map((line) => `\`${line.replace(/=.*/, "=")}\``),
    );
    // A row of the table is no wider than a terminal.
    const title =
      others.length > 2 ? `${first} and ${others.length} others` : [first, ...others].join(" ");
    return { title, directives };
  });
  const all = groups.flatMap(({ directives }) => directives);
  return [{ title: NONE, directives: [] }, ...groups, { title: ALL, directives: all }];
}

/** Activates each service in each variant once a round. */
export async function sandboxes(machine: Machine, rounds: number, record: Recorder): Promise<void> {
  await machine.must("make", "-C", CHECKOUT, "install");
  const all: { group: string; title: string; port: number; unit: string }[] = [];
  for (const style of styles) {
    const name = services[style];
    const suffix = style === "listen" ? ".service" : "@.service";
    const service = (await Bun.file(join(units, `${name}${suffix}`)).text()).replace(
      "@BINDIR@",
      "/usr/local/bin",
    );
    const socket = await Bun.file(join(units, `${name}.socket`)).text();
    for (const { title, directives } of await variantsOf(`${name}${suffix}`)) {
      const port = 5000 + all.length;
      const at = `/run/systemd/system/bench-${port}`;
      const listen = `ListenStream=127.0.0.1:${port}`;
      await machine.write(`${at}.socket`, socket.replace(/ListenStream=.*/, listen));
      await machine.write(`${at}${suffix}`, service);
      const dropIn = `[Service]\n${directives.join("\n")}\n`;
      await machine.write(`${at}${suffix}.d/50-hardening.conf`, dropIn);
      all.push({ group: sandboxGroup(name), title, port, unit: `bench-${port}${suffix}` });
    }
  }
  await machine.must("systemctl", "daemon-reload");
  await machine.must("systemctl", "start", ...all.map(({ port }) => `bench-${port}.socket`));
  for (const { group, title, unit } of all) {
    const { stdout } = await machine.run("systemd-analyze", "security", unit.replace("@", "@1"));
    const [, exposure] = /Overall exposure level for .*: ([\d.]+)/.exec(stdout) ?? [];
    record(group, "exposure", title, Number(exposure));
  }

  await using stopwatch = new Stopwatch(machine);
  for (let round = -1; round < rounds; round++)
    // The end of one is in the time of the next.
    for (const { group, title, port, unit } of turns(all, round)) {
      const { first } = await stopwatch.time(port);
      if (round >= 0) record(group, "first byte ms", title, first);
      if (!unit.includes("@")) await machine.must("systemctl", "stop", unit);
      await Bun.sleep(40);
    }
}
