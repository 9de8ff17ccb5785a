/** The installed units under a real systemd, one promise at a time. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  cannotRun,
  Clients,
  dropIn,
  greeting,
  installed,
  journal,
  nothingFailed,
  show,
} from "./harness.ts";
import { SERVICES } from "./harness.ts";
import { until } from "../support/until.ts";
import type { Machine } from "./machine.ts";

const SERVICE = "socket-service.service";
const IDLE = ["ExecStart=", "ExecStart=/usr/local/bin/socket-service --idle-timeout=0.2"];

setDefaultTimeout(60_000);

describe.skipIf(cannotRun)("units", () => {
  let machine: Machine;
  beforeAll(async () => {
    machine = await installed();
  });
  afterAll(async () => {
    await nothingFailed(machine);
  });

  const state = (unit: string) => show(machine, unit, "ActiveState");
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
    await until("the status tells of the accept", 5, async () =>
      (await status()).includes('Status: "Socket accepted'),
    );
  });

  test("an idle service ends, its socket still listens, and the next client starts it", async () => {
    await using _ = await dropIn(machine, SERVICE, ...IDLE);
    await machine.must("systemctl", "restart", SERVICE);
    await until("the service is inactive", 5, async () => (await state(SERVICE)) === "inactive");
    expect(await show(machine, SERVICE, "Result")).toBe("success");
    expect(await show(machine, "socket-service.socket", "SubState")).toBe("listening");
    expect(await one(4000)).toMatchObject({ served: 1, lost: {} });
  });

  test("a stuck service is restarted by the watchdog and the clients that waited are served", async () => {
    await machine.must("systemctl", "start", SERVICE);
    expect(await show(machine, SERVICE, "WatchdogUSec")).toBe("10s");
    await using _ = await dropIn(machine, SERVICE, "WatchdogSec=1");
    await machine.must("systemctl", "restart", SERVICE);
    const ping = () => show(machine, SERVICE, "WatchdogTimestampMonotonic");
    const first = await ping();
    await until("it has pinged", 5, async () => (await ping()) !== first);
    const main = await show(machine, SERVICE, "MainPID");
    await machine.must("kill", "-STOP", main);
    const clients = new Clients(machine, "once", 4000, 20);
    await until("the watchdog has fired", 10, async () =>
      (await journal(machine, SERVICE)).some((line) => line.includes("Watchdog timeout")),
    );
    expect(await clients.finish()).toMatchObject({ begun: 20, served: 20, lost: {} });
    expect(await show(machine, SERVICE, "MainPID")).not.toBe(main);
  });

  test("a service that cannot start says why in the journal, and recovers once repaired", async () => {
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
      // It is tried again and again: more often than any limit on starts that systemd has.
      await until("it has been tried", 20, async () => {
        return Number(await show(machine, SERVICE, "NRestarts")) >= 8;
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
    const clients = new Clients(machine, "silent", 4000, 10);
    await until("the clients are greeted", 5, async () => (await clients.tally()).served === 10);
    const before = performance.now();
    await machine.must("systemctl", "stop", SERVICE);
    // The clients do not close, so the service waits for them, but not for longer than it promises.
    expect(performance.now() - before).toBeWithin(2000, 7000);
    expect(await state(SERVICE)).toBe("inactive");
    expect(await show(machine, SERVICE, "Result")).toBe("success");
    expect(await clients.finish()).toMatchObject({ begun: 10, served: 10, lost: {} });
  });

  test("not a byte of standard error reaches a client of socket-service-inet", async () => {
    const unit = "socket-service-inet@.service";
    await using _ = await dropIn(
      machine,
      unit,
      "ExecStart=",
      "ExecStart=/usr/local/bin/socket-service-inet --no-such-option",
    );
    expect(await one(4002)).toMatchObject({ served: 0, lost: { 'got ""': 1 } });
    await until("the journal has the error", 5, async () =>
      (await journal(machine, "socket-service-inet@*")).some((line) =>
        /^3 .*--no-such-option/.test(line),
      ),
    );
  });

  test("an instance that has failed is not kept", async () => {
    await until("all instances are gone", 10, async () => {
      const listed = await machine.must(
        "systemctl",
        "list-units",
        "--all",
        "--no-legend",
        "socket-service-*@*",
      );
      return listed === "";
    });
  });

  test("no number of connections closes the port of a service for each connection", async () => {
    for (const socket of ["socket-service-accepted.socket", "socket-service-inet.socket"]) {
      // How fast a machine must be to reach the default, 200 connections in two seconds, differs.
      expect(await show(machine, socket, "TriggerLimitIntervalUSec")).toBe("0");
      expect(Number(await show(machine, socket, "MaxConnections"))).toBeGreaterThanOrEqual(1000);
    }
  });

  test("variables for Bun on the manager, .env and bunfig.toml in the directory change nothing", async () => {
    const directory = "/var/lib/hostile";
    const evil = 'console.error("hostile code ran"); process.exit(1);';
    await machine.write(`${directory}/evil.ts`, evil);
    await machine.write(`${directory}/.env`, "BUN_OPTIONS=--preload=/var/lib/hostile/evil.ts\n");
    await machine.write(`${directory}/bunfig.toml`, 'preload = ["./evil.ts"]\n');
    const variables = [
      "BUN_BE_BUN=1",
      "BUN_OPTIONS=--preload=/var/lib/hostile/evil.ts",
      "BUN_INSPECT=ws://127.0.0.1:4999/",
      "BUN_INSPECT_PRELOAD=/var/lib/hostile/evil.ts",
      "NODE_OPTIONS=--require=/var/lib/hostile/evil.ts",
      "NODE_CHANNEL_FD=3",
    ];
    await machine.must("systemctl", "stop", SERVICE);
    await machine.must("systemctl", "set-environment", ...variables);
    try {
      for (const { unit, port } of SERVICES) {
        await using _ = await dropIn(machine, unit, `WorkingDirectory=${directory}`);
        expect(await one(port)).toMatchObject({ served: 1, lost: {} });
      }
      expect(await machine.must("journalctl", "--output=cat")).not.toContain("hostile code");
    } finally {
      await machine.must(
        "systemctl",
        "unset-environment",
        ...variables.map((v) => v.replace(/=.*/, "")),
      );
      await machine.must("systemctl", "stop", SERVICE);
    }
  });
});
