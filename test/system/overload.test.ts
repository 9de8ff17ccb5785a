/** The installed units when there are more clients than they can serve, or more sockets than usual. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { cannotRun, dropIn, greeting, installed, nothingFailed, runs } from "./harness.ts";
import { CHECKOUT, type Machine } from "../support/machine.ts";
import { until } from "../support/until.ts";

const SERVICE = "socket-service.service";
const SOCKET = "socket-service.socket";
const FLOOD = join(import.meta.dir, "../support/flood.ts");

setDefaultTimeout(120_000);

describe.skipIf(cannotRun)("overload", () => {
  let machine: Machine;
  beforeAll(async () => void (machine = await installed()));
  afterAll(() => nothingFailed(machine));

  test("during 5,000 silent clients a second the watchdog is fed, and the next client is greeted", async () => {
    await using _ = await dropIn(machine, SERVICE, "WatchdogSec=4");
    await machine.systemctl("restart", SERVICE);
    const seconds = Number(process.env["FLOOD_SECONDS"] ?? 8);
    // One process has too few descriptors for all.
    const floods = [1, 2].map(() => machine.client(FLOOD, "4000", "2500", String(seconds)));
    const main = await machine.show(SERVICE, "MainPID");
    const usage = () => machine.show(SERVICE, "CPUUsageNSec").then(Number);
    const [began, before] = [performance.now(), await usage()];
    const begun = await Promise.all(floods.map((flood) => flood.stdout.text().then(Number)));
    const processor = ((await usage()) - before) / 1e4 / (performance.now() - began);
    // Some that the flood left in the queue may come first.
    await greeting(machine, 4000);
    const { served, lost, median } = await greeting(machine, 4000);
    console.log(
      `${begun.join(" + ")} silent clients in ${seconds} s: ${processor.toFixed(0)} % of a ` +
        `processor; a client afterwards is greeted after ${median.toFixed(0)} ms`,
    );
    expect({ served, lost }).toEqual({ served: 1, lost: {} });
    expect(median).toBeLessThan(100);
    expect(await machine.show(SERVICE, "MainPID")).toBe(main);
    expect(await machine.show(SERVICE, "NRestarts")).toBe("0");
    expect(await machine.must("journalctl", "--quiet", "-p", "warning", "-u", SERVICE)).toBe("");
  });

  test.each([60, 200])(
    "a unit with %i sockets with long names is ready, with a status",
    async (count) => {
      const paths = Array.from({ length: count }, (_, n) => `/run/${"x".repeat(80)}-${n}`);
      const lines = ["ListenStream=", ...paths.map((path) => `ListenStream=${path}`)];
      await machine.systemctl("stop", SERVICE, SOCKET);
      {
        await using _ = await dropIn(machine, SOCKET, ...lines);
        await machine.systemctl("start", SERVICE);
        expect(await machine.show(SERVICE, "ActiveState")).toBe("active");
        expect(await machine.show(SERVICE, "StatusText")).toBe(
          `Listening on ${paths[0]}, ${paths[1]} and ${count - 2} more`,
        );
        await machine.systemctl("stop", SERVICE, SOCKET);
      }
      await machine.systemctl("start", SOCKET);
    },
  );

  test("200 clients, each after the service has ended for want of one, are all served", async () => {
    // Without the sandbox, starts follow each other faster.
    await machine.must("rm", "-r", `/usr/local/lib/systemd/system/${SERVICE}.d`);
    await using _ = await dropIn(machine, SERVICE, ...runs("socket-service --idle-timeout=0.01"));
    await machine.systemctl("stop", SERVICE);
    const starts = async () =>
      (await machine.must("journalctl", "-u", SERVICE, "-o", "cat")).split("\nStarted ").length;
    const before = await starts();
    const ask = `for n in $(seq 200); do exec 3<>/dev/tcp/127.0.0.1/4000; read -r -u 3 line; echo "$line"; exec 3<&-; sleep 0.03; done`;
    const answers = await machine.must("bash", "-c", ask);
    expect(answers.split("\n")).toEqual(Array(200).fill("This is a test"));
    expect(await machine.show(SOCKET, "ActiveState")).toBe("active");
    // Most found it gone: far more often than systemd would start it with its usual limit.
    expect((await starts()) - before).toBeGreaterThan(100);
  });

  test("started by itself, the service has its socket; a restart of the socket takes it along", async () => {
    await machine.must("make", "-C", CHECKOUT, "install");
    await machine.systemctl("stop", SERVICE, SOCKET);
    await machine.systemctl("daemon-reload");
    await machine.systemctl("start", SERVICE);
    expect(await machine.show(SOCKET, "ActiveState")).toBe("active");
    const main = await machine.show(SERVICE, "MainPID");
    // systemd 257 closes the socket a moment too late for itself, one time in five.
    await until("the socket has restarted", 10, async () => {
      const { status } = await machine.run("systemctl", "restart", SOCKET);
      if (status !== 0) await machine.systemctl("reset-failed");
      return status === 0;
    });
    expect(await machine.show(SERVICE, "MainPID")).not.toBe(main);
    expect(await greeting(machine, 4000)).toMatchObject({ served: 1, lost: {} });
  });
});
