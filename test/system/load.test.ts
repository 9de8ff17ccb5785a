/** The installed units under load: restarts, idle exits, kills, floods and misbehaving clients. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { cannotRun, Clients, dropIn, installed, journal } from "./harness.ts";
import { nothingFailed, runs, SOCKETS } from "./harness.ts";
import { SERVICES } from "../support/services.ts";
import { until } from "../support/until.ts";
import type { Machine } from "../support/machine.ts";

const SERVICE = "socket-service.service";

setDefaultTimeout(180_000);

describe.skipIf(cannotRun)("load", () => {
  let machine: Machine;
  beforeAll(async () => void (machine = await installed()));
  afterAll(() => nothingFailed(machine));

  const listening = async () => {
    for (const socket of SOCKETS) expect(await machine.show(socket, "ActiveState")).toBe("active");
  };

  /** A new main process, other than `before`, of a service that is up. */
  const another = (before: string) =>
    until("there is a new main process", 20, async () => {
      const main = await machine.show(SERVICE, "MainPID");
      const state = await machine.show(SERVICE, "ActiveState");
      return state === "active" && main !== "0" && main !== before ? main : undefined;
    });

  test("20 restarts under a load of 64 clients lose no connection", async () => {
    await using clients = new Clients(machine, "load", 4000, 64);
    for (let i = 0; i < 20; i += 1) {
      const { begun } = await clients.tally();
      const { status } = await machine.run("systemctl", "restart", SERVICE);
      expect([status, ...(status === 0 ? [] : await journal(machine, SERVICE))]).toEqual([0]);
      await until("the load goes on", 20, async () => (await clients.tally()).begun > begun + 200);
    }
    const { begun, served, lost } = await clients.finish();
    console.log(`20 restarts under ${begun} connections`);
    expect({ served, lost }).toEqual({ served: begun, lost: {} });
    await listening();
  });

  test("10 idle exits under a load of 64 clients lose no connection", async () => {
    await using _ = await dropIn(machine, SERVICE, ...runs("socket-service --idle-timeout=0.1"));
    await machine.systemctl("restart", SERVICE);
    // A load that never pauses would leave no moment to be idle in.
    await using clients = new Clients(machine, "pulse", 4000, 64, 100);
    const exits = async () => {
      const log = await machine.must("journalctl", "--unit", SERVICE, "--output=cat");
      return log.split("Deactivated successfully").length;
    };
    const before = await exits();
    await until("it has ended 10 times", 60, async () => (await exits()) >= before + 10);
    const { begun, served, lost } = await clients.finish();
    console.log(`10 idle exits under ${begun} connections`);
    expect({ served, lost }).toEqual({ served: begun, lost: {} });
    await listening();
  });

  test("kill -9 of the main process loses at most its open connections, three times", async () => {
    await machine.systemctl("start", SERVICE);
    await using clients = new Clients(machine, "load", 4000, 64);
    for (let i = 0; i < 3; i += 1) {
      const { begun } = await clients.tally();
      await until("the load goes on", 20, async () => (await clients.tally()).begun > begun + 500);
      const main = await machine.show(SERVICE, "MainPID");
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

  test("many clients of each socket at once are all greeted", async () => {
    // 200 at once are more than the 150 in two seconds at which systemd 255 and newer slow down.
    for (const [i, count] of [1000, 200, 200].entries()) {
      await using clients = new Clients(machine, "once", SERVICES[i]?.port ?? 0, count);
      expect(await clients.finish()).toMatchObject({ begun: count, served: count, lost: {} });
    }
    await listening();
  });

  test("clients that do not close, trickle or reset harm no other, and are gone after six seconds", async () => {
    const since = `--since=@${await machine.must("date", "+%s")}`;
    // More clients stay than the 64 connections that an Accept=yes socket has by default.
    const bad = SERVICES.flatMap(({ port }) =>
      (["silent", "trickle", "reset"] as const).map((kind) => new Clients(machine, kind, port, 40)),
    );
    const honest = SERVICES.map(({ port }) => new Clients(machine, "load", port, 2));
    await until("all have been greeted or have reset", 60, async () => {
      const tallies = await Promise.all(bad.map((clients) => clients.tally()));
      return tallies.every(({ served }) => served === 40);
    });
    const greeted = performance.now();
    for (const [i, clients] of honest.entries()) {
      const { served } = await clients.tally();
      await until(`${SERVICES[i]?.name} serves others`, 20, async () => {
        return (await clients.tally()).served > served;
      });
    }
    for (const clients of honest) {
      const { begun, served, lost } = await clients.finish();
      expect({ served, lost }).toEqual({ served: begun, lost: {} });
    }
    const left = Math.max(1, (greeted + 6000 - performance.now()) / 1000);
    await until("no connection and no instance is left", left, async () => {
      // Only connections of a process count: the kernel keeps a half-closed one for a minute.
      const open = await machine.must("ss", "-Htnp", "state", "connected");
      const units = ["list-units", "--all", "--no-legend", "socket-service-*@*"];
      return !open.includes('"socket-service') && (await machine.systemctl(...units)) === "";
    });
    await Promise.all(bad.map((clients) => clients.finish()));
    // All of that is normal: no warning of a service, and no failure that systemd would warn of.
    const warnings = ["--priority=warning", "--unit=socket-service*", "--output=cat", since];
    const said = await machine.must("journalctl", "--quiet", ...warnings);
    // systemd 262 warns of the pids controller where the kernel of this machine keeps it (cgroup v1).
    expect(said.replace(/^.*: Failed to read pids\.max .*\n?/gm, "")).toBe("");
    await listening();
  });
});
