/* A service that has more clients than descriptors, seen from outside. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { resolve } from "node:path";

import { ask, Client, execute, Listener, type Running } from "../support/daemon.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import * as sockets from "../support/sockets.ts";
import { AF_INET } from "../support/sockets.ts";
import { until } from "../support/until.ts";

setDefaultTimeout(60_000);

const GREETING = "This is a test\n";
const FLOOD = resolve(import.meta.dir, "../support/flood.ts");

/** Silent clients of a port: so many a second, for so many seconds. */
async function flood(port: number, rate: number, seconds: number): Promise<void> {
  const command = [process.execPath, FLOOD, String(port), String(rate), String(seconds)];
  expect(await Bun.spawn(command, { stdout: "ignore" }).exited).toBe(0);
}

/** So many silent clients of a port, as descriptors. */
const silentClients = (port: number, length: number) =>
  Array.from({ length }, () => sockets.connected({ family: AF_INET, port }) ?? -1);

/** A client that waits for its turn. */
async function patient(port: number): Promise<string> {
  const client = await Client.connect(port);
  const received = await client.received(60_000);
  client.close();
  return received;
}

/** The longest that an event takes on a busy machine, in milliseconds. A flood lasts for longer. */
const LATE = 4000;

/** Waits for the first byte, which has to come soon. */
async function expectSoon(client: Client): Promise<void> {
  const began = performance.now();
  await client.firstByte();
  expect(performance.now() - began).toBeLessThan(LATE);
}

/** Processor time of a process so far, in milliseconds: utime and stime of proc_pid_stat(5). */
function processorTime(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1];
  const [user, system] = stat?.split(" ").slice(11, 13).map(Number) ?? [];
  return 10 * ((user ?? Number.NaN) + (system ?? Number.NaN));
}

/** Whether a process sleeps: the kernel wakes it before a client's connect(2) returns. */
function isIdle(pid: number): boolean {
  return readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.startsWith("S") ?? false;
}

/** Watches a service until it is disposed of, ten times a second. */
class Watched implements Disposable {
  readonly #timer: Timer;
  readonly #began = performance.now();
  #lastPing = this.#began;
  #longestGap = 0;
  #most = 0;
  readonly #before: number;

  constructor(
    readonly service: Running,
    readonly receiver: NotifyReceiver,
  ) {
    this.#before = this.#processor;
    this.#timer = setInterval(() => this.#look(), 100);
  }

  get #processor(): number {
    return processorTime(this.service.process.pid);
  }

  #look(): void {
    const now = performance.now();
    for (let next = this.receiver.poll(); next !== undefined; next = this.receiver.poll())
      if (next.text === "WATCHDOG=1\n") this.#lastPing = now;
    this.#longestGap = Math.max(this.#longestGap, now - this.#lastPing);
    const open = readdirSync(`/proc/${this.service.process.pid}/fd`).length;
    this.#most = Math.max(this.#most, open);
  }

  /** Percent of a processor, milliseconds without a ping at most, descriptors open at most. */
  get seen(): { processor: number; longestGap: number; most: number } {
    const processor = (100 * (this.#processor - this.#before)) / (performance.now() - this.#began);
    return { processor, longestGap: this.#longestGap, most: this.#most };
  }

  /** The same, and looks no more: only root may list the descriptors of a process that has just ended. */
  end(): Watched["seen"] {
    this[Symbol.dispose]();
    return this.seen;
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}

describe.concurrent("socket-service, flooded by silent clients,", () => {
  // Three times the rate that fills it, since each connection is open for five seconds.
  test.each([
    [64, 1],
    [256, 2],
  ])(
    "with %i descriptors and %i socket(s) uses little processor, pings, and greets an honest client",
    async (limit, count) => {
      using receiver = new NotifyReceiver();
      const fds = Array.from({ length: count }, () => sockets.listening(AF_INET, 4096));
      const [port = 0, other = port] = fds.map(sockets.portOf);
      const env = { NOTIFY_SOCKET: receiver.address, WATCHDOG_USEC: "2000000" };
      await using service = execute("../test/activate/limited.sh", fds, env, [String(limit)]);
      expect(await receiver.text()).toStartWith("READY=1\n");
      using watched = new Watched(service, receiver);
      const flooding = flood(port, (3 * limit) / 5, 8);
      // The bound is reached, and the other descriptors stay free.
      await until("it has all it may have", 20, () => watched.seen.most > limit / count - 20);
      const honest = patient(port);
      for (let n = 0; n < 5 && other !== port; n++) expect(await ask(other)).toBe(GREETING);
      await flooding;
      // The queue is served as connections end.
      expect(await honest).toBe(GREETING);
      const { processor, longestGap, most } = watched.end();
      expect(most).toBeLessThan(limit / count + 24);
      expect(most).toBeLessThan(limit);
      expect(processor).toBeLessThan(20);
      expect(longestGap).toBeLessThan(LATE);
      expect(await service.stop()).toBe(0);
      expect(service.stderr).toBe("");
      fds.forEach(sockets.close);
    },
  );

  test("leaves its reserve of descriptors free though each of 24 sockets has too many", async () => {
    using receiver = new NotifyReceiver();
    const fds = Array.from({ length: 24 }, () => sockets.listening(AF_INET, 64));
    const env = { NOTIFY_SOCKET: receiver.address };
    await using service = execute("../test/activate/limited.sh", fds, env, ["256"]);
    expect(await receiver.text()).toStartWith("READY=1\n");
    const { pid } = service.process;
    const silent = fds.flatMap((fd) => silentClients(sockets.portOf(fd), 14));
    await until("it has accepted them", 20, () => isIdle(pid));
    const open = readdirSync(`/proc/${pid}/fd`).length;
    expect(open).toBeGreaterThan(256 - 64);
    expect(open).toBeLessThanOrEqual(256 - 16);
    for (const fd of [...silent, ...fds]) sockets.close(fd);
  });

  test("is ready at once, and at SIGTERM leaves the queue to the next process", async () => {
    using receiver = new NotifyReceiver();
    const fd = sockets.listening(AF_INET, 4096);
    const port = sockets.portOf(fd);
    const silent = silentClients(port, 1500);
    const env = { NOTIFY_SOCKET: receiver.address };
    const began = performance.now();
    await using service = execute("../test/activate/limited.sh", [fd], env, ["64"]);
    expect(await receiver.text()).toStartWith("READY=1\n");
    expect(performance.now() - began).toBeLessThan(LATE);
    const honest = await Client.connect(port);
    service.process.kill("SIGTERM");
    for (let text = ""; text !== "STOPPING=1\n";) ({ text } = await receiver.next());
    // The open connections are given their time, and no other is accepted for them.
    for (const client of silent) sockets.close(client);
    expect(await service.status()).toBe(0);
    await using _ = execute("socket-service", [fd]);
    expect(await honest.received()).toBe(GREETING);
    honest.close();
    expect(service.stderr).toBe("");
    sockets.close(fd);
  });
});

describe.concurrent("a program that does not bound its connections,", () => {
  /** SIGUSR1 takes all descriptors that are free, SIGUSR2 gives them back. */
  const HOARDS = `import { openSync, closeSync } from "node:fs";
    const socket = { open: (socket) => void socket.write("Hello\\n"), data() {} };
    let files = [];
    process.on("SIGUSR1", () => {
      try { for (;;) files.push(openSync("/dev/null", "r")); } catch { console.error("full"); }
    });
    process.on("SIGUSR2", () => { for (const file of files.splice(0)) closeSync(file); });`;

  const MODULE = resolve(import.meta.dir, "../../src/activation/index.ts");

  /** Options of a program with 256 descriptors, which notifies nobody before they are in use. */
  const limited = (source: string) => ({
    name: "/bin/sh",
    args: [
      ...["-c", `ulimit -n 256; exec "$0" -e "$1"`, process.execPath],
      `import { listen, notify, passedFd, serve, startWatchdog } from "${MODULE}";\n${source}`,
    ],
    backlog: 4096,
  });

  test("flooded on serve, uses little processor, pings, and serves again", async () => {
    using receiver = new NotifyReceiver();
    const source = `serve({ fd: passedFd(), idleTimeout: 2, fetch: () => new Response("Hello") });
      startWatchdog();`;
    const env = { WATCHDOG_USEC: "2000000" };
    await using service = new Listener({ ...limited(source), receiver, env });
    using watched = new Watched(service, receiver);
    const flooding = flood(service.port, 400, 6);
    await until("its descriptors are gone", 20, () => watched.seen.most === 256);
    await flooding;
    const began = performance.now();
    expect(await service.get()).toBe("Hello");
    expect(performance.now() - began).toBeLessThan(LATE);
    const { processor, longestGap } = watched.end();
    expect(processor).toBeLessThan(20);
    expect(longestGap).toBeLessThan(LATE);
    expect(service.stderr).toBe("");
  });

  test("serves a client that waits for a free descriptor, also after a pause and a stop", async () => {
    const fds = [sockets.listening(AF_INET, 64), sockets.listening(AF_INET, 64)];
    const [bounded = 0, late = 0] = fds.map(sockets.portOf);
    const source = `listen({ fd: 3, socket, maxConnections: 1 });
      process.on("SIGHUP", () => { listen({ fd: 4, socket }); console.error("second"); });
      console.error("first");`;
    const { name, args } = limited(HOARDS + source);
    await using service = execute(name, fds, {}, args);
    await service.says(/first\n/);
    /** The service has closed the connection, too: its descriptor is free. */
    const leave = async (client: Client) => {
      client.finish();
      await client.received();
      client.close();
    };
    /** With no descriptor free a client waits, and is served when there are some. */
    const servesWhoWaits = async (port: number) => {
      const heard = service.stderr.length;
      service.process.kill("SIGUSR1");
      await until("its descriptors are gone", 10, () =>
        service.stderr.slice(heard).includes("full"),
      );
      const waiting = await Client.connect(port);
      await until("it has tried to accept", 10, () => isIdle(service.process.pid));
      service.process.kill("SIGUSR2");
      await expectSoon(waiting);
      await leave(waiting);
    };
    const first = await Client.connect(bounded);
    await first.firstByte();
    // At its bound it does not accept. It looks again every half a second, and finds none to watch.
    await Bun.sleep(1200);
    first.close();
    // It accepts again.
    const second = await Client.connect(bounded);
    await second.firstByte();
    await leave(second);
    await servesWhoWaits(bounded);
    // One that is opened later.
    service.process.kill("SIGHUP");
    await service.says(/second\n/);
    await servesWhoWaits(late);
    fds.forEach(sockets.close);
  });

  test("uses little processor on an address of its own, too, if it counts connections", async () => {
    const source = `const at = { hostname: "127.0.0.1", port: 0 };
      console.error("port", listen({ ...at, socket, maxConnections: 1000 }).port);`;
    const { name, args } = limited(HOARDS + source);
    await using service = execute(name, [], {}, args);
    const [, port = ""] = await service.says(/port (\d+)\n/);
    service.process.kill("SIGUSR1");
    await service.says(/full\n/);
    const waiting = await Client.connect(Number(port));
    // By then it has looked, and epoll reports the waiting client no more.
    await Bun.sleep(1000);
    const before = processorTime(service.process.pid);
    await Bun.sleep(1000);
    expect(processorTime(service.process.pid) - before).toBeLessThan(200);
    service.process.kill("SIGUSR2");
    await expectSoon(waiting);
    waiting.close();
  });

  test("notifies, and serves a client that waits without a later one", async () => {
    using receiver = new NotifyReceiver();
    const source = `listen({
        fd: passedFd(),
        socket: { open: (socket) => void socket.write("Hello\\n"), data() {} },
      });
      process.on("SIGUSR1", () => notify({ status: "full" }));`;
    await using service = new Listener({ ...limited(source), receiver });
    const silent = silentClients(service.port, 300);
    const open = () => readdirSync(`/proc/${service.process.pid}/fd`).length;
    await until("its descriptors are gone", 20, () => open() === 256);
    service.process.kill("SIGUSR1");
    expect(await receiver.text()).toBe("STATUS=full\n");
    const waiting = await service.client();
    silent.forEach(sockets.close);
    await expectSoon(waiting);
    waiting.close();
    expect(service.stderr).toBe("");
  });
});
