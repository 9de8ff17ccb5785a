/** The installed units under a real systemd, one promise at a time. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { until } from "../support/until.ts";
import {
  cannotRun,
  Clients,
  dropIn,
  greeting,
  installed,
  journal,
  lacksFilters,
  nothingFailed,
  SERVICES,
  SOCKETS,
} from "./harness.ts";
import { CHECKOUT, type Machine } from "./machine.ts";

const SERVICE = "socket-service.service";

setDefaultTimeout(60_000);

const PER_CONNECTION = {
  RuntimeMaxUSec: "1min",
  SystemCallErrorNumber: "1",
  TimeoutStopUSec: "10s",
};
/** How fast a machine must be to reach the defaults differs: 64 at once, 200 in two seconds. */
const ACCEPTS = { MaxConnections: "1024", TriggerLimitIntervalUSec: "0" };
/** What systemd 255 and newer slow down at, instead of failing: the manual page names it. */
const SLOWS_DOWN = { PollLimitBurst: "150", PollLimitIntervalUSec: "2s" };
/** What systemd has in force: what takes long to be seen at work, or systemd-analyze passes over. */
const LIMITS: Record<string, Record<string, string>> = {
  [SERVICE]: {
    LimitNOFILE: "16384",
    PrivateIPC: "yes",
    RestartUSec: "500ms",
    StartLimitIntervalUSec: "0",
    SystemCallErrorNumber: "1",
    TimeoutStopUSec: "10s",
    WatchdogUSec: "10s",
  },
  "socket-service-accepted@1.service": PER_CONNECTION,
  "socket-service-inet@1.service": PER_CONNECTION,
  "socket-service.socket": { Listen: "127.0.0.1:4000 (Stream)" },
  "socket-service-accepted.socket": { Listen: "127.0.0.1:4001 (Stream)", ...ACCEPTS },
  "socket-service-inet.socket": { Listen: "127.0.0.1:4002 (Stream)", ...ACCEPTS },
};

/** What systemd-analyze sees that the drop-ins leave open; each says why. ProtectClock= has an rtc. */
const OPEN = ["RootDirectory=/RootImage=", "DeviceAllow="];
const OPEN_PER_CONNECTION = [
  "PrivateDevices=",
  "PrivateUsers=",
  "ProcSubset=",
  "ProtectControlGroups=",
  "ProtectHome=",
  "ProtectHostname=",
  "ProtectKernelLogs=",
  "ProtectKernelModules=",
  "ProtectKernelTunables=",
  "ProtectProc=",
];
const OPEN_LISTENER = ["MemoryDenyWriteExecute=", "RestrictAddressFamilies=~AF_UNIX"];

describe.skipIf(cannotRun)("units", () => {
  let machine: Machine;
  beforeAll(async () => {
    machine = await installed();
  });
  afterAll(async () => {
    await nothingFailed(machine);
  });

  const state = (unit: string) => machine.show(unit, "ActiveState");
  const one = (port: number) => greeting(machine, port);

  for (const { name, port } of SERVICES) {
    test(`a client of ${name}.socket gets the greeting and a clean end of file`, async () => {
      expect(await one(port)).toMatchObject({ begun: 1, served: 1, lost: {} });
    });
  }

  test("systemctl status shows Listening on, then Socket accepted", async () => {
    await machine.must("systemctl", "restart", SERVICE);
    const status = async () => (await machine.run("systemctl", "status", SERVICE)).stdout;
    expect(await status()).toContain('Status: "Listening on 127.0.0.1:4000');
    await one(4000);
    await until("the status names the accept", 5, async () =>
      (await status()).includes('Status: "Socket accepted'),
    );
  });

  test("an idle service ends, its socket still listens, and the next client starts it", async () => {
    await using _ = await dropIn(
      machine,
      SERVICE,
      "ExecStart=",
      "ExecStart=/usr/local/bin/socket-service --idle-timeout=0.2",
    );
    await machine.must("systemctl", "restart", SERVICE);
    await until("the service is inactive", 5, async () => (await state(SERVICE)) === "inactive");
    expect(await machine.show(SERVICE, "Result")).toBe("success");
    expect(await machine.show("socket-service.socket", "SubState")).toBe("listening");
    expect(await one(4000)).toMatchObject({ served: 1, lost: {} });
  });

  test("a stuck service is restarted by the watchdog and the clients that waited are served", async () => {
    await using _ = await dropIn(machine, SERVICE, "WatchdogSec=1");
    await machine.must("systemctl", "restart", SERVICE);
    const ping = () => machine.show(SERVICE, "WatchdogTimestampMonotonic");
    const first = await ping();
    await until("it has pinged", 5, async () => (await ping()) !== first);
    const main = await machine.show(SERVICE, "MainPID");
    await machine.must("kill", "-STOP", main);
    await using clients = new Clients(machine, "once", 4000, 20);
    await until("the watchdog has fired", 10, async () =>
      (await journal(machine, SERVICE)).some((line) => line.includes("Watchdog timeout")),
    );
    expect(await clients.finish()).toMatchObject({ begun: 20, served: 20, lost: {} });
    expect(await machine.show(SERVICE, "MainPID")).not.toBe(main);
  });

  test("a service that cannot start is tried again and again, says why, and recovers once repaired", async () => {
    await machine.must("systemctl", "stop", SERVICE);
    let clients: Clients;
    {
      await using _ = await dropIn(
        machine,
        SERVICE,
        "ExecStart=",
        "ExecStart=/usr/local/bin/socket-service --idle-timeout=soon",
      );
      clients = new Clients(machine, "once", 4000, 1);
      // It is tried more often than the limit on starts that systemd has by default.
      await until("it has been tried seven times", 20, async () => {
        return Number(await machine.show(SERVICE, "NRestarts")) >= 7;
      });
      await until("systemctl status tells of it", 5, async () =>
        (await machine.run("systemctl", "status", SERVICE)).stdout.includes("status=64"),
      );
      expect(await journal(machine, SERVICE)).toContainEqual(
        expect.stringMatching(/^3 .*--idle-timeout/),
      );
      expect(await state("socket-service.socket")).toBe("active");
      expect(await clients.tally()).toMatchObject({ begun: 1, served: 0, lost: {} });
    }
    // The client that came while it was broken has waited.
    expect(await clients.finish()).toMatchObject({ served: 1, lost: {} });
    expect(await state(SERVICE)).toBe("active");
  });

  test("stopping lets open connections finish, and is a success", async () => {
    await machine.must("systemctl", "start", SERVICE);
    await using clients = new Clients(machine, "silent", 4000, 10);
    await until("the clients are greeted", 5, async () => (await clients.tally()).served === 10);
    const before = performance.now();
    await machine.must("systemctl", "stop", SERVICE);
    // The clients do not close, so the service waits for them: five seconds from the greeting.
    expect(performance.now() - before).toBeWithin(4000, 6000);
    expect(await state(SERVICE)).toBe("inactive");
    expect(await machine.show(SERVICE, "Result")).toBe("success");
    expect(await clients.finish()).toMatchObject({ begun: 10, served: 10, lost: {} });
  });

  for (const { name, unit, port } of SERVICES.slice(1))
    test(`an error of ${name} goes to the journal, not to the client, and leaves no unit`, async () => {
      const start = `ExecStart=/usr/local/bin/${name} --no-such-option`;
      await using _ = await dropIn(machine, unit, "ExecStart=", start);
      expect(await one(port)).toMatchObject({ served: 0, lost: { 'got ""': 1 } });
      await until("the journal has the error", 5, async () =>
        (await journal(machine, `${name}@*`)).some((line) => /^3 .*--no-such-option/.test(line)),
      );
      const units = ["list-units", "--all", "--no-legend", `${name}@*`];
      await until(
        "it is not listed",
        5,
        async () => (await machine.must("systemctl", ...units)) === "",
      );
    });

  test("limits and what systemd-analyze passes over are in force", async () => {
    for (const [unit, known] of Object.entries(LIMITS)) {
      const slows = "MaxConnections" in known && machine.systemd >= 255;
      const properties = slows ? { ...known, ...SLOWS_DOWN } : known;
      const options = Object.keys(properties).map((name) => `--property=${name}`);
      const lines = (await machine.must("systemctl", "show", unit, ...options)).split("\n");
      const wanted = Object.entries(properties).map(([name, value]) => `${name}=${value}`);
      expect([unit, ...lines.toSorted()]).toEqual([unit, ...wanted.toSorted()]);
    }
  });

  test("the sockets are started at boot, and enabling socket-service enables its socket", async () => {
    const wanted = async () => (await machine.show("sockets.target", "Wants")).split(" ");
    expect(await wanted()).toEqual(expect.arrayContaining(SOCKETS));
    await machine.must("systemctl", "disable", "socket-service.socket");
    expect(await wanted()).not.toContain("socket-service.socket");
    await machine.must("systemctl", "enable", SERVICE);
    expect(await wanted()).toContain("socket-service.socket");
  });

  for (const { name, unit } of SERVICES)
    test(`systemd-analyze security finds nothing open in ${name} but what has its reason`, async () => {
      const instance = unit.replace("@", "@1");
      const analyze = ["systemd-analyze", "security", "--json=short", instance];
      const checks: { name: string; exposure: string | null }[] = JSON.parse(
        (await machine.run(...analyze)).stdout,
      );
      const known = [...OPEN, ...(unit === SERVICE ? OPEN_LISTENER : OPEN_PER_CONNECTION)];
      expect(checks.length).toBeGreaterThan(70);
      expect(
        checks.filter((check) => check.exposure !== null && !known.includes(check.name)),
      ).toEqual([]);
    });

  /** A process that has greeted a client: its unit, variables, and what its first descriptors are. */
  async function greeted(unit: string, port: number) {
    await using clients = new Clients(machine, "silent", port, 1);
    await until("there is a connection", 5, async () => (await clients.tally()).served === 1);
    // Of instances for earlier clients the last may be about to end.
    const process = await until("there is one process", 5, async () => {
      const pid = await machine.show(unit.replace("@", "@*"), "MainPID");
      return /^[1-9]\d*$/.test(pid) && pid;
    });
    const at = `/proc/${process}`;
    const environment = (await machine.must("cat", `${at}/environ`)).split("\0");
    const descriptors = await machine.must("readlink", `${at}/fd/0`, `${at}/fd/1`);
    const id = await machine.show(unit.replace("@", "@*"), "Id");
    await clients.finish();
    const names = environment.map((variable) => variable.replace(/=.*/s, ""));
    return { id, names, descriptors: descriptors.split("\n") };
  }

  test("socket-service-inet has its connection as standard input and output, not by number", async () => {
    const { names, descriptors } = await greeted("socket-service-inet@.service", 4002);
    expect(descriptors[0]).toStartWith("socket:");
    expect(descriptors[1]).toBe(descriptors[0]);
    expect(names).not.toContain("LISTEN_FDS");
  });

  test("an instance bears both addresses, from systemd 258 on after the connection's cookie", async () => {
    const since258 = machine.systemd >= 258;
    for (const { name, unit, port } of SERVICES.slice(1)) {
      const { id, names } = await greeted(unit, port);
      const number = since258 ? "\\d+-\\d+" : "\\d+";
      const address = "127\\.0\\.0\\.1";
      expect(id).toMatch(
        new RegExp(`^${name}@${number}-${address}:${port}-${address}:\\d+\\.service$`),
      );
      expect(names.includes("SO_COOKIE")).toBe(since258);
    }
  });

  test("from systemd 258 on a service is known by its pidfd too, and takes its socket", async () => {
    for (const { unit, port } of SERVICES.slice(0, 2)) {
      const { names } = await greeted(unit, port);
      expect(names).toContain("LISTEN_PID");
      expect(names.includes("LISTEN_PIDFDID")).toBe(machine.systemd >= 258);
    }
  });

  /** Puts an example of a manual page, told by one of its lines, into force as the page says. */
  async function example(page: string, line: string): Promise<AsyncDisposable> {
    const text = await machine.must("cat", `${CHECKOUT}/units/man/${page}`);
    const [, lines = ""] =
      text
        .split(".Bd ")
        .map((block) => /\[Socket\]\n([^]*?)\n(?:\n|\.Ed)/.exec(block))
        .find((found) => found?.[1]?.includes(line)) ?? [];
    expect(lines).toContain(line);
    const added = await dropIn(machine, "socket-service.socket", ...lines.split("\n"));
    const restart = async () => {
      await machine.must("systemctl", "stop", SERVICE);
      await machine.must("systemctl", "try-restart", "socket-service.socket");
    };
    await restart();
    return {
      async [Symbol.asyncDispose]() {
        await added[Symbol.asyncDispose]();
        await restart();
      },
    };
  }

  const netcat = async (host: string, port: number) =>
    (await machine.run("sh", "-c", `nc -w 2 ${host} ${port} </dev/null`)).stdout;

  test("the manual page's lines for ::1 as well have the service on both loopbacks", async () => {
    await using _ = await example("socket-service.units.7", "ListenStream=[::1]:4000");
    for (const host of ["127.0.0.1", "::1"])
      expect([host, await netcat(host, 4000)]).toEqual([host, "This is a test\n"]);
  });

  const filtering = test.skipIf(lacksFilters());
  filtering("the manual page's lines for one network keep all others out", async () => {
    const [inside, outside] = ["192.0.2.7", "198.51.100.7"];
    for (const address of [inside, outside])
      await machine.must("ip", "address", "add", `${address}/24`, "dev", "lo");
    await using _ = await example(
      "socket-service.units.7",
      "IPAddressAllow=localhost 192.0.2.0/24",
    );
    for (const host of ["127.0.0.1", "::1", inside, outside])
      expect([host, await netcat(host, 8000)]).toEqual([
        host,
        host === outside ? "" : "This is a test\n",
      ]);
  });

  test("no variable that changes what Bun runs reaches a process", async () => {
    const names = [
      "BUN_BE_BUN",
      "BUN_OPTIONS",
      "BUN_INSPECT",
      "BUN_INSPECT_CONNECT_TO",
      "NODE_CHANNEL_FD",
    ];
    await machine.must("systemctl", "stop", SERVICE);
    await machine.must("systemctl", "set-environment", ...names.map((name) => `${name}=1`));
    for (const { name, unit, port } of SERVICES) {
      const left = (await greeted(unit, port)).names.filter((name) => /^(BUN|NODE)_/.test(name));
      expect([name, ...left]).toEqual(unit === SERVICE ? [name] : [name, "BUN_JSC_useJIT"]);
    }
    await machine.must("systemctl", "unset-environment", ...names);
    await machine.must("systemctl", "stop", SERVICE);
  });
});
