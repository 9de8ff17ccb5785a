/** The commands of the README, each as it stands, in a booted machine that has a clone of its own. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { skipped } from "../support/needs.ts";
import { furtherLines, README as MODULE, ROOT } from "../support/pages.ts";
import { until } from "../support/until.ts";
import { cannotRun, lacksInside, nothingFailed, userOf } from "./harness.ts";
import { SERVICES } from "../support/services.ts";
import type { Tally } from "../support/http.ts";
import { BUN, CHECKOUT, Machine } from "../support/machine.ts";

setDefaultTimeout(60_000);

/** Where the README has the clone and the project. */
const CLONE = "/root/socket-service";
const PROJECT = "/srv/app";

/** Commands that run elsewhere. */
const ELSEWHERE: Record<string, string> = {
  "git clone URL socket-service && cd socket-service": "the machine has the checkout",
  "make test": "runs this file",
  "make test ROOT=dist/roots/trixie": "the same",
  "make unit": "a part of it",
  "make test-frameworks": "fetches frameworks: .ci/run",
  "make debian-root": "fetches a Debian: .ci/run",
  "make test ARCH=arm64": "needs an emulator: .ci/run",
  "make deb": "takes half a minute: deb.test.ts",
  "sudo apt-get install ./dist/socket-service_*_$(dpkg --print-architecture).deb": "the same",
  "make test-bun": "fetches other versions of Bun: .ci/run",
};

/** A command is a line of an indented block: the blocks of each section. */
const sections = new Map<string, string[][]>();
/** The files that a fenced block shows, by the name in its first line. */
const files = new Map<string, string>();
const readme = readFileSync(join(ROOT, "README.md"), "utf8");
for (const section of readme.split(/^## /m)) {
  const [title = ""] = section.split("\n");
  const blocks = section.replace(/^```[^]*?^```/gm, "").matchAll(/(?:^ {4}.*\n)+/gm);
  sections.set(
    title,
    [...blocks].map(([block]) => block.match(/(?<=^ {4}).*?(?=\s*(#.*)?$)/gm) ?? []),
  );
  for (const [, name = "", text = ""] of section.matchAll(/^```\w+\n\S+ (\S+)\n(.*?)^```/gms))
    files.set(name, text);
}

describe.skipIf(cannotRun)("the README", () => {
  let machine: Machine;
  const ran = new Set<string>(Object.keys(ELSEWHERE));

  beforeAll(async () => {
    machine = await Machine.boot();
    // The machine has the checkout read-only.
    await machine.must("mkdir", "-p", "/run/clone/new", "/run/clone/work", CLONE, PROJECT);
    const layers = `lowerdir=${CHECKOUT},upperdir=/run/clone/new,workdir=/run/clone/work`;
    await machine.must("mount", "-t", "overlay", "-o", layers, "overlay", CLONE);
    // Not the clone's: other users than root may not look there.
    await machine.must("ln", "-sf", BUN, "/usr/local/bin/bun");
    // A minimal Debian has no sudo, and root needs none.
    await machine.write("/usr/local/bin/sudo", '#!/bin/sh\nexec "$@"\n');
    await machine.must("chmod", "755", "/usr/local/bin/sudo");
    for (const [name, text] of files) await machine.write(`${PROJECT}/${name}`, text);
  });
  afterAll(() => nothingFailed(machine));

  const shell = (command: string, directory = CLONE): Promise<string> => {
    ran.add(command);
    return machine.must("env", `--chdir=${directory}`, "HOME=/root", "sh", "-c", command);
  };

  /** The blocks of a section; `count` is how many the test knows of. */
  function blocks(section: string, count: number): string[][] {
    const found = sections.get(section) ?? [];
    expect(found).toHaveLength(count);
    return found;
  }

  async function run(block: readonly string[] = [], directory = CLONE): Promise<void> {
    for (const command of block) await shell(command, directory);
  }

  /** Has the command that stands in for systemd run, in another terminal, for as long as `use` takes. */
  async function activated(command: string, directory: string, use: () => Promise<void>) {
    ran.add(command);
    const pid = await shell(`${command} >/run/clone/log 2>&1 & echo $!`, directory);
    await until(`${command} listens`, 10, async () => {
      const log = await machine.must("cat", "/run/clone/log");
      return log.match(/^Listening on/gm)?.length === command.match(/ -l /g)?.length;
    });
    try {
      await use();
    } finally {
      await machine.must("kill", pid);
      await machine.must("tail", `--pid=${pid}`, "--follow", "/dev/null");
    }
  }

  const GREETINGS = SERVICES.map(({ greeting }) => greeting.trim());

  test("shows the greetings with make demo", async () => {
    const said = await shell("make demo");
    for (const greeting of GREETINGS) expect(said).toContain(greeting);
  });

  test("shows each service under systemd-socket-activate, and nc its greeting", async () => {
    const [[first = ""] = [], [nc = ""] = [], others = []] = blocks("Try it", 3);
    for (const [i, command] of [first, ...others].entries())
      await activated(command, CLONE, async () => {
        expect(await shell(nc)).toBe(GREETINGS[i] ?? "");
      });
  });

  test("installs, upgrades, shows and removes the services", async () => {
    const [install, , upgrade, sockets, observe, remove] = blocks("Install the demo services", 6);
    const served = async () => {
      for (const [i, { port }] of SERVICES.entries())
        expect(await shell(`nc 127.0.0.1 ${port} </dev/null`)).toBe(GREETINGS[i] ?? "");
    };
    for (const block of [install, upgrade, sockets]) {
      await run(block);
      await served();
    }
    await run(observe);
    await run(remove);
    const found = ["find", "/usr/local", "/etc", "-name", "socket-service*"];
    expect(await machine.must(...found)).toBe("");
  });

  const [get, start, look, edited, ...own] = blocks("Your own service", 11);
  const [[activate = ""] = [], install, newCode, change, watch, remove, nginx = []] = own;
  const curl = (port: number) => `curl --silent --show-error http://127.0.0.1:${port}`;
  const SOCKET = "/etc/systemd/system/hello.socket";
  /** Has `hello.socket` listen elsewhere, as an editor does. */
  async function edit(lines: string): Promise<void> {
    const text = files.get("hello.socket") ?? "";
    await machine.write(SOCKET, text.replace(/^ListenStream=.*$/m, lines));
  }

  /** Restarts a service three times under clients that keep their connections. */
  async function restartedUnderLoad(service: string, port = 3000): Promise<void> {
    // Port, requests at least, connections, and the longest pause in milliseconds.
    const args = [`${port}`, "1000", "32", "50"];
    const client = machine.client(join(import.meta.dir, "../support/http.ts"), ...args);
    const output = client.stdout.text();
    for (let i = 0; i < 3; i++) await machine.systemctl("restart", service);
    await client.stdin.end();
    const tally: Tally = JSON.parse(await output);
    expect(tally).toMatchObject({ lost: {}, last: "Hello\n" });
    expect(tally.answered).toBeGreaterThanOrEqual(1000);
  }

  test("has an unchanged program of the reader's running, and restarted with no request lost", async () => {
    await run(get, PROJECT);
    const program = `export default { fetch: () => new Response(process.getuid() + "\\n") };\n`;
    await machine.write(`${PROJECT}/index.ts`, program);
    await run(start, PROJECT);
    expect(await shell(curl(3000))).toBe(await machine.must("id", "--user", "www-data"));
    await run(look, PROJECT);
    await machine.write(`${PROJECT}/index.ts`, program.replace("process.getuid()", `"Hello"`));
    await run(edited, PROJECT);
    expect(await shell(curl(3000))).toBe("Hello");
    expect(await machine.show("app.service", "StatusText")).toBe("Listening on 127.0.0.1:3000");
    await restartedUnderLoad("app.service");
  });

  test("has it asleep, not failed, if it exits with 143 at SIGTERM", async () => {
    const program = `export default { fetch: () => new Response("Hello") };
      process.on("SIGTERM", () => process.exit(143));`;
    await machine.write(`${PROJECT}/index.ts`, program);
    await machine.systemctl("restart", "app.service");
    expect(await shell(curl(3000))).toBe("Hello");
    await machine.systemctl("kill", "--kill-whom=main", "app.service");
    await machine.becomes("app.service", "ActiveState", "inactive");
    expect(await machine.show("app.service", "Result")).toBe("success");
    expect(await machine.show("app.service", "NRestarts")).toBe("0");
  });

  test("has it on two sockets, with the further lines of the module's page", async () => {
    const program = ["9100", "3000"].map(
      (port) => `Bun.serve({ port: ${port}, fetch: () => new Response("${port}") });`,
    );
    await machine.write(`${PROJECT}/index.ts`, program.join("\n"));
    const units = "/etc/systemd/system";
    const further = furtherLines(MODULE);
    const text = files
      .get("app.socket")
      ?.replace(/^ListenStream=.*$/m, "ListenStream=127.0.0.1:81");
    await machine.write(`${units}/metrics.socket`, text ?? "");
    for (const unit of ["app.socket", "metrics.socket", "app.service"])
      await machine.write(`${units}/${unit}.d/further.conf`, further.get(unit) ?? "");
    const [, commands = ""] =
      /After=metrics[^]*?\n\n((?: {4}.*\n)+)/.exec(readFileSync(MODULE, "utf8")) ?? [];
    expect(commands).toContain("metrics.socket");
    await shell(`set -e\n${commands}`);
    expect(await shell(curl(3000))).toBe("3000");
    expect(await shell(curl(81))).toBe("9100");
    await machine.systemctl("disable", "--now", "app.socket", "metrics.socket");
    await machine.systemctl("stop", "app.service");
  });

  test("has a service of the reader's own running", async () => {
    await activated(activate, PROJECT, async () => expect(await shell(curl(3000))).toBe("Hello"));
    await run(install, PROJECT);
    expect(await shell(curl(3000))).toBe("Hello");
    expect(await shell("systemctl is-active hello.service")).toBe("active");
  });

  test("has it restarted with no client turned away and no request lost", () =>
    restartedUnderLoad("hello.service"));

  test("has its new code running", async () => {
    const source = files.get("hello.ts") ?? "";
    for (const text of ["Edited", "Hello"]) {
      await machine.write(`${PROJECT}/hello.ts`, source.replace("Hello", text));
      await run(newCode, PROJECT);
      expect(await shell(curl(3000))).toBe(text);
    }
  });

  test("has it on another port after a change of the socket", async () => {
    await edit("ListenStream=127.0.0.1:3001");
    await run(change);
    expect(await shell(curl(3001))).toBe("Hello");
    expect((await machine.run("sh", "-c", curl(3000))).stderr).toContain("connect");
    expect(await machine.show("hello.service", "StatusText")).toBe(
      "Serving http://127.0.0.1:3001/",
    );
  });

  test("has it name the fault if only the service is restarted", async () => {
    await edit("ListenStream=127.0.0.1:3002");
    await machine.systemctl("daemon-reload");
    const { status, stderr } = await machine.run("systemctl", "restart", "hello.service");
    expect(status).toBe(1);
    expect(stderr).toContain("Job for hello.service failed");
    const log = await machine.must("journalctl", "--unit=hello.service", "--lines=20");
    expect(log).toMatch(
      /no socket was passed.*systemctl stop hello.socket && systemctl start hello.socket/,
    );
    const listening = await machine.must("ss", "--listening", "--tcp", "--numeric", "--no-header");
    expect(listening.match(/\S+:300\d(?= )/g)).toBeNull();
    await run(change);
    expect(await shell(curl(3002))).toBe("Hello");
    await run(watch);
  });

  test("has it on a Unix socket, which only nginx can reach, and restarted with no answer lost", async () => {
    const [lines = ""] = readme.match(/^ListenStream=\/(.*\n)+?(?=```)/m) ?? [];
    await edit(lines.trimEnd());
    // Debian's own, if it is there.
    const hasNginx = (await machine.run("test", "-e", "/usr/sbin/nginx")).status === 0;
    if (hasNginx) await machine.systemctl("start", "nginx.service");
    else skipped("the README's nginx", "it is tried where nginx is installed");
    for (const command of nginx)
      if (hasNginx || !command.includes("nginx")) await shell(command, PROJECT);
      else ran.add(command);
    const unix = ["curl", "--silent", "--unix-socket", "/run/hello.sock", "http://hello/"];
    expect(await machine.must(...unix)).toBe("Hello");
    expect(await machine.must("stat", "--format=%G %a", "/run/hello.sock")).toBe("www-data 660");
    const other = ["setpriv", "--reuid=nobody", "--clear-groups", ...unix];
    // With the exit status of curl: it could not connect.
    expect((await machine.run(...other)).status).toBe(7);
    if (!hasNginx) return;
    expect(await shell(curl(8080))).toBe("Hello");
    await restartedUnderLoad("hello.service", 8080);
    await machine.systemctl("stop", "nginx.service");
  });

  test.skipIf(lacksInside("pam_systemd.so", "dbus.socket"))(
    "has it under systemctl --user without DynamicUser=",
    async () => {
      await machine.systemctl("disable", "--now", "hello.socket", "hello.service");
      await using user = await userOf(machine, "someone");
      const manager = (...args: string[]) => user.must("systemctl", "--user", ...args);
      const directory = "/home/someone/.config/systemd/user";
      for (const name of ["hello.socket", "hello.service"]) {
        const text = files.get(name)?.replace("DynamicUser=yes\n", "") ?? "";
        await machine.write(`${directory}/${name}`, text);
      }
      await machine.must("chown", "--recursive", "someone:", "/home/someone/.config");
      await manager("daemon-reload");
      await manager("enable", "--now", "hello.socket");
      expect(await shell(curl(3000))).toBe("Hello");
      expect(await manager("is-active", "hello.service")).toBe("active");
      const log = await machine.must("journalctl", `_UID=${user.id}`, "--boot");
      expect(log).not.toContain("not supported");
    },
  );

  test("has it removed", async () => {
    await run(remove);
    const found = ["find", "/etc/systemd", "/usr/local", "/run", "-name", "hello*"];
    expect(await machine.must(...found)).toBe("");
  });

  test("says how to work on it", async () => {
    for (const command of ["make format", "make check"]) await shell(command);
    expect(await shell("make help")).toContain("make install");
  });

  test("has no other commands", () => {
    const all = [...sections.values()].flat(2);
    expect(all.filter((command) => !ran.has(command))).toEqual([]);
  });
});
