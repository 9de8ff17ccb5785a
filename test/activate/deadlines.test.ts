/* When connections, services and notifications end or come. All of it waits, so all run at once. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

import { lacks } from "../support/needs.ts";
import * as sockets from "../support/sockets.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import { AF_INET } from "../support/sockets.ts";
import { activate, ask, Client, execute, freePort, scratch } from "../support/daemon.ts";
import { SERVICES } from "../support/services.ts";
import { EMULATED, SLOW, until } from "../support/until.ts";

setDefaultTimeout(40_000);

const NAME = "socket-service";
/** How late something may be seen on a busy machine, in milliseconds. */
const LATE = 400 * SLOW;

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

const activated = test.concurrent.skipIf(lacks("systemd-socket-activate"));
/** Those for which an emulator is too slow: they have limits on time. */
const precisely = test.concurrent.skipIf(EMULATED);

for (const { name, flags, greeting } of SERVICES)
  activated.skipIf(EMULATED)(
    `${name} drops a client five seconds after its greeting, even if it keeps sending`,
    async () => {
      const port = freePort();
      await using service = await activate(name, { flags, listen: [port] });
      const silent = await stay(port);
      const trickling = await stay(port);
      const trickle = setInterval(() => void trickling.client.send("x"), 200);
      await Promise.all([silent, trickling].map(expectFiveSeconds)).finally(() =>
        clearInterval(trickle),
      );
      expect(await ask(port)).toBe(greeting);
      expect(service.said).toBe("");
    },
  );

activated.skipIf(EMULATED)(
  "socket-service gives each connection its own five seconds",
  async () => {
    const port = freePort();
    await using service = await activate(NAME, { listen: [port] });
    const first = await stay(port);
    await Bun.sleep(2500);
    const second = await stay(port);
    await expectFiveSeconds(first);
    await expectFiveSeconds(second);
    expect(service.said).toBe("");
  },
);

activated.skipIf(EMULATED)(
  "socket-service drops a client after five seconds, also after a time without clients",
  async () => {
    const port = freePort();
    await using service = await activate(NAME, { listen: [port] });
    await ask(port);
    // Longer than any timer for the first one runs.
    await Bun.sleep(5500);
    await expectFiveSeconds(await stay(port));
    expect(service.said).toBe("");
  },
);

precisely(
  "socket-service gives an open connection its five seconds at SIGTERM, and no more",
  async () => {
    const fd = sockets.listening(AF_INET, 5);
    const port = sockets.portOf(fd);
    await using service = execute(NAME, [fd]);
    sockets.close(fd);
    const other = await stay(port);
    const last = await stay(port);
    await Bun.sleep(1000);
    service.process.kill("SIGTERM");
    await until("it no longer accepts", 3, () => !existsSync(`/proc/${service.process.pid}/fd/3`));
    // The end of one is not the end of all.
    other.client.close();
    await expectFiveSeconds(last);
    expect(await service.status(LATE)).toBe(0);
  },
);

test.concurrent("socket-service ends after its idle timeout without a connection", async () => {
  using directory = scratch();
  const receiver = new NotifyReceiver(join(directory.path, "notify"));
  const fd = sockets.listening(AF_INET, 5);
  const env = { NOTIFY_SOCKET: receiver.address };
  const started = performance.now();
  await using service = execute(NAME, [fd], env, ["--idle-timeout=0.5"]);
  sockets.close(fd);
  expect((await receiver.next()).text).toStartWith("READY=1\n");
  const ready = performance.now();
  expect((await receiver.next()).text).toBe("STOPPING=1\n");
  expect(await service.status()).toBe(0);
  expect(performance.now() - started).toBeGreaterThanOrEqual(500);
  expect(performance.now() - ready).toBeLessThan(500 + LATE);
  expect(service.said).toBe("");
  receiver.close();
});

test.concurrent(
  "socket-service does not wake before its idle timeout, however many clients it had",
  async () => {
    const fd = sockets.listening(AF_INET, 5);
    const port = sockets.portOf(fd);
    await using service = execute(NAME, [fd], {}, ["--idle-timeout=1"]);
    sockets.close(fd);
    for (let n = 0; n < 80; n++) {
      expect(await ask(port)).toBe("This is a test\n");
      await Bun.sleep(10);
    }
    /** How often it has slept, of proc_pid_status(5). */
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
    expect(after - before).toBeLessThan(30);
  },
);

// The one ends before the first second is over, the other after.
for (const open of [500, 1500])
  precisely(
    `socket-service counts its idle timeout from the end of a connection of ${open} ms`,
    async () => {
      const fd = sockets.listening(AF_INET, 5);
      await using service = execute(NAME, [fd], {}, ["--idle-timeout", "1"]);
      const { client } = await stay(sockets.portOf(fd));
      sockets.close(fd);
      await Bun.sleep(open);
      const closed = performance.now();
      client.close();
      expect(await service.status()).toBe(0);
      expect(performance.now() - closed).toBeWithin(1000, 1000 + LATE);
    },
  );

test.concurrent("socket-service sends no READY=1 after SIGTERM", async () => {
  using directory = scratch();
  const path = join(directory.path, "notify");
  const fd = sockets.listening(AF_INET, 5);
  const port = sockets.portOf(fd);
  // Nobody receives yet, so it tries again every second.
  await using service = execute(NAME, [fd], { NOTIFY_SOCKET: path });
  sockets.close(fd);
  const { client } = await stay(port);
  await service.says(/cannot notify/);
  service.process.kill("SIGTERM");
  await until("it no longer accepts", 5, () => !existsSync(`/proc/${service.process.pid}/fd/3`));
  const receiver = new NotifyReceiver(path);
  // The open connection has its five seconds.
  await client.closed();
  expect(await service.status()).toBe(0);
  for (let next = receiver.poll(); next !== undefined; next = receiver.poll())
    expect(next.text).not.toContain("READY=1");
  receiver.close();
});

/** The default numbers of drain, in a program of its own. */
const DRAIN = `
  import { drain, serve } from "./src/activation/index.ts";
  const server = serve({
    fd: 3,
    fetch: ({ url }) => (url.endsWith("/never") ? new Promise(() => {}) : new Response("Hello")),
  });
  process.on("SIGTERM", async () => process.exit((await drain(server)) ? 0 : 1));
  console.error("serves");`;

for (const [what, target, milliseconds, status] of [
  ["grace of drain is one second", "/", 1000, 0],
  ["timeout of drain is ten seconds", "/never", 10_000, 1],
] as const)
  test.concurrent(`by default the ${what}`, async () => {
    const fd = sockets.listening(AF_INET, 5);
    await using service = execute(process.execPath, [fd], {}, ["-e", DRAIN]);
    await service.says(/serves/);
    const port = sockets.portOf(fd);
    sockets.close(fd);
    const client = await Client.connect(port);
    await client.send(`GET ${target} HTTP/1.1\r\nHost: example\r\n\r\n`);
    if (target === "/") await client.firstByte();
    // Bun has read it by the time that it answers another.
    else expect(await (await fetch(`http://127.0.0.1:${port}/`)).text()).toBe("Hello");
    const begun = performance.now();
    service.process.kill("SIGTERM");
    expect(await service.status(20_000)).toBe(status);
    expect(performance.now() - begun).toBeWithin(milliseconds, milliseconds + 200 + LATE);
    client.close();
  });

activated(
  "socket-service notifies of the number of clients served at once, then once a second",
  async () => {
    using directory = scratch();
    const receiver = new NotifyReceiver(join(directory.path, "notify"));
    const port = freePort();
    await using service = await activate(NAME, {
      listen: [port],
      env: { NOTIFY_SOCKET: receiver.address },
    });
    let asked = 0;
    let asking = true;
    const clients = (async () => {
      for (; asking; asked++, await Bun.sleep(50)) expect(await ask(port)).toStartWith("This ");
    })();
    const next = async () => {
      const { text } = await receiver.next();
      return Number(/^STATUS=Socket accepted, connections served: (\d+)\n$/.exec(text)?.[1]);
    };
    expect((await receiver.next()).text).toStartWith("READY=1\n");
    expect(await next()).toBeGreaterThan(0);
    const began = performance.now();
    for (let second = 0; second < 3; second++) expect(await next()).toBeGreaterThan(1);
    expect(performance.now() - began).toBeWithin(3000 - LATE, 3000 + LATE);
    asking = false;
    await clients;
    await ask(port);
    // In the end it has told of all of them.
    expect(await next()).toBe(asked + 1);
    expect(service.said).toBe("");
    receiver.close();
  },
);

test.concurrent(
  "socket-service notifies at once of the first client after a quiet time",
  async () => {
    using directory = scratch();
    const receiver = new NotifyReceiver(join(directory.path, "notify"));
    const fd = sockets.listening(AF_INET, 5);
    const port = sockets.portOf(fd);
    await using service = execute(NAME, [fd], { NOTIFY_SOCKET: receiver.address });
    sockets.close(fd);
    expect((await receiver.next()).text).toStartWith("READY=1\n");
    for (let served = 1; served <= 2; served++) {
      // It would have told of more by then, if there were any.
      await Bun.sleep(1500);
      expect(receiver.poll()).toBeUndefined();
      const began = performance.now();
      await ask(port);
      const { text } = await receiver.next();
      expect(text).toBe(`STATUS=Socket accepted, connections served: ${served}\n`);
      expect(performance.now() - began).toBeLessThan(LATE);
    }
    expect(service.stderr).toBe("");
    receiver.close();
  },
);

test.concurrent("socket-service pings at half the watchdog's interval", async () => {
  using directory = scratch();
  const receiver = new NotifyReceiver(join(directory.path, "notify"));
  const fd = sockets.listening(AF_INET, 5);
  const env = { NOTIFY_SOCKET: receiver.address, WATCHDOG_USEC: "800000" };
  await using service = execute(NAME, [fd], env);
  sockets.close(fd);
  expect((await receiver.next()).text).toStartWith("READY=1\n");
  const ping = async () => expect((await receiver.next()).text).toBe("WATCHDOG=1\n");
  await ping();
  const began = performance.now();
  for (let interval = 0; interval < 5; interval++) await ping();
  expect(performance.now() - began).toBeWithin(2000 - LATE, 2000 + LATE);
  expect(service.said).toBe("");
  receiver.close();
});
