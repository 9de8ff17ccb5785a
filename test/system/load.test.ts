/** The installed units under load: restarts, idle exits, kills, floods and misbehaving clients. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { cannotRun, Clients, dropIn, installed, memory, nothingFailed, show } from "./harness.ts";
import { SERVICES, SOCKETS } from "./harness.ts";
import { until } from "../support/until.ts";
import type { Machine } from "./machine.ts";

const SERVICE = "socket-service.service";

setDefaultTimeout(180_000);

describe.skipIf(cannotRun)("load", () => {
  let machine: Machine;
  beforeAll(async () => {
    machine = await installed();
  });
  afterAll(async () => {
    await nothingFailed(machine);
  });

  const listening = async () => {
    for (const socket of SOCKETS) expect(await show(machine, socket, "ActiveState")).toBe("active");
  };

  /** A new main process, other than `before`, of a service that is up. */
  const another = (before: string) =>
    until("there is a new main process", 20, async () => {
      const main = await show(machine, SERVICE, "MainPID");
      const state = await show(machine, SERVICE, "ActiveState");
      return state === "active" && main !== "0" && main !== before ? main : undefined;
    });

  test("20 restarts under a load of 64 clients lose no connection", async () => {
    const clients = new Clients(machine, "load", 4000, 64);
    for (let i = 0; i < 20; i += 1) {
      const { begun } = await clients.tally();
      await machine.must("systemctl", "restart", SERVICE);
      await until("the load goes on", 20, async () => (await clients.tally()).begun > begun + 1000);
    }
    await until("100,000 connections", 60, async () => (await clients.tally()).begun >= 1e5);
    const { begun, served, lost } = await clients.finish();
    console.log(`20 restarts under ${begun} connections`);
    expect(lost).toEqual({});
    expect(served).toBe(begun);
    await listening();
  });

  test("10 idle exits under a load of 64 clients lose no connection", async () => {
    await using _ = await dropIn(
      machine,
      SERVICE,
      "ExecStart=",
      "ExecStart=/usr/local/bin/socket-service --idle-timeout=0.1",
    );
    await machine.must("systemctl", "restart", SERVICE);
    // A load that never pauses would leave no moment to be idle in.
    const clients = new Clients(machine, "pulse", 4000, 64, 100);
    const exits = async () => {
      const log = [
        "journalctl",
        "--unit",
        SERVICE,
        "--output=cat",
        "--grep",
        "Deactivated successfully",
      ];
      return (await machine.run(...log)).stdout.split("\n").length;
    };
    const before = await exits();
    await until("it has ended 10 times", 60, async () => (await exits()) >= before + 10);
    const { begun, served, lost } = await clients.finish();
    console.log(`10 idle exits under ${begun} connections`);
    expect(lost).toEqual({});
    expect(served).toBe(begun);
    await listening();
  });

  test("kill -9 of the main process loses at most what it had accepted, three times", async () => {
    await machine.must("systemctl", "start", SERVICE);
    const clients = new Clients(machine, "load", 4000, 64);
    for (let i = 0; i < 3; i += 1) {
      const { begun } = await clients.tally();
      await until("the load goes on", 20, async () => (await clients.tally()).begun > begun + 2000);
      const main = await show(machine, SERVICE, "MainPID");
      await machine.must("kill", "-KILL", main);
      await another(main);
    }
    const { begun, served, lost } = await clients.finish();
    const count = Object.values(lost).reduce((sum, n) => sum + n, 0);
    console.log(`three kills lost ${count} of ${begun} connections: ${JSON.stringify(lost)}`);
    expect(served + count).toBe(begun);
    // 64 were open at each kill at most. Nothing else may happen to one than that it is cut off.
    expect(count).toBeLessThanOrEqual(3 * 64);
    const cut = ["ECONNRESET", "closed", 'got ""'];
    expect(Object.keys(lost).filter((fate) => !cut.includes(fate))).toEqual([]);
    await listening();
  });

  for (const { name, port } of SERVICES) {
    test(`1,000 clients of ${name} at once are all greeted`, async () => {
      const clients = new Clients(machine, "once", port, 1000);
      // The most that was seen, from time to time, until all have been greeted.
      let most = await memory(name);
      await until("all are served", 100, async () => {
        const now = await memory(name);
        if (now.processes > most.processes) most = now;
        return (await clients.tally()).served >= 1000;
      });
      const { served, lost, median, longest } = await clients.finish();
      const mb = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;
      console.log(
        `${name}: first byte after ${median.toFixed(0)} ms (median), ${longest.toFixed(0)} ms (longest); ` +
          `${most.processes} processes at most, with ${mb(most.proportional)}, ${mb(most.own)} of it their own`,
      );
      expect(lost).toEqual({});
      expect(served).toBe(1000);
      await listening();
    });
  }

  for (const kind of ["silent", "trickle", "reset"] as const) {
    test(`200 clients at once on each socket, all ${kind}, are gone after six seconds`, async () => {
      const since = `--since=@${await machine.must("date", "+%s")}`;
      const bad = SERVICES.map(({ port }) => new Clients(machine, kind, port, 200));
      const honest = SERVICES.map(({ port }) => new Clients(machine, "load", port, 2));
      await until("all have been greeted or have reset", 60, async () => {
        const tallies = await Promise.all(bad.map((clients) => clients.tally()));
        return tallies.every(({ served }) => served === 200);
      });
      const greeted = performance.now();
      if (kind === "silent") {
        const { processes, own } = await memory("socket-service-accepted");
        console.log(
          `${processes} waiting instances hold ${(own / 1e6 / processes).toFixed(1)} MB each`,
        );
      }
      const served = await Promise.all(
        honest.map(async (clients) => (await clients.tally()).served),
      );
      for (const [i, clients] of honest.entries()) {
        await until(`${SERVICES[i]?.name} serves others meanwhile`, 6, async () => {
          return (await clients.tally()).served > (served[i] ?? 0);
        });
      }
      for (const clients of honest) {
        const { begun, served, lost } = await clients.finish();
        expect({ served, lost }).toEqual({ served: begun, lost: {} });
      }
      const left = Math.max(0, greeted + 6000 - performance.now()) / 1000;
      await until("no connection and no instance is left", left, async () => {
        // What a process still holds; the kernel keeps the rest of a half-closed one for a minute.
        const open = await machine.must("ss", "-Htnp", "state", "connected");
        const units = ["list-units", "--all", "--no-legend", "socket-service-*@*"];
        return (
          !open.includes('"socket-service') && (await machine.must("systemctl", ...units)) === ""
        );
      });
      for (const { name } of SERVICES.slice(1)) expect((await memory(name)).processes).toBe(0);
      await Promise.all(bad.map((clients) => clients.finish()));
      // All of that is normal: no warning of a service, and no failure that systemd would warn of.
      const warnings = ["--priority=warning", "--unit=socket-service*", "--output=cat", since];
      expect(await machine.must("journalctl", "--quiet", ...warnings)).toBe("");
      await listening();
    });
  }
});
