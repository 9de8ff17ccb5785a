/* socket-service: its sockets, its notifications, and its end. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync, unlinkSync } from "node:fs";
import { join } from "node:path";

import { lacks, lacksIPv6 } from "../support/needs.ts";
import * as sockets from "../support/sockets.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import { AF_INET, AF_INET6, AF_UNIX, SOCK_STREAM } from "../support/sockets.ts";
import { EMULATED, until } from "../support/until.ts";
import { activate, ask, Client, execute } from "../support/daemon.ts";
import { freePort, Listener, load, scratch } from "../support/daemon.ts";

setDefaultTimeout(120_000);

const NAME = "socket-service";
const GREETING = "This is a test\n";

const activated = test.skipIf(lacks("systemd-socket-activate"));

describe("socket-service adopts", () => {
  activated.skipIf(lacksIPv6())("several sockets of every family, with names", async () => {
    using directory = scratch();
    const [ipv4, ipv6, unix] = [
      freePort(),
      freePort(SOCK_STREAM, AF_INET6),
      join(directory.path, "socket"),
    ];
    await using service = await activate(NAME, {
      flags: ["--fdname=four:six:unix"],
      listen: [`127.0.0.1:${ipv4}`, `[::1]:${ipv6}`, unix],
    });
    expect(await ask(ipv4)).toBe(GREETING);
    expect(await ask(ipv6, "::1")).toBe(GREETING);
    expect(await ask(unix)).toBe(GREETING);
    expect(service.said).toBe("");
  });

  // qemu-user returns four bytes of TCP_INFO.
  test.skipIf(EMULATED).each([1, 4096])(
    "a TCP socket and keeps its backlog of %i",
    async (backlog) => {
      await using service = new Listener({ backlog });
      expect(await service.ask()).toBe(GREETING);
      expect(sockets.backlogOf(service.fd)).toBe(backlog);
      expect(service.stderr).toBe("");
    },
  );

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
    for (const client of [...queued, fd]) sockets.close(client);
  });
});

// Under an emulator this takes minutes.
describe.skipIf(EMULATED)("socket-service under load", () => {
  activated("greets 20,000 connections, 64 at a time", async () => {
    await using service = await activate(NAME);
    expect(await load(service.port, 20_000, 64)).toEqual({ [GREETING]: 20_000 });
    expect(service.said).toBe("");
  });

  test("greets 300 clients at once with at most 64 descriptors", async () => {
    const limited = { name: "../test/activate/limited.sh", args: ["64"] };
    await using service = new Listener({ ...limited, backlog: 4096 });
    expect(await load(service.port, 300, 300)).toEqual({ [GREETING]: 300 });
    expect(service.stderr).toBe("");
  });

  test.each([22, 32])("greets with a limit of %i descriptors", async (limit) => {
    const fds = [sockets.listening(AF_INET, 64), sockets.listening(AF_INET6, 64)];
    await using service = execute("../test/activate/limited.sh", fds, {}, [String(limit)]);
    const [ipv4 = 0, ipv6 = 0] = fds.map(sockets.portOf);
    const both = () => [ask(ipv4), ask(ipv6, sockets.LOOPBACK6)];
    const asked = Array.from({ length: 20 }, both).flat();
    expect(await Promise.all(asked)).toEqual(Array(40).fill(GREETING));
    expect(await service.stop()).toBe(0);
    expect(service.stderr).toBe("");
    fds.forEach(sockets.close);
  });

  test("gives back the memory for 8,000 clients that never closed, once they are dropped", async () => {
    await using service = new Listener({ args: ["--idle-timeout=infinity"], backlog: 4096 });
    const kibibytes = () => {
      const status = readFileSync(`/proc/${service.process.pid}/status`, "utf8");
      return Number(/^RssAnon:\s+(\d+)/m.exec(status)?.[1]);
    };
    const clients = await Promise.all(Array.from({ length: 8000 }, () => service.client()));
    let most = 0;
    for (const client of clients) {
      expect(await client.received()).toBe(GREETING);
      most = Math.max(most, kibibytes());
    }
    await Promise.all(clients.map((client) => client.closed()));
    // Without a collection of its own Bun keeps all of it for ten seconds or more.
    await until("a third of it is given back", 8, () => kibibytes() < most * 0.7);
    expect(service.stderr).toBe("");
  });
});

describe("socket-service tells the service manager", () => {
  test("that it listens, after it greeted the client that waits; that it accepted; that it stops", async () => {
    using directory = scratch();
    using receiver = new NotifyReceiver();
    const fds = [sockets.listening(AF_INET, 5), sockets.listening(AF_INET6, 5)];
    fds.push(sockets.listening(AF_UNIX, 5, join(directory.path, "so\n\x9b\u202ecket")));
    const [port = 0, other = 0] = fds.slice(0, 2).map(sockets.portOf);
    const client = sockets.connected({ family: AF_INET, port }) ?? -1;
    await using service = execute(NAME, fds, { NOTIFY_SOCKET: receiver.address });
    const where = `127.0.0.1:${port}, [${sockets.LOOPBACK6}]:${other}, ${join(directory.path, "so?cket")}`;
    // Waits without a pause, so that a greeting that has come by then was sent before READY=1.
    let ready = receiver.poll();
    for (const end = performance.now() + 5000; !ready && performance.now() < end;)
      ready = receiver.poll();
    expect(sockets.peek(client)).toBe(GREETING);
    expect(ready?.text).toBe(`READY=1\nSTATUS=Listening on ${where}\n`);
    expect(await receiver.text()).toBe("STATUS=Socket accepted, connections served: 1\n");
    sockets.close(client);
    service.process.kill("SIGTERM");
    expect(await receiver.text()).toBe("STOPPING=1\n");
    // Sooner than it would tell the next number of connections.
    expect(await service.status(700)).toBe(0);
    fds.forEach(sockets.close);
  });

  test("of its sockets in no more bytes than systemd reads", async () => {
    using receiver = new NotifyReceiver();
    const paths = Array.from({ length: 60 }, (_, n) => `@${"x".repeat(90)}-${process.pid}-${n}`);
    const fds = paths.map((path) => sockets.listening(AF_UNIX, 5, path));
    await using service = execute(NAME, fds, { NOTIFY_SOCKET: receiver.address });
    const { text } = await receiver.next();
    expect(text).toMatch(/^READY=1\nSTATUS=Listening on (@x+-\d+-\d+, )+@x+-\d+-1 and 58 more\n$/);
    expect(await ask(`\0${paths[59]?.slice(1)}`)).toBe(GREETING);
    expect(service.stderr).toBe("");
    fds.forEach(sockets.close);
  });

  test("that it is ready as soon as somebody receives, and until then warns once and serves", async () => {
    using directory = scratch();
    const path = join(directory.path, "notify");
    // As if its stderr were not the journal: a journald that runs here would have the warnings.
    await using service = new Listener({ env: { NOTIFY_SOCKET: path } });
    expect(await service.ask()).toBe(GREETING);
    const warning = `cannot notify [^\n]*"${path}"[^\n]*ENOENT[^\n]*\n`;
    await service.says(RegExp(`^${warning}$`));
    const receiver = new NotifyReceiver(path);
    expect(await receiver.text()).toStartWith("READY=1\n");
    expect(await receiver.text()).toStartWith("STATUS=Socket accepted");
    // It was heard meanwhile, so this is worth a warning again.
    receiver.close();
    unlinkSync(path);
    expect(await service.stop()).toBe(0);
    expect(service.stderr).toMatch(RegExp(`^(${warning}){2}$`));
  });

  test("never that it is ready after SIGTERM, even if nobody received before", async () => {
    using directory = scratch();
    const path = join(directory.path, "notify");
    await using service = new Listener({ env: { NOTIFY_SOCKET: path } });
    const client = await service.client();
    await service.says(/^cannot notify .*\n$/);
    service.process.kill("SIGTERM");
    await until("it no longer accepts", 5, () => !service.accepts);
    using receiver = new NotifyReceiver(path);
    // Its client keeps it for five seconds, in which it would try again.
    expect(await service.status()).toBe(0);
    expect(receiver.poll()).toBeUndefined();
    client.close();
  });
});

describe("socket-service ends", () => {
  test.each(["SIGTERM", "SIGINT"] as const)("at %s, when open connections have", async (signal) => {
    using receiver = new NotifyReceiver();
    await using service = new Listener({ env: { NOTIFY_SOCKET: receiver.address } });
    const client = await service.client();
    expect(await client.received()).toBe(GREETING);
    service.process.kill(signal);
    await until("it no longer accepts", 5, () => !service.accepts);
    const late = sockets.connected({ family: AF_INET, port: service.port }) ?? -1;
    expect(service.process.exitCode).toBeNull();
    client.send("a last word");
    client.finish();
    // Sooner than it would tell the next number of connections.
    expect(await service.status(700)).toBe(0);
    // The late client has waited for the next process: the socket stays with the manager.
    expect(sockets.peek(late)).toBe("");
    await using next = execute(NAME, [service.fd]);
    await until("the next process greets", 5, () => sockets.peek(late) === GREETING);
    expect(service.stderr + next.stderr).toBe("");
    sockets.close(late);
  });

  test("and accepts on none of its sockets from the signal on", async () => {
    using directory = scratch();
    const path = join(directory.path, "socket");
    const fds = [sockets.listening(AF_INET, 5), sockets.listening(AF_INET6, 5)];
    const [ipv4 = 0, ipv6 = 0] = fds.map(sockets.portOf);
    fds.push(sockets.listening(AF_UNIX, 5, path));
    await using service = execute(NAME, fds);
    const open = await Client.connect(path);
    expect(await open.received()).toBe(GREETING);
    service.process.kill("SIGTERM");
    // Before it ends: an open connection has five seconds.
    await until("all three are closed", 3, () =>
      [3, 4, 5].every((fd) => !existsSync(`/proc/${service.process.pid}/fd/${fd}`)),
    );
    expect(service.process.exitCode).toBeNull();
    const late = [{ family: AF_INET, port: ipv4 }, { family: AF_INET6, port: ipv6 }, path].map(
      (to) => sockets.connected(to) ?? -1,
    );
    open.close();
    expect(await service.status()).toBe(0);
    expect(late.map(sockets.peek)).toEqual(["", "", ""]);
    // All wait for the next process.
    await using next = execute(NAME, fds);
    for (const client of late)
      await until("the next process greets", 5, () => sockets.peek(client) === GREETING);
    expect(service.stderr + next.stderr).toBe("");
    [...late, ...fds].forEach(sockets.close);
  });

  test("at once at a second signal", async () => {
    await using service = new Listener();
    const client = await service.client();
    expect(await client.received()).toBe(GREETING);
    service.process.kill("SIGTERM");
    await until("it no longer accepts", 5, () => !service.accepts);
    service.process.kill("SIGINT");
    // An open connection has five seconds.
    expect(await service.status(4000)).toBe(0);
    client.close();
  });

  test.each(["infinity", "99999999999"])(
    "not by itself with --idle-timeout=%s",
    async (timeout) => {
      await using service = new Listener({ args: [`--idle-timeout=${timeout}`] });
      expect(await service.ask()).toBe(GREETING);
      await Bun.sleep(300);
      expect(service.process.exitCode).toBeNull();
      // Bun warns of a timer that is too long, and fires it at once.
      expect(service.stderr).toBe("");
    },
  );
});
