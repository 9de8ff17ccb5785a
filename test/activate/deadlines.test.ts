/* When connections, services and notifications end or come. All of it waits, so all run at once. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";

import { lacks } from "../support/needs.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import { activate, Client, Listener } from "../support/daemon.ts";
import { SERVICES } from "../support/services.ts";
import { EMULATED, shortest, SLOW, until } from "../support/until.ts";

setDefaultTimeout(40_000);

const NAME = "socket-service";
/** The longest delay of an event on a busy machine, in milliseconds: less than the second that some wait for. */
const LATE = 900 * SLOW;

/** A client that stays after it was greeted, and the times around its greeting. */
async function stay(port: number) {
  const before = performance.now();
  const client = await Client.connect(port);
  expect(await client.received()).toStartWith("This ");
  return { client, before, after: performance.now() };
}

/** The service keeps a connection for five seconds from its greeting on, then drops it. */
async function expectFiveSeconds({ client, before, after }: Awaited<ReturnType<typeof stay>>) {
  const dropped = await client.closed();
  expect(dropped - before).toBeGreaterThanOrEqual(5000);
  expect(dropped - after).toBeLessThan(5000 + LATE);
}

/** The default numbers of drain, in a program of its own. */
const DRAIN = `
  import { drain, serve } from "./src/activation/index.ts";
  const server = serve({
    fd: 3,
    fetch: ({ url }) => (url.endsWith("/never") ? new Promise(() => {}) : new Response("Hello")),
  });
  process.on("SIGTERM", async () => process.exit((await drain(server)) ? 0 : 1));
  console.error("serves");`;

describe.concurrent("in time:", () => {
  // An emulator is too slow for this group, and for the next.
  describe.skipIf(EMULATED)("on a fast machine", () => {
    test("socket-service gives an open connection its five seconds at SIGTERM, and no more", async () => {
      await using service = new Listener();
      const other = await stay(service.port);
      const last = await stay(service.port);
      await Bun.sleep(1000);
      service.process.kill("SIGTERM");
      await until("it no longer accepts", 3, () => !service.accepts);
      // The end of one is not the end of all.
      other.client.close();
      await expectFiveSeconds(last);
      expect(await service.status(LATE)).toBe(0);
    });

    // The one ends before the first second is over, the other after.
    for (const open of [500, 1500])
      test(`socket-service counts its idle timeout from the end of a connection of ${open} ms`, async () => {
        // With a look once a second it would be 1500.
        const limit = 1400;
        const time = await shortest(limit, async () => {
          await using service = new Listener({ args: ["--idle-timeout", "1"] });
          const { client } = await stay(service.port);
          await Bun.sleep(open);
          const closed = performance.now();
          client.close();
          expect(await service.status()).toBe(0);
          return performance.now() - closed;
        });
        expect(time).toBeWithin(1000, limit);
      });
  });

  describe.skipIf(EMULATED || lacks("systemd-socket-activate"))(
    "under systemd-socket-activate, on a fast machine",
    () => {
      for (const { name, flags, greeting } of SERVICES)
        test(`${name} drops a client five seconds after its greeting, even if it keeps sending`, async () => {
          await using service = await activate(name, { flags });
          const silent = await stay(service.port);
          const trickling = await stay(service.port);
          const trickle = setInterval(() => void trickling.client.send("x"), 200);
          await Promise.all([silent, trickling].map(expectFiveSeconds)).finally(() =>
            clearInterval(trickle),
          );
          expect(await service.ask()).toBe(greeting);
          expect(service.said).toBe("");
        });

      test("socket-service gives each connection its own five seconds", async () => {
        await using service = await activate(NAME);
        const first = await stay(service.port);
        await Bun.sleep(2500);
        const second = await stay(service.port);
        await expectFiveSeconds(first);
        await expectFiveSeconds(second);
        expect(service.said).toBe("");
      });

      test("socket-service drops a client after five seconds, also after a time without clients", async () => {
        await using service = await activate(NAME);
        await service.ask();
        // Longer than any timer for the first one runs.
        await Bun.sleep(5500);
        await expectFiveSeconds(await stay(service.port));
        expect(service.said).toBe("");
      });
    },
  );

  describe.skipIf(lacks("systemd-socket-activate"))("under systemd-socket-activate", () => {
    test("socket-service notifies of the number of clients served at once, then once a second", async () => {
      using receiver = new NotifyReceiver();
      const env = { NOTIFY_SOCKET: receiver.address };
      await using service = await activate(NAME, { env });
      let asked = 0;
      let asking = true;
      const clients = (async () => {
        for (; asking; asked++, await Bun.sleep(50))
          expect(await service.ask()).toStartWith("This ");
      })();
      const next = async () => {
        const { text } = await receiver.next();
        return Number(/^STATUS=Socket accepted, connections served: (\d+)\n$/.exec(text)?.[1]);
      };
      expect(await receiver.text()).toStartWith("READY=1\n");
      expect(await next()).toBeGreaterThan(0);
      const began = performance.now();
      for (let second = 0; second < 3; second++) expect(await next()).toBeGreaterThan(1);
      expect(performance.now() - began).toBeWithin(3000 - LATE, 3000 + LATE);
      asking = false;
      await clients;
      await service.ask();
      // In the end it has told of all of them.
      expect(await next()).toBe(asked + 1);
      expect(service.said).toBe("");
    });
  });

  test("socket-service ends after its idle timeout without a connection", async () => {
    const limit = 500 + 400 * SLOW;
    const time = await shortest(limit, async () => {
      using receiver = new NotifyReceiver();
      const started = performance.now();
      await using service = new Listener({ receiver, args: ["--idle-timeout=0.5"] });
      expect(await receiver.text()).toStartWith("READY=1\n");
      const ready = performance.now();
      expect(await receiver.text()).toBe("STOPPING=1\n");
      expect(await service.status()).toBe(0);
      expect(performance.now() - started).toBeGreaterThanOrEqual(500);
      expect(service.said).toBe("");
      return performance.now() - ready;
    });
    expect(time).toBeLessThan(limit);
  });

  test("socket-service does not wake before its idle timeout, however many clients it had", async () => {
    await using service = new Listener({ args: ["--idle-timeout=1"] });
    for (let n = 0; n < 80; n++) {
      expect(await service.ask()).toBe("This is a test\n");
      await Bun.sleep(10);
    }
    /** The number of times it has slept, of proc_pid_status(5). */
    const slept = () => {
      const status = readFileSync(`/proc/${service.process.pid}/status`, "utf8");
      return Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(status)?.[1]);
    };
    const before = slept();
    let after = before;
    await until("it ends", 10, () => {
      if (service.process.exitCode !== null) return true;
      after = slept();
      return false;
    });
    expect(await service.status()).toBe(0);
    // The emulator sleeps too.
    expect(after - before).toBeLessThan(30 * SLOW);
  });

  for (const [what, target, milliseconds, status] of [
    ["grace of drain is one second", "/", 1000, 0],
    ["timeout of drain is ten seconds", "/never", 10_000, 1],
  ] as const)
    test(`by default the ${what}`, async () => {
      const time = await shortest(milliseconds + LATE, async () => {
        await using service = new Listener({ name: process.execPath, args: ["-e", DRAIN] });
        await service.says(/serves/);
        const client = await service.client();
        await client.send(`GET ${target} HTTP/1.1\r\nHost: example\r\n\r\n`);
        if (target === "/") await client.firstByte();
        // Bun has read it by the time that it answers another.
        else expect(await service.get()).toBe("Hello");
        const begun = performance.now();
        expect(await service.stop(20_000)).toBe(status);
        client.close();
        return performance.now() - begun;
      });
      expect(time).toBeWithin(milliseconds, milliseconds + LATE);
    });

  test("socket-service notifies at once of the first client after a quiet time", async () => {
    using receiver = new NotifyReceiver();
    await using service = new Listener({ receiver });
    expect(await receiver.text()).toStartWith("READY=1\n");
    for (let served = 1; served <= 2; served++) {
      // It would have told of more by then, if there were any.
      await Bun.sleep(1500);
      expect(receiver.poll()).toBeUndefined();
      const began = performance.now();
      await service.ask();
      const { text } = await receiver.next();
      expect(text).toBe(`STATUS=Socket accepted, connections served: ${served}\n`);
      expect(performance.now() - began).toBeLessThan(LATE);
    }
    expect(service.stderr).toBe("");
  });

  test("socket-service pings at half the watchdog's interval", async () => {
    using receiver = new NotifyReceiver();
    await using service = new Listener({ receiver, env: { WATCHDOG_USEC: "800000" } });
    expect(await receiver.text()).toStartWith("READY=1\n");
    const ping = async () => expect(await receiver.text()).toBe("WATCHDOG=1\n");
    await ping();
    const began = performance.now();
    for (let interval = 0; interval < 5; interval++) await ping();
    expect(performance.now() - began).toBeWithin(2000 - LATE, 2000 + LATE);
    expect(service.said).toBe("");
  });
});
