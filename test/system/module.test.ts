/** The activation module in services of one's own, under a real systemd. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";

import { ask as askAll, closing, instances, roll, WAYS } from "../support/instances.ts";
import { restarts } from "../support/restarts.ts";
import { furtherLines, programs, README, units } from "../support/pages.ts";
import { CERTIFICATE } from "../support/listening.ts";
import { cannotRun, nothingFailed } from "./harness.ts";
import type { Tally } from "../support/http.ts";
import { until } from "../support/until.ts";
import { BUN, linkModule, Machine } from "../support/machine.ts";

setDefaultTimeout(60_000);

const PORT = 4100;
const SANDBOX = [
  ...["PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX"],
  ...["ProtectProc=invisible", "ProcSubset=pid"],
];

describe.skipIf(cannotRun)("a service on the module", () => {
  let machine: Machine;
  beforeAll(async () => {
    machine = await Machine.boot();
    await linkModule(machine);
    // For the units of the README, which start the programs in /srv.
    await machine.must("ln", "-s", "programs/node_modules", "/srv/node_modules");
    await machine.must("ln", "-sf", BUN, "/usr/local/bin/bun");
  });
  afterAll(() => nothingFailed(machine));

  /** Installs a program as a service, with a socket unit for it, and starts the latter. */
  async function install(name: string, source: string, service: string[], socket: string[]) {
    await machine.write(`/srv/programs/${name}.ts`, source);
    const unit = (section: string, lines: string[]) => `[${section}]\n${lines.join("\n")}\n`;
    const start = `ExecStart=${BUN} /srv/programs/${name}.ts`;
    const directory = "/run/systemd/system";
    await machine.write(
      `${directory}/${name}.service`,
      unit("Unit", ["StartLimitIntervalSec=0"]) + unit("Service", [start, ...service]),
    );
    if (socket.length > 0)
      await machine.write(`${directory}/${name}.socket`, unit("Socket", socket));
    await machine.systemctl("daemon-reload");
    if (socket.length > 0) await machine.systemctl("start", `${name}.socket`);
  }

  /**
   * Installs a service of the module's README: the units of http.ts with another name, and the further
   * lines that the page has for them. Starts its sockets.
   */
  async function copy(name: string, ...sockets: string[]) {
    const further = furtherLines(README);
    await machine.write(`/srv/${name}.ts`, programs(README).get(`${name}.ts`) ?? "");
    for (const unit of [`${name}.service`, `${name}.socket`, ...sockets]) {
      const [stem, suffix] = unit.split(".");
      const text =
        units(README)
          .get(`http.${suffix}`)
          ?.replace(/\bhttp\b/g, `${stem}`) ?? "";
      await machine.write(`/etc/systemd/system/${unit}`, text);
      const lines = further.get(unit);
      if (lines !== undefined)
        await machine.write(`/etc/systemd/system/${unit}.d/further.conf`, lines);
    }
    await machine.systemctl("daemon-reload");
    await machine.systemctl("enable", "--now", `${name}.socket`, ...sockets);
  }

  /** Runs a program as a service without a socket, until it is disposed of. */
  async function runs(name: string, source: string, ...service: string[]) {
    await install(name, source, ["Type=notify", ...service], []);
    await machine.systemctl("start", `${name}.service`);
    return {
      [Symbol.asyncDispose]: async () => void (await machine.systemctl("stop", `${name}.service`)),
    };
  }

  async function ask(port: number): Promise<Tally> {
    const client = machine.client(join(import.meta.dir, "../support/http.ts"), String(port));
    return JSON.parse(await client.stdout.text());
  }

  test("keeps its state across a restart in the descriptor store", async () => {
    await copy("counter");
    for (const count of [1, 2, 3]) expect((await ask(4000)).last).toBe(`${count}\n`);
    expect(await machine.show("counter.service", "NFileDescriptorStore")).toBe("1");
    await machine.systemctl("restart", "counter.service");
    for (const count of [4, 5]) expect((await ask(4000)).last).toBe(`${count}\n`);
    // Its descriptors stay in the store when it fails, too.
    await machine.systemctl("kill", "--signal=KILL", "counter.service");
    for (const count of [6, 7]) expect((await ask(4000)).last).toBe(`${count}\n`);
    await machine.systemctl("stop", "counter.socket", "counter.service");
  });

  test("has its TLS key by LoadCredential=, which each start reads anew", async () => {
    const key = "/etc/ssl/private/example.key";
    await machine.write(key, CERTIFICATE.key);
    await machine.must("chmod", "600", key);
    await machine.write("/etc/ssl/certs/example.crt", CERTIFICATE.cert);
    await copy("tls");
    const curl = ["curl", "--silent", "--show-error", "--insecure", "https://127.0.0.1:4000"];
    expect(await machine.must(...curl)).toBe("Hello");
    const pid = await machine.show("tls.service", "MainPID");
    const user = await machine.must("stat", "--format=%u", `/proc/${pid}`);
    expect(Number(user)).toBeGreaterThan(0);
    const read = await machine.run("setpriv", "--reuid", user, "--clear-groups", "cat", key);
    expect(read.stderr).toContain("Permission denied");
    // Each start reads it anew, and is tried again until it succeeds.
    await machine.write(key, "broken");
    expect((await machine.run("systemctl", "restart", "tls.service")).status).toBe(1);
    await machine.write(key, CERTIFICATE.key);
    expect(await machine.must(...curl)).toBe("Hello");
    await machine.systemctl("stop", "tls.socket", "tls.service");
  });

  test("has two sockets by their names", async () => {
    await copy("pair", "admin.socket");
    expect((await ask(4000)).last).toBe("Hello\n");
    const admin = ["nc", "127.0.0.1", "4001"];
    expect(await machine.must(...admin)).toBe("1 requests on 127.0.0.1:4000");
    expect(await machine.show("pair.service", "SubState")).toBe("running");
    await machine.systemctl("stop", "pair.socket", "admin.socket", "pair.service");
  });

  test("has a Unix socket for one group", async () => {
    await copy("http");
    const unix = ["curl", "--silent", "--show-error", "--unix-socket", "/run/http.sock"];
    expect(await machine.must(...unix, "http://http/hello/you")).toBe("Hello you");
    expect(await machine.must("stat", "--format=%G %a", "/run/http.sock")).toBe("www-data 660");
    expect(await machine.show("http.service", "StatusText")).toContain("/run/http.sock");
    await machine.systemctl("stop", "http.socket", "http.service");
    expect((await machine.run("stat", "/run/http.sock")).status).toBe(1);
  });

  for (const [name, sandbox] of [
    ["with no sandbox", []],
    ["in a sandbox with no network and AF_UNIX only", SANDBOX],
  ] as const)
    test(`drain loses no request in restarts, ${name}`, async () => {
      for (const [connections, pause] of [
        [64, 0],
        [256, 200],
      ] as const) {
        const load = { connections, pause, restarts: 3, requests: 10_000, sandbox };
        const tally = await restarts(machine, { end: "drain", grace: 400, ...load });
        expect(tally).toMatchObject({ lost: {}, last: "Hello\n" });
        expect(tally.answered).toBeGreaterThanOrEqual(10_000);
        expect(tally.connections).toBeGreaterThan(connections);
        expect(tally.status).toBe(`Serving http://127.0.0.1:${PORT}/`);
      }
    });

  for (const way of WAYS)
    test(`two instances of ${way} share the clients, and lose none when they restart in turn`, async () => {
      {
        await using _ = await instances(machine, way, 2);
        const { answers } = await askAll(machine, [400, 400]);
        // The kernel tosses a coin for each: this is six times the standard deviation.
        if (way === "web@.socket") expect(answers["1"]).toBeWithin(140, 260);
        const tally = await askAll(machine, [2000, 64, 100], () => roll(machine, 1, 100));
        expect(tally.lost).toEqual({});
        expect(Object.keys(tally.answers).toSorted()).toEqual(["1", "2"]);
      }
      // Newcomers, while a start takes a second: as long, a socket without NonBlocking=yes would block.
      const slow = (program: string) => `await Bun.sleep(1000);\n${closing(program)}`;
      await using _ = await instances(machine, way, 2, slow);
      const { lost, longest } = await askAll(machine, [100, 8, 10], () => roll(machine, 1, 0));
      expect(lost).toEqual({});
      expect(longest >= 1000).toBe(way === "web@.socket");
    });

  test("under bun --hot the next client gets the new code after an edit", async () => {
    const source = (version: number) => `
      import { passedFd, serve } from "socket-service/activation";
      serve({ fd: passedFd(), fetch: () => new Response("v${version}") });`;
    const start = ["ExecStart=", `ExecStart=${BUN} --hot /srv/programs/hot.ts`];
    await install("hot", source(0), start, [`ListenStream=127.0.0.1:${PORT}`]);
    for (let version = 0; version <= 10; version++) {
      if (version > 0) await machine.write("/srv/programs/hot.ts", source(version));
      await until(`version ${version} answers`, 10, async () => {
        const { last, lost } = await ask(PORT);
        expect(lost).toEqual({});
        return last === `v${version}`;
      });
    }
    await machine.systemctl("stop", "hot.socket", "hot.service");
  });

  const state = async (unit: string) =>
    `${await machine.show(unit, "ActiveState")} ${await machine.show(unit, "StatusText")}`;

  test("reports a link-local address with the number of its interface, except in a URL", async () => {
    const source = `
      import { drain, notify, passedFd, serve } from "socket-service/activation";
      const fetch = () => new Response("linked");
      const server = serve({ fd: passedFd(), fetch });
      const own = serve({ hostname: "fe80::1%lo", port: 0, fetch });
      const to = { hostname: "fe80::1%lo", port: own.port, socket: { data() {} } };
      const isDrained = await drain(own, { grace: 10 });
      const end = await Bun.connect(to).then(() => "connected", () => "refused");
      const status = [server.url, server.hostname, isDrained, end].join(" ");
      notify({ ready: true, status });`;
    await machine.must("ip", "address", "add", "fe80::1/64", "dev", "lo", "nodad");
    const listen = `ListenStream=[fe80::1]:${PORT}%%lo`;
    await install("linked", source, ["Type=notify"], [listen]);
    await machine.systemctl("start", "linked.service");
    expect(await state("linked.service")).toBe(
      `active http://[fe80::1]:${PORT}/ fe80::1%1 true refused`,
    );
    await machine.systemctl("stop", "linked.socket", "linked.service");
  });

  test("reports a reload, and its end", async () => {
    const source = `
      import { notify } from "socket-service/activation";
      process.on("SIGHUP", () => notify({ reloading: true, status: "reading" }));
      process.on("SIGUSR1", () => notify({ ready: true, status: "read" }));
      setInterval(() => {}, 1000);
      notify({ ready: true, status: "fresh" });`;
    const becomes = (wanted: string) =>
      until(wanted, 10, async () => (await state("reloads.service")) === wanted);
    const types = ["ExecReload=/bin/kill -HUP $MAINPID"];
    // systemd itself sends SIGHUP, and wants the time of the answer.
    if (machine.systemd >= 253) types.push("Type=notify-reload");
    for (const type of types) {
      await using _ = await runs("reloads", source, type);
      expect(await state("reloads.service")).toBe("active fresh");
      await machine.systemctl("reload", "--no-block", "reloads.service");
      await becomes("reloading reading");
      await machine.systemctl("kill", "--signal=USR1", "reloads.service");
      await becomes("active read");
    }
  });

  test("accepts the notifications of a child that names it, and no other of a child", async () => {
    // With NotifyAccess=main, the default of Type=notify, systemd drops the notifications of others.
    const child = `
      import { notify } from "socket-service/activation";
      notify({ status: "on behalf" }, { pid: process.ppid });
      notify({ status: "for itself" });`;
    await machine.write("/srv/programs/child.ts", child);
    const source = `
      import { notify, notifyBarrier } from "socket-service/activation";
      const { NOTIFY_SOCKET } = process.env;
      notify({ status: "alone" });
      if ("NOTIFY_SOCKET" in process.env) throw new Error("a child would inherit it");
      Bun.spawnSync([process.execPath, "/srv/programs/child.ts"], { env: { NOTIFY_SOCKET } });
      await notifyBarrier(5000);
      notify({ ready: true });
      setInterval(() => {}, 1000);`;
    await using _ = await runs("parent", source);
    expect(await state("parent.service")).toBe("active on behalf");
  });

  test.each([
    ["", ""],
    ["KillMode=mixed", "done"],
  ])("with %p, an answer that needs a child is %p at a stop", async (mode, answer) => {
    const source = `
      import { drain, notify, passedFd, serve } from "socket-service/activation";
      const child = ["sh", "-c", "sleep 3 && printf done"];
      const server = serve({
        fd: passedFd(),
        fetch() {
          notify({ status: "asked" });
          return new Response(Bun.spawn(child, { env: process.env }).stdout);
        },
      });
      process.on("SIGTERM", () => drain(server).then(() => process.exit()));
      notify({ ready: true });`;
    const service = ["Type=notify", ...(mode ? [mode] : [])];
    await install("kills", source, service, [`ListenStream=127.0.0.1:${PORT}`]);
    const curl = machine.must("curl", "--silent", "--show-error", `http://127.0.0.1:${PORT}`);
    await until("the request", 10, async () => (await state("kills.service")) === "active asked");
    await machine.systemctl("stop", "kills.socket", "kills.service");
    expect(await curl).toBe(answer);
  });

  test("knows after a barrier that systemd has handled its notifications", async () => {
    const source = `
      import { notify, notifyBarrier } from "socket-service/activation";
      const show = ["systemctl", "show", "--value", "--property=StatusText", "barrier.service"];
      for (let n = 0; n < 20; n++) {
        notify({ status: "step " + n });
        const handled = await notifyBarrier(5000);
        const told = Bun.spawnSync(show).stdout.toString().trim();
        if (!handled || told !== "step " + n) throw new Error(told);
      }
      notify({ ready: true, status: "all handled" });
      setInterval(() => {}, 1000);`;
    await using _ = await runs("barrier", source);
    expect(await state("barrier.service")).toBe("active all handled");
  });

  for (const [what, extend] of [
    ["starts for longer than its timeout if it extends it", "notify({ extendTimeoutUsec: 2e7 });"],
    ["fails to start within its timeout if it does not extend it", ""],
  ] as const)
    test.concurrent(what, async () => {
      const name = extend === "" ? "slow" : "slower";
      const source = `
        import { notify } from "socket-service/activation";
        ${extend}
        await Bun.sleep(2500);
        notify({ ready: true });
        setInterval(() => {}, 1000);`;
      await install(name, source, ["Type=notify", "TimeoutStartSec=1"], []);
      const { status } = await machine.run("systemctl", "start", `${name}.service`);
      const result = [status, await machine.show(`${name}.service`, "Result")];
      expect(result).toEqual(extend === "" ? [1, "timeout"] : [0, "success"]);
      await machine.run("systemctl", "stop", `${name}.service`);
      await machine.run("systemctl", "reset-failed", `${name}.service`);
    });

  for (const [what, then] of [
    ["it triggers it", `notify({ watchdog: "trigger" });`],
    ["its loop is stuck", "for (;;);"],
  ] as const)
    test.concurrent(`is ended by its watchdog if ${what}, and not before`, async () => {
      const name = what.replaceAll(" ", "-");
      const unit = `${name}.service`;
      const source = `
        import { notify, startWatchdog } from "socket-service/activation";
        startWatchdog(console.error);
        notify({ ready: true });
        // Longer than the interval: the pings have kept it alive.
        setTimeout(() => { ${then} }, 1500);
        setInterval(() => {}, 1000);`;
      await install(name, source, ["Type=notify", "WatchdogSec=1", "LimitCORE=0"], []);
      const began = performance.now();
      await machine.systemctl("start", unit);
      await machine.becomes(unit, "ActiveState", "failed");
      expect(await machine.show(unit, "Result")).toBe("watchdog");
      expect(performance.now() - began).toBeGreaterThan(1500);
      await machine.systemctl("reset-failed", unit);
    });

  test("drops a stored descriptor by its name", async () => {
    const source = `
      import { notify, notifyBarrier } from "socket-service/activation";
      notify({ fdStore: true, fdName: "one" }, { fds: [0] });
      notify({ fdStore: true, fdName: "two", fdPoll: false }, { fds: [1] });
      await notifyBarrier(5000);
      notify({ ready: true });
      process.on("SIGUSR1", () => notify({ fdStoreRemove: true, fdName: "one" }));
      setInterval(() => {}, 1000);`;
    const lines = ["FileDescriptorStoreMax=5", "StandardOutput=file:/run/stores.log"];
    await using _ = await runs("stores", source, ...lines);
    expect(await machine.show("stores.service", "NFileDescriptorStore")).toBe("2");
    await machine.systemctl("kill", "--signal=USR1", "stores.service");
    await machine.becomes("stores.service", "NFileDescriptorStore", "1");
  });
});
