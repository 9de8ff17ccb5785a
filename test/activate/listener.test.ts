import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { activate, ask, Client, execute, freePort, scratch, SERVICES } from "../support/daemon.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import * as sockets from "../support/sockets.ts";
import { AF_INET, AF_INET6, AF_UNIX } from "../support/sockets.ts";
import { eventually } from "../support/until.ts";

setDefaultTimeout(60_000);

const NAME = "socket-service";
const GREETING = "This is a test\n";

/** A number of `field` in /proc/PID/status, in KiB where it is a size. */
function processStatus(pid: number, field: string): number {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  return Number(new RegExp(`^${field}:\\s+(\\d+)`, "m").exec(status)?.[1]);
}

/** Opens `total` connections, `atOnce` at a time, and gives the number that got the greeting. */
async function load(port: number, total: number, atOnce: number): Promise<number> {
  let started = 0;
  let greeted = 0;
  const one = async (): Promise<void> => {
    while (started < total) {
      started++;
      const { promise, resolve } = Promise.withResolvers<boolean>();
      let received = "";
      await Bun.connect({
        hostname: "127.0.0.1",
        port,
        socket: {
          data: (_, data) => void (received += data.toString()),
          end: (socket) => void socket.end(),
          close: (_, error) => resolve(error === undefined && received === GREETING),
          connectError: () => resolve(false),
        },
      }).catch(() => {});
      if (await promise) greeted++;
    }
  };
  await Promise.all(Array.from({ length: atOnce }, one));
  return greeted;
}

describe("socket-service adopts", () => {
  test("several sockets of every family, with names", async () => {
    using directory = scratch();
    const [ipv4, ipv6, unix] = [freePort(), freePort(AF_INET6), join(directory.path, "socket")];
    await using service = await activate(NAME, {
      flags: ["--fdname=four:six:unix"],
      listen: [`127.0.0.1:${ipv4}`, `[::1]:${ipv6}`, unix],
    });
    expect(await ask(ipv4)).toBe(GREETING);
    expect(await ask(ipv6, "::1")).toBe(GREETING);
    expect(await ask(unix)).toBe(GREETING);
    expect(service.stderr).not.toMatch(/^socket-service:/m);
  });

  test.each([1, 37, 511, 4096])("a TCP socket and keeps its backlog of %i", async (backlog) => {
    const fd = sockets.listening(AF_INET, backlog);
    await using service = execute(NAME, [fd]);
    expect(await ask(sockets.portOf(fd))).toBe(GREETING);
    expect(sockets.backlogOf(fd)).toBe(backlog);
    expect(service.stderr).toBe("");
    sockets.close(fd);
  });

  test("a Unix socket and keeps its backlog", async () => {
    using directory = scratch();
    const path = join(directory.path, "socket");
    const fd = sockets.listening(AF_UNIX, 7, path);
    await using service = execute(NAME, [fd]);
    expect(await ask(path)).toBe(GREETING);
    service.process.kill("SIGSTOP");
    // The kernel queues one more than the backlog.
    const queued: number[] = [];
    for (let next = sockets.connected(path); next !== undefined; next = sockets.connected(path))
      queued.push(next);
    expect(queued.length).toBe(8);
    for (const client of queued) sockets.close(client);
    sockets.close(fd);
  });

  test("a socket that stays with the service manager when the service ends", async () => {
    const fd = sockets.listening(AF_INET, 10);
    const port = sockets.portOf(fd);
    for (let run = 0; run < 2; run++) {
      await using service = execute(NAME, [fd]);
      expect(await ask(port)).toBe(GREETING);
      service.process.kill("SIGTERM");
      expect(await service.status()).toBe(0);
      // Between the runs a client is queued, and the next run greets it.
      const early = await Client.connect(port);
      await using next = execute(NAME, [fd]);
      expect(await early.received()).toBe(GREETING);
      early.close();
      next.process.kill("SIGTERM");
      expect(await next.status()).toBe(0);
    }
    sockets.close(fd);
  });
});

describe("socket-service under load", () => {
  test("greets 100,000 connections, 64 at a time, and gives the memory back", async () => {
    const port = freePort();
    await using service = await activate(NAME, { listen: [port] });
    expect(await load(port, 100_000, 64)).toBe(100_000);
    await eventually(() => processStatus(service.process.pid, "VmRSS") < 40 * 1024, 20_000);
    expect(service.stderr).not.toMatch(/^socket-service:/m);
  });

  test("greets 300 clients at once with at most 64 descriptors", async () => {
    const fd = sockets.listening(AF_INET, 4096);
    await using service = execute("../test/activate/limited.sh", [fd], {}, ["64"]);
    const clients = Array.from({ length: 300 }, () => ask(sockets.portOf(fd)));
    expect(await Promise.all(clients)).toEqual(Array(300).fill(GREETING));
    expect(service.stderr).toBe("");
    sockets.close(fd);
  });

  test("sends no datagram for each connection, and opens no socket to", async () => {
    using directory = scratch();
    const receiver = new NotifyReceiver(join(directory.path, "notify"));
    const port = freePort();
    await using service = await activate(NAME, {
      listen: [port],
      env: { NOTIFY_SOCKET: receiver.address },
    });
    const began = performance.now();
    expect(await load(port, 20_000, 64)).toBe(20_000);
    const status = /^STATUS=Socket accepted, connections served: (\d+)\n$/;
    let datagrams = 0;
    await eventually(async () => {
      const { text } = await receiver.next();
      datagrams++;
      return Number(status.exec(text)?.[1]) === 20_000;
    });
    const seconds = (performance.now() - began) / 1000;
    // READY, the first connection at once, then at most one a second.
    expect(datagrams).toBeLessThanOrEqual(2 + Math.ceil(seconds));
    expect(service.stderr).not.toMatch(/^socket-service:/m);
    receiver.close();
  });
});

describe("socket-service tells the service manager", () => {
  test("that it listens, that it accepted, and that it stops", async () => {
    using directory = scratch();
    const receiver = new NotifyReceiver(join(directory.path, "notify"));
    const fds = [sockets.listening(AF_INET, 5), sockets.listening(AF_INET6, 5)];
    fds.push(sockets.listening(AF_UNIX, 5, join(directory.path, "socket")));
    const [ipv4 = 0, ipv6 = 0] = fds.slice(0, 2).map(sockets.portOf);
    await using service = execute(NAME, fds, { NOTIFY_SOCKET: receiver.address });
    const where = `127.0.0.1:${ipv4}, [::1]:${ipv6}, ${join(directory.path, "socket")}`;
    expect((await receiver.next()).text).toBe(`READY=1\nSTATUS=Listening on ${where}\n`);
    expect(await ask(ipv4)).toBe(GREETING);
    expect((await receiver.next()).text).toBe("STATUS=Socket accepted, connections served: 1\n");
    service.process.kill("SIGTERM");
    expect((await receiver.next()).text).toBe("STOPPING=1\n");
    expect(await service.status()).toBe(0);
    receiver.close();
    fds.forEach(sockets.close);
  });

  test("nothing, says so once for each failure, and serves on, where nobody receives", async () => {
    const fd = sockets.listening(AF_INET, 5);
    await using service = execute(NAME, [fd], { NOTIFY_SOCKET: "/nonexistent/notify" });
    expect(await ask(sockets.portOf(fd))).toBe(GREETING);
    service.process.kill("SIGTERM");
    expect(await service.status()).toBe(0);
    const lines = service.stderr.trimEnd().split("\n");
    expect(lines.length).toBe(3);
    for (const line of lines)
      expect(line).toMatch(/^socket-service: cannot notify .*"\/nonexistent\/notify".*ENOENT/);
    sockets.close(fd);
  });

  test("that it is alive, at half the watchdog's interval", async () => {
    using directory = scratch();
    const receiver = new NotifyReceiver(join(directory.path, "notify"));
    const fd = sockets.listening(AF_INET, 5);
    await using service = execute(NAME, [fd], {
      NOTIFY_SOCKET: receiver.address,
      WATCHDOG_USEC: "200000",
    });
    expect((await receiver.next()).text).toStartWith("READY=1\n");
    const began = performance.now();
    for (let ping = 0; ping < 5; ping++) expect((await receiver.next()).text).toBe("WATCHDOG=1\n");
    expect(performance.now() - began).toBeWithin(400, 800);
    // A process that is stuck is not alive.
    service.process.kill("SIGSTOP");
    await Bun.sleep(300);
    while (receiver.poll() !== undefined);
    await Bun.sleep(300);
    expect(receiver.poll()).toBeUndefined();
    receiver.close();
    sockets.close(fd);
  });

  test("nothing of the watchdog where it is meant for another process", async () => {
    using directory = scratch();
    const receiver = new NotifyReceiver(join(directory.path, "notify"));
    const fd = sockets.listening(AF_INET, 5);
    await using service = execute(NAME, [fd], {
      NOTIFY_SOCKET: receiver.address,
      WATCHDOG_USEC: "20000",
      WATCHDOG_PID: "1",
    });
    expect((await receiver.next()).text).toStartWith("READY=1\n");
    await ask(sockets.portOf(fd));
    expect((await receiver.next()).text).toStartWith("STATUS=Socket accepted");
    service.process.kill("SIGTERM");
    expect((await receiver.next()).text).toBe("STOPPING=1\n");
    receiver.close();
    sockets.close(fd);
  });
});

describe("socket-service ends", () => {
  test.each(["0.3", "1"])("after %s seconds without a connection", async (seconds) => {
    const fd = sockets.listening(AF_INET, 5);
    await using service = execute(NAME, [fd], {}, [`--idle-timeout=${seconds}`]);
    expect(await ask(sockets.portOf(fd))).toBe(GREETING);
    const began = performance.now();
    expect(await service.status()).toBe(0);
    expect(performance.now() - began).toBeWithin(Number(seconds) * 1000 - 50, 2000);
    expect(service.stderr).toBe("");
    sockets.close(fd);
  });

  test("not while a connection is open, however short the idle timeout", async () => {
    const fd = sockets.listening(AF_INET, 5);
    await using service = execute(NAME, [fd], {}, ["--idle-timeout", "0.1"]);
    const client = await Client.connect(sockets.portOf(fd));
    expect(await client.received()).toBe(GREETING);
    // Long after the idle timeout it still greets, and then ends with the connection.
    await Bun.sleep(1000);
    expect(await ask(sockets.portOf(fd))).toBe(GREETING);
    client.finish();
    expect(await service.status()).toBe(0);
    sockets.close(fd);
  });

  test("never by itself with --idle-timeout=infinity, or before a day is over", async () => {
    for (const timeout of ["infinity", "86400", "99999999999"]) {
      const fd = sockets.listening(AF_INET, 5);
      await using service = execute(NAME, [fd], {}, [`--idle-timeout=${timeout}`]);
      expect(await ask(sockets.portOf(fd))).toBe(GREETING);
      await Bun.sleep(200);
      expect(service.process.exitCode).toBeNull();
      sockets.close(fd);
    }
  });

  test.each(["SIGTERM", "SIGINT"] as const)("at %s, when open connections have", async (signal) => {
    const fd = sockets.listening(AF_INET, 5);
    const port = sockets.portOf(fd);
    await using service = execute(NAME, [fd]);
    const client = await Client.connect(port);
    expect(await client.received()).toBe(GREETING);
    service.process.kill(signal);
    await eventually(() => !existsSync(`/proc/${service.process.pid}/fd/3`));
    // It takes no new connection, but leaves it in the queue.
    const late = await Client.connect(port);
    await Bun.sleep(100);
    expect(service.process.exitCode).toBeNull();
    client.send("a last word");
    client.finish();
    expect(await service.status()).toBe(0);
    await using next = execute(NAME, [fd]);
    expect(await late.received()).toBe(GREETING);
    expect(next.stderr).toBe("");
    late.close();
    sockets.close(fd);
  });

  test("at SIGTERM within five seconds, though a connection stays open", async () => {
    const fd = sockets.listening(AF_INET, 5);
    await using service = execute(NAME, [fd]);
    const client = await Client.connect(sockets.portOf(fd));
    expect(await client.received()).toBe(GREETING);
    const began = performance.now();
    service.process.kill("SIGTERM");
    expect(await service.status()).toBe(0);
    expect(performance.now() - began).toBeWithin(4000, 6000);
    client.close();
    sockets.close(fd);
  });

  test("at once at a second signal", async () => {
    const fd = sockets.listening(AF_INET, 5);
    await using service = execute(NAME, [fd]);
    const client = await Client.connect(sockets.portOf(fd));
    expect(await client.received()).toBe(GREETING);
    const began = performance.now();
    service.process.kill("SIGTERM");
    await Bun.sleep(100);
    service.process.kill("SIGTERM");
    expect(await service.status()).toBe(0);
    expect(performance.now() - began).toBeLessThan(2000);
    client.close();
    sockets.close(fd);
  });
});

describe("the working directory", () => {
  test.each(SERVICES.map(({ name }) => name))("changes nothing of what %s does", async (name) => {
    using directory = scratch();
    const ran = join(directory.path, "ran");
    writeFileSync(join(directory.path, "preload.ts"), `Bun.write(${JSON.stringify(ran)}, "")`);
    writeFileSync(join(directory.path, "bunfig.toml"), `preload = ["./preload.ts"]`);
    writeFileSync(join(directory.path, ".env"), "LISTEN_FDS=2\nBUN_OPTIONS=--preload=./preload.ts");
    writeFileSync(join(directory.path, "libc.so.6"), "not a library");
    const port = freePort();
    const { flags = [] } = SERVICES.find((service) => service.name === name) ?? {};
    await using service = await activate(name, {
      flags,
      listen: [port],
      cwd: directory.path,
    });
    expect(await ask(port)).toStartWith("This ");
    expect(existsSync(ran)).toBe(false);
    expect(service.stderr).not.toMatch(/^socket-service/m);
    expect(readdirSync(directory.path).length).toBe(4);
  });
});
