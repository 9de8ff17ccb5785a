/** The installed units under a real systemd, one promise at a time. */
import { readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { until } from "../support/until.ts";
import { cannotRun, Clients, dropIn, greeting, installed, journal } from "./harness.ts";
import { lacksFilters, netcat, nothingFailed, noUnits, runs, SOCKETS } from "./harness.ts";
import { SERVICES } from "../support/services.ts";
import type { Machine } from "../support/machine.ts";

const SERVICE = "socket-service.service";

setDefaultTimeout(60_000);

/**
 * All that a unit sets, as systemd has it in force: each property in which it differs from a unit that
 * sets nothing. A directive that is left out, weakened or new is seen here.
 */
const yes = (...names: string[]) => Object.fromEntries(names.map((name) => [name, "yes"]));
const SANDBOX = {
  ...yes("DynamicUser", "LockPersonality", "NoNewPrivileges", "PrivateMounts", "PrivateNetwork"),
  ...yes("PrivateTmp", "ProtectClock", "RemoveIPC", "RestrictNamespaces", "RestrictRealtime"),
  ...yes("RestrictSUIDSGID"),
  CapabilityBoundingSet: "",
  DevicePolicy: "closed",
  IPAddressDeny: "0.0.0.0/0 ::/0",
  ProtectSystem: "strict",
  SystemCallArchitectures: "native",
  SystemCallErrorNumber: "1",
  UMask: "0777",
  UnsetEnvironment: "BUN_INSPECT BUN_INSPECT_CONNECT_TO BUN_OPTIONS BUN_BE_BUN NODE_CHANNEL_FD",
};
const PER_CONNECTION = {
  ...SANDBOX,
  CollectMode: "inactive-or-failed",
  Environment: "BUN_JSC_useJIT=0",
  MemoryDenyWriteExecute: "yes",
  ProtectHome: "read-only",
  RestrictAddressFamilies: "",
  RuntimeMaxUSec: "1min",
  SystemCallFilter: "denies",
  TimeoutStopUSec: "10s",
};
const SOCKET = { StartLimitIntervalUSec: "0", WantedBy: "sockets.target" };
const ACCEPTS = {
  ...SOCKET,
  Accept: "yes",
  MaxConnections: "1024",
  TriggerLimitBurst: "200",
  TriggerLimitIntervalUSec: "0",
};
const bin = (name: string) => ({ ExecStart: `/usr/local/bin/${name}` });
const SETS: Record<string, Record<string, string>> = {
  [SERVICE]: {
    ...SANDBOX,
    ...bin("socket-service"),
    ...yes("PrivateDevices", "PrivateIPC", "PrivateUsers", "ProtectControlGroups", "ProtectHome"),
    ...yes("ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules"),
    LimitNOFILE: "16384",
    NotifyAccess: "main",
    ProcSubset: "pid",
    ProtectProc: "invisible",
    Restart: "on-failure",
    RestartUSec: "500ms",
    RestrictAddressFamilies: "AF_UNIX",
    StartLimitBurst: "3000",
    StartLimitIntervalUSec: "5min",
    SystemCallFilter: "allows",
    TimeoutStopUSec: "10s",
    Type: "notify",
  },
  "socket-service-accepted@1.service": { ...PER_CONNECTION, ...bin("socket-service-accepted") },
  "socket-service-inet@1.service": {
    ...PER_CONNECTION,
    ...bin("socket-service-inet"),
    StandardError: "journal",
    StandardInput: "socket",
    StandardOutput: "socket",
  },
  "socket-service.socket": {
    ...SOCKET,
    Listen: "127.0.0.1:4000 (Stream)",
    TriggerLimitBurst: "200",
  },
  "socket-service-accepted.socket": { ...ACCEPTS, Listen: "127.0.0.1:4001 (Stream)" },
  "socket-service-inet.socket": { ...ACCEPTS, Listen: "127.0.0.1:4002 (Stream)" },
};
/** The words of a value in one order: systemd has them in another from version to version. */
const sorted = (words: string) => words.split(" ").toSorted().join(" ");
/** Names, states, and properties that follow from others, from Accept= for example. */
const PASSED_OVER = new RegExp(
  `Timestamp|Kills$|Ex$|^(${[
    "Id Names Description Documentation FragmentPath DropInPaths UnitFileState ActiveState SubState",
    "ConditionResult AssertResult InvocationID ControlGroup ControlGroupId CPUUsageNSec",
    "FileDescriptorName MemoryCurrent MemoryPeak MemoryAvailable TasksCurrent NAccepted After Before",
    "Wants Requires RequiredBy Triggers TriggeredBy Slice RequiresMountsFor WantsMountsFor",
    "CanLiveMount DeviceAllow User Group LimitNOFILESoft SetLoginEnvironment TimeoutAbortUSec",
    "RestartUSecNext ExecMainCode ExecMainPID ExecMainStatus NRestarts StatusText WatchdogUSec",
  ]
    .join(" ")
    .replaceAll(" ", "|")})$`,
);

/** The directives that the drop-ins leave out. Each drop-in says why. ProtectClock= has an rtc. */
const OPEN = ["RootDirectory=/RootImage=", "DeviceAllow="];
const OPEN_PER_CONNECTION = [
  ...["PrivateDevices=", "PrivateUsers=", "ProcSubset=", "ProtectControlGroups=", "ProtectHome="],
  ...["ProtectHostname=", "ProtectKernelLogs=", "ProtectKernelModules=", "ProtectKernelTunables="],
  "ProtectProc=",
];
const OPEN_LISTENER = [
  ...["MemoryDenyWriteExecute=", "ProtectKernelTunables=", "RestrictAddressFamilies=~AF_UNIX"],
];

/** The literal block of the units' manual page that has a line such as this one. */
function manualBlock(line: string): string[] {
  const path = join(import.meta.dir, "../../units/man/socket-service.units.7");
  const page = readFileSync(path, "utf8");
  const blocks = [...page.matchAll(/^\.Bd -literal.*\n([^]*?)\n\.Ed$/gm)];
  const found = blocks
    .map(([, text = ""]) => text)
    .filter((text) => text.split("\n").includes(line));
  // The page may repeat a block.
  expect([line, new Set(found).size]).toEqual([line, 1]);
  return found[0]?.split("\n") ?? [];
}

describe.skipIf(cannotRun)("units", () => {
  let machine: Machine;
  beforeAll(async () => void (machine = await installed()));
  afterAll(() => nothingFailed(machine));

  const state = (unit: string) => machine.show(unit, "ActiveState");
  const one = (port: number) => greeting(machine, port);

  for (const { name, port } of SERVICES) {
    test(`a client of ${name}.socket gets the greeting and a clean end of file`, async () => {
      expect(await one(port)).toMatchObject({ begun: 1, served: 1, lost: {} });
    });
  }

  test("systemctl status shows Listening on, then Socket accepted", async () => {
    await machine.systemctl("restart", SERVICE);
    const status = async () => (await machine.run("systemctl", "status", SERVICE)).stdout;
    expect(await status()).toContain('Status: "Listening on 127.0.0.1:4000');
    await one(4000);
    await until("the status names the accept", 5, async () =>
      (await status()).includes('Status: "Socket accepted'),
    );
  });

  test("an idle service ends, its socket still listens, and the next client starts it", async () => {
    await using _ = await dropIn(machine, SERVICE, ...runs("socket-service --idle-timeout=0.2"));
    await machine.systemctl("restart", SERVICE);
    await machine.becomes(SERVICE, "ActiveState", "inactive", 5);
    expect(await machine.show(SERVICE, "Result")).toBe("success");
    expect(await machine.show("socket-service.socket", "SubState")).toBe("listening");
    expect(await one(4000)).toMatchObject({ served: 1, lost: {} });
  });

  test("a stuck service is restarted by the watchdog and the clients that waited are served", async () => {
    await using _ = await dropIn(machine, SERVICE, "WatchdogSec=1");
    await machine.systemctl("restart", SERVICE);
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
    await machine.systemctl("stop", SERVICE);
    let clients: Clients;
    {
      await using _ = await dropIn(machine, SERVICE, ...runs("socket-service --idle-timeout=soon"));
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
    await machine.systemctl("start", SERVICE);
    const begun = performance.now();
    await using clients = new Clients(machine, "silent", 4000, 10);
    await until("the clients are greeted", 10, async () => (await clients.tally()).served === 10);
    const stopped = performance.now();
    await machine.systemctl("stop", SERVICE);
    // The clients do not close, so the service waits for them: five seconds from the greeting.
    expect(performance.now() - begun).toBeGreaterThan(5000);
    expect(performance.now() - stopped).toBeLessThan(7000);
    expect(await state(SERVICE)).toBe("inactive");
    expect(await machine.show(SERVICE, "Result")).toBe("success");
    expect(await clients.finish()).toMatchObject({ begun: 10, served: 10, lost: {} });
  });

  for (const { name, unit, port } of SERVICES.slice(1))
    test(`an error of ${name} goes to the journal, not to the client, and leaves no unit`, async () => {
      await using _ = await dropIn(machine, unit, ...runs(`${name} --no-such-option`));
      expect(await one(port)).toMatchObject({ served: 0, lost: { 'got ""': 1 } });
      await until("the journal has the error", 5, async () =>
        (await journal(machine, `${name}@*`)).some((line) => /^3 .*--no-such-option/.test(line)),
      );
      await noUnits(machine, `${name}@*`);
    });

  /** The properties of a unit, but for those that are passed over. The order of words says nothing. */
  async function properties(unit: string): Promise<Map<string, string>> {
    const lines = (await machine.systemctl("show", "--all", unit)).split("\n");
    const pairs = lines.map((line): [string, string] => {
      const [name = "", value = ""] = line.split(/=(.*)/s);
      if (name === "ExecStart") return [name, /argv\[\]=(.*?) ;/.exec(value)?.[1] ?? value];
      // The calls differ from machine to machine; systemd-analyze knows the groups.
      if (name === "SystemCallFilter" && value !== "~")
        return [name, value.startsWith("~") ? "denies" : "allows"];
      return [name, sorted(value)];
    });
    return new Map(pairs.filter(([name]) => !PASSED_OVER.test(name)));
  }

  test("each unit sets the properties in the tables above, and no others", async () => {
    const nothing = {
      service: "[Service]\nExecStart=true\n",
      socket: "[Socket]\nListenStream=9\n",
    };
    for (const [kind, text] of Object.entries(nothing))
      for (const name of ["nothing", "nothing@"])
        await machine.write(`/run/systemd/system/${name}.${kind}`, text);
    await machine.systemctl("daemon-reload");
    await machine.systemctl("stop", SERVICE);
    for (const [unit, sets] of Object.entries(SETS)) {
      const plain = await properties(unit.replace(/^[^@.]*/, "nothing"));
      const differs = [...(await properties(unit))].filter(
        ([name, value]) => plain.get(name) !== value,
      );
      // systemd 255 and newer slow down at this limit, instead of failing: the manual page names it.
      const slows = "Accept" in sets && machine.systemd >= 255 ? { PollLimitBurst: "150" } : {};
      const wanted = Object.entries({ ...sets, ...slows }).map(
        ([name, value]): [string, string] => [name, sorted(value)],
      );
      expect([unit, Object.fromEntries(differs)]).toEqual([unit, Object.fromEntries(wanted)]);
    }
    const requires = await machine.show(SERVICE, "Requires");
    expect(requires.split(" ")).toContain("socket-service.socket");
    // This one is shown of a service that runs.
    await machine.systemctl("start", SERVICE);
    expect(await machine.show(SERVICE, "WatchdogUSec")).toBe("10s");
  });

  test("the sockets are started at boot, and enabling socket-service enables its socket", async () => {
    const wanted = async () => (await machine.show("sockets.target", "Wants")).split(" ");
    expect(await wanted()).toEqual(expect.arrayContaining(SOCKETS));
    await machine.systemctl("disable", "socket-service.socket");
    expect(await wanted()).not.toContain("socket-service.socket");
    await machine.systemctl("enable", SERVICE);
    expect(await wanted()).toContain("socket-service.socket");
  });

  for (const { name, unit } of SERVICES)
    test(`systemd-analyze security finds nothing open in ${name} without a reason`, async () => {
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

  /** A process that has greeted a client: its unit, its variables, and its first descriptors. */
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

  test("socket-service-inet has its connection as standard input and output, and no LISTEN_FDS", async () => {
    const { names, descriptors } = await greeted("socket-service-inet@.service", 4002);
    expect(descriptors[0]).toStartWith("socket:");
    expect(descriptors[1]).toBe(descriptors[0]);
    expect(names).not.toContain("LISTEN_FDS");
  });

  test("the name of an instance has both addresses, from systemd 258 on after a cookie", async () => {
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

  const runBlock = async (line: string) => {
    for (const command of manualBlock(line)) await machine.must("sh", "-c", command);
  };

  /** Puts the settings of such a block into force as the page says. */
  async function example(line: string, unit = "socket-service.socket"): Promise<AsyncDisposable> {
    const added = await dropIn(machine, unit, ...manualBlock(line));
    const reopen = async () => {
      if (unit.endsWith(".socket")) await runBlock("systemctl stop socket-service.socket");
    };
    await reopen();
    return {
      async [Symbol.asyncDispose]() {
        await added[Symbol.asyncDispose]();
        await reopen();
      },
    };
  }

  const receive = (host: string, port: number | string) => netcat(machine, `${host} ${port}`);

  test("the manual page's lines for ::1 as well have the service on both loopbacks", async () => {
    await using _ = await example("ListenStream=[::1]:4000");
    for (const host of ["127.0.0.1", "::1"])
      expect([host, await receive(host, 4000)]).toEqual([host, "This is a test\n"]);
  });

  const filtering = test.skipIf(lacksFilters());
  filtering("the manual page's lines for one network keep all others out", async () => {
    const [inside, outside] = ["192.0.2.7", "198.51.100.7"];
    for (const address of [inside, outside])
      await machine.must("ip", "address", "add", `${address}/24`, "dev", "lo");
    await using _ = await example("IPAddressAllow=localhost 192.0.2.0/24");
    for (const host of ["127.0.0.1", "::1", inside, outside])
      expect([host, await receive(host, 8000)]).toEqual([
        host,
        host === outside ? "" : "This is a test\n",
      ]);
  });

  test("the manual page's FreeBind= opens the ports before an address is there, and then that", async () => {
    const missing = await dropIn(machine, "socket-service.socket", "ListenStream=203.0.113.9:4000");
    await machine.systemctl("stop", "socket-service.socket");
    const { status } = await machine.run("systemctl", "start", "socket-service.socket");
    expect([status, await receive("127.0.0.1", 4000)]).toEqual([1, ""]);
    await missing[Symbol.asyncDispose]();
    await using _ = await example("FreeBind=yes");
    expect(await receive("127.0.0.1", 4000)).toBe("This is a test\n");
    await machine.must("ip", "address", "add", "203.0.113.9/32", "dev", "lo");
    expect(await receive("203.0.113.9", 4000)).toBe("This is a test\n");
  });

  test("the manual page's Unix socket is for one group, and goes when it stops", async () => {
    const path = "/run/socket-service";
    {
      await using _ = await example(`ListenStream=${path}`);
      const format = "--format=%F %a %U %G";
      expect(await machine.must("stat", format, path)).toBe("socket 660 root users");
      expect(await receive("-U", path)).toBe("This is a test\n");
      await machine.systemctl("stop", "socket-service.socket");
      expect((await machine.run("test", "-e", path)).status).toBe(1);
    }
    // Not so in the directory that goes with the service.
    await using _socket = await dropIn(machine, "socket-service.socket", `ListenStream=${path}/s`);
    await using _service = await dropIn(machine, SERVICE, "RuntimeDirectory=socket-service");
    await runBlock("systemctl stop socket-service.socket");
    expect(await receive("-U", `${path}/s`)).toBe("This is a test\n");
    await machine.systemctl("stop", SERVICE);
    expect(await receive("-U", `${path}/s`)).toBe("");
    await machine.systemctl("stop", "socket-service.socket");
  });

  test("a socket may be started as often as one likes", async () => {
    for (const socket of SOCKETS)
      for (let i = 0; i < 8; i++)
        for (const action of ["stop", "start"]) await machine.systemctl(action, socket);
  });

  test("the manual page's LogLevelMax= leaves the journal the errors only", async () => {
    const unit = "socket-service-accepted@.service";
    const said = async () => {
      const shown = await machine.must("journalctl", "-n", "0", "--show-cursor");
      const cursor = /^-- cursor: (.*)$/m.exec(shown)?.[1];
      await one(4001);
      await noUnits(machine, "socket-service-accepted@*");
      const after = ["--quiet", "--output=cat", `--after-cursor=${cursor}`];
      const lines = (await machine.must("journalctl", ...after)).split("\n");
      // systemd 262 warns of the pids controller where the kernel of this machine keeps it (cgroup v1).
      return lines.filter((line) => /-accepted[@:]/.test(line) && !line.includes("pids.max"));
    };
    expect(await said()).toEqual([
      expect.stringContaining("(127.0.0.1:"),
      expect.stringContaining("Deactivated"),
    ]);
    await using _ = await example("LogLevelMax=notice", unit);
    expect(await said()).toEqual([]);
    const start = "ExecStart=/usr/local/bin/socket-service-accepted --no-such-option";
    const path = `/run/systemd/system/${unit}.d/95-test.conf`;
    await machine.write(path, `[Service]\nExecStart=\n${start}\n`);
    await machine.systemctl("daemon-reload");
    expect(await said()).toContainEqual(expect.stringContaining("--no-such-option"));
    await machine.must("rm", path);
  });

  test("where standard error is the connection, as under inetd, the client receives the error", async () => {
    const settings = ["StandardError=socket", ...runs("socket-service-inet --no-such-option")];
    await using _ = await dropIn(machine, "socket-service-inet@.service", ...settings);
    expect(await receive("127.0.0.1", 4002)).toContain("--no-such-option");
  });

  test("STOPPING=1 begins the time of TimeoutStopSec=", async () => {
    const script = "systemd-notify --ready; systemd-notify STOPPING=1; exec sleep 60";
    const settings = ["Type=notify", "NotifyAccess=all", "TimeoutStopSec=500ms"];
    const run = ["--quiet", "--wait", ...settings.map((setting) => `--property=${setting}`)];
    const began = performance.now();
    const { status } = await machine.run("systemd-run", ...run, "sh", "-c", script);
    expect(status).not.toBe(0);
    expect(performance.now() - began).toBeLessThan(20_000);
    await machine.systemctl("reset-failed");
  });

  test("with PrivatePIDs= of systemd 257 and newer the service finds no socket, and exits with 78", async () => {
    if (machine.systemd < 257) return;
    await machine.systemctl("stop", SERVICE);
    await using _ = await dropIn(machine, SERVICE, "PrivatePIDs=yes", "RestartSec=1h");
    await receive("127.0.0.1", 4000);
    await machine.becomes(SERVICE, "ExecMainStatus", "78", 5);
    await machine.systemctl("stop", SERVICE);
  });

  /** A client that goes away and leaves its connection in the queue. */
  const passesBy = () => machine.must("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/4000");

  // All other reasons not to start a service end in one of the same two ways.
  const inactive = ["[Unit]", "Requisite=inactive.service", "After=inactive.service"];
  // By default, the limit is 3000 starts, which take minutes.
  const denies = ["ExecCondition=false", "[Unit]", "StartLimitBurst=10"];
  const reasons: [why: string, result: string, ...settings: string[]][] = [
    ["systemd skips", "trigger-limit-hit", "[Unit]", "ConditionPathExists=/nonexistent"],
    ["needs one that does not run", "trigger-limit-hit", ...inactive],
    ["is slow to say no", "service-start-limit-hit", ...denies],
  ];
  for (const [why, result, ...settings] of reasons)
    test(`a service that ${why} is not tried without end, and the manual page repairs its port`, async () => {
      await machine.write("/run/systemd/system/inactive.service", "[Service]\nExecStart=true\n");
      {
        await using _ = await dropIn(machine, SERVICE, ...settings);
        await machine.systemctl("stop", SERVICE);
        await passesBy();
        await machine.becomes("socket-service.socket", "Result", result, 20);
        expect(await machine.must("ss", "-Hltn", "sport = 4000")).toBe("");
      }
      await until("the port is open again", 10, async () => {
        await runBlock("systemctl reset-failed socket-service.service");
        return (await one(4000)).served === 1;
      });
    });

  test("no variable that steers Bun reaches a process", async () => {
    const names = "BUN_BE_BUN BUN_OPTIONS BUN_INSPECT BUN_INSPECT_CONNECT_TO NODE_CHANNEL_FD".split(
      " ",
    );
    await machine.systemctl("stop", SERVICE);
    await machine.systemctl("set-environment", ...names.map((name) => `${name}=1`));
    for (const { name, unit, port } of SERVICES) {
      const left = (await greeted(unit, port)).names.filter((name) => /^(BUN|NODE)_/.test(name));
      expect([name, ...left]).toEqual(unit === SERVICE ? [name] : [name, "BUN_JSC_useJIT"]);
    }
    await machine.systemctl("unset-environment", ...names);
    await machine.systemctl("stop", SERVICE);
  });
});

describe.skipIf(cannotRun)("where namespaces are denied", () => {
  let machine: Machine;
  beforeAll(async () => {
    // As containers do that know nothing of systemd.
    const bin = await mkdtemp(join(tmpdir(), "socket-service-"));
    const nspawn = Bun.which("systemd-nspawn");
    const denies = `#!/bin/sh\nexec ${nspawn} --system-call-filter=~unshare "$@"\n`;
    await writeFile(join(bin, "systemd-nspawn"), denies, { mode: 0o755 });
    const path = process.env["PATH"];
    process.env["PATH"] = `${bin}:${path}`;
    machine = await installed();
    process.env["PATH"] = path;
    await rm(bin, { recursive: true });
  });
  afterAll(() => nothingFailed(machine));

  test("the journal has 226/NAMESPACE, and with the manual page's lines all three services run", async () => {
    // The client of the first one waits, and is served once the service can start.
    const waits = new Clients(machine, "once", 4000, 1);
    for (const { port } of SERVICES.slice(1))
      expect((await greeting(machine, port)).served).toBe(0);
    for (const { unit } of SERVICES)
      await until(`the journal has why ${unit} does not start`, 10, async () => {
        const lines = (await machine.must("journalctl", "--quiet", "--output=cat")).split("\n");
        const name = unit.replace(".service", "");
        return lines.some((line) => line.startsWith(name) && line.includes("226/NAMESPACE"));
      });
    await machine.must("sh", "-c", manualBlock("useradd --system greeter").join("\n"));
    for (const { unit } of SERVICES) await dropIn(machine, unit, ...manualBlock("PrivateUsers=no"));
    expect(await waits.finish()).toMatchObject({ served: 1, lost: {} });
    for (const { port } of SERVICES)
      expect(await greeting(machine, port)).toMatchObject({ served: 1, lost: {} });
    // DynamicUser= implied these.
    for (const { unit } of SERVICES)
      for (const property of ["RestrictSUIDSGID", "RemoveIPC"])
        expect(await machine.show(unit.replace("@", "@0"), property)).toBe("yes");
    const main = await machine.show("socket-service.service", "MainPID");
    expect(await machine.must("stat", "--format=%U", `/proc/${main}`)).toBe("greeter");
    const status = await machine.must("cat", `/proc/${main}/status`);
    expect(status).toMatch(/^NoNewPrivs:\t1$/m);
    expect(status).toMatch(/^Seccomp:\t2$/m);
  });
});
