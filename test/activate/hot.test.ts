/* `bun --hot` and `bun --watch` on passed sockets: the loop of edit and reload. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { once } from "node:events";
import { readdirSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { resolve } from "node:path";

import { activate, ask, askDatagram, execute } from "../support/daemon.ts";
import { freePort, get, type Running } from "../support/daemon.ts";
import { lines } from "../support/lines.ts";
import { lacks } from "../support/needs.ts";
import * as sockets from "../support/sockets.ts";
import { program } from "../support/project.ts";
import { until } from "../support/until.ts";

setDefaultTimeout(60_000);

const PROGRAM = `
import { listen, listenFds, serve } from "socket-service/activation";
const [http, also, tcp] = listenFds().map(({ fd }) => fd);
serve({ fd: http, fetch: () => new Response("http VERSION") });
serve({ fd: also, fetch: () => new Response("also VERSION") });
if (tcp !== undefined)
  listen({ fd: tcp, socket: { open: (socket) => void socket.end("tcp VERSION"), data() {} } });
console.error("evaluated VERSION");
`;

/** A program to be edited. */
function edited(source = PROGRAM) {
  const at = (version: number) => source.replaceAll("VERSION", `v${version}`);
  const it = program(at(0));
  const edit = (version: number) => writeFileSync(it.path, at(version));
  /** Has a service evaluate a version: the first one is there. */
  const evaluate = async (service: Running, version: number) => {
    if (version === 0) return;
    edit(version);
    await service.says(new RegExp(`evaluated v${version}\n`));
  };
  return { ...it, edit, evaluate };
}

const start = (flag: string, path: string, ports: number[]): Promise<Running> =>
  activate(process.execPath, {
    listen: ports.map((port) => `127.0.0.1:${port}`),
    args: [...flag.split(" "), path],
  });

describe.skipIf(lacks("systemd-socket-activate"))("under systemd-socket-activate", () => {
  test("under bun --hot, the next client gets each of ten edits, and nothing leaks", async () => {
    using source = edited();
    const ports = [freePort(), freePort(), freePort()];
    const [http = 0, also = 0, tcp = 0] = ports;
    await using service = await start("--hot", source.path, ports);
    expect(await get(http)).toBe("http v0");
    expect(await get(also)).toBe("also v0");

    const open = () => readdirSync(`/proc/${service.process.pid}/fd`).length;
    const before = open();

    // Somebody connects all the time, and must always be answered.
    let busy = true;
    const answers = new Set<string>();
    const clients = [() => get(http), () => get(also), () => ask(tcp)].map(async (client) => {
      while (busy) answers.add(await client().catch(String));
    });

    const all = (version: number): [string, string, string] => [
      `http v${version}`,
      `also v${version}`,
      `tcp v${version}`,
    ];
    const expected = all(0);
    for (let version = 1; version <= 10; version++) {
      await source.evaluate(service, version);
      expect(await Promise.all([get(http), get(also), ask(tcp)])).toEqual(all(version));
      expected.push(...all(version));
    }
    busy = false;
    await Promise.all(clients);
    expect([...answers].filter((answer) => !expected.includes(answer))).toEqual([]);
    // Bun closes those of the last clients a moment later.
    await until("no more is open than before", 10, () => open() <= before).catch(() => {});
    expect(open()).toBeLessThanOrEqual(before);
  });

  test("under bun --smol --hot, sockets keep their names, and a second call finds them", async () => {
    using source = edited(`
import { listen, listenFds, pick, requireListenFds } from "socket-service/activation";
const { http, admin } = pick(listenFds(), { http: "one", admin: "one" });
const names = requireListenFds().map(({ name }) => name).join();
for (const fd of [http, admin])
  listen({ fd, socket: { open: (socket) => void socket.end("VERSION " + names), data() {} } });
console.error("evaluated VERSION");
`);
    const ports = [freePort(), freePort()];
    await using service = await activate(process.execPath, {
      flags: ["--fdname=http:admin"],
      listen: ports.map((port) => `127.0.0.1:${port}`),
      args: ["--smol", "--hot", source.path],
    });
    for (let version = 0; version <= 2; version++) {
      await source.evaluate(service, version);
      for (const port of ports) expect(await ask(port)).toBe(`v${version} http,admin`);
    }
  });

  const DRAINED = `
import { drain, passedFd, serve } from "socket-service/activation";
const server = serve({
  fd: passedFd(),
  fetch: (request, server) => (server.upgrade(request) ? undefined : new Response("http VERSION")),
  websocket: { open: (socket) => void socket.send("ws VERSION"), message() {} },
});
process.removeAllListeners("SIGTERM").on("SIGTERM", async () => {
  const drained = drain(server, { grace: 500 });
  console.error("draining VERSION");
  process.exit((await drained) ? 0 : 1);
});
console.error("evaluated VERSION");
`;

  test.each(["--hot", "--smol --hot", "--hot --smol"])(
    "under bun %s, drain ends the newest code, and WebSockets of each version",
    async (flags) => {
      using source = edited(DRAINED);
      const port = freePort();
      await using service = await start(flags, source.path, [port]);
      const codes: Promise<number>[] = [];
      for (let version = 0; version <= 2; version++) {
        await source.evaluate(service, version);
        expect(await get(port)).toBe(`http v${version}`);
        const socket = new WebSocket(`ws://127.0.0.1:${port}/`);
        codes.push(new Promise((resolve) => (socket.onclose = ({ code }) => resolve(code))));
        const greeting = await new Promise(
          (resolve) => (socket.onmessage = ({ data }) => resolve(data)),
        );
        expect(greeting).toBe(`ws v${version}`);
      }
      service.process.kill("SIGTERM");
      await service.says(/draining v2\n/);
      // An edit changes nothing about that. Bun may evaluate the last one twice, too.
      for (const version of [2, 3]) {
        if (version === 3) await source.evaluate(service, version);
        const response = await fetch(`http://127.0.0.1:${port}/`, { keepalive: false });
        expect(await response.text()).toBe(`http v${version}`);
        expect(response.headers.get("Connection")).toBe("close");
      }
      expect(await service.status()).toBe(0);
      expect(await Promise.all(codes)).toEqual([1001, 1001, 1001]);
    },
  );

  test("under bun --hot, drain sends a direct stream to its end, also after an edit", async () => {
    const size = 30_000_000;
    using source = edited(`
import { drain, listenFds, serve } from "socket-service/activation";
const [first] = listenFds();
const pull = async (stream) => { stream.write("y".repeat(${size})); stream.end(); };
const fetch = () => new Response(new ReadableStream({ type: "direct", pull }));
const server = serve({ fd: first.fd, fetch });
process.removeAllListeners("SIGTERM").on("SIGTERM", async () =>
  process.exit((await drain(server, { grace: 20 })) ? 0 : 1),
);
console.error("evaluated VERSION");
`);
    // With three sockets passed, Bun's event loop has another number than with one.
    const ports = [freePort(), freePort(), freePort()];
    await using service = await start("--hot", source.path, ports);
    const begin = async () => {
      const client = connect({ port: ports[0] ?? 0, host: "127.0.0.1" });
      client.write("GET / HTTP/1.1\r\nHost: example\r\n\r\n");
      await once(client, "readable");
      return client;
    };
    (await begin()).destroy();
    await source.evaluate(service, 1);
    const slow = await begin();
    service.process.kill("SIGTERM");
    // Longer than any connection has to send its first request.
    await Bun.sleep(500);
    expect(service.process.exitCode).toBeNull();
    let received = 0;
    for await (const chunk of slow) received += chunk.length;
    expect(received).toBeGreaterThan(size);
    expect(await service.status()).toBe(0);
  });

  test("under bun --hot, a socket may change from serve to listen and back", async () => {
    using source = edited(`
import { listen, passedFd, serve } from "socket-service/activation";
const fd = passedFd();
const version = "VERSION";
if (version === "v1") listen({ fd, socket: { open: (socket) => void socket.end(version), data() {} } });
else serve({ fd, fetch: () => new Response(version) });
console.error("evaluated VERSION");
`);
    const port = freePort();
    await using service = await start("--hot", source.path, [port]);
    for (let version = 0; version <= 2; version++) {
      await source.evaluate(service, version);
      const one = version === 1 ? () => ask(port) : () => get(port);
      // If the former one still accepted, some would be its.
      const answers = await Promise.all(Array.from({ length: 20 }, one));
      expect(answers).toEqual(Array(20).fill(`v${version}`));
    }
  });

  test("under bun --hot, a datagram socket gets the new code", async () => {
    using source = edited(`
import { passedFd, udpSocket } from "socket-service/activation";
await udpSocket({
  fd: passedFd(),
  socket: { data: (socket, _, port, address) => void socket.send("udp VERSION", port, address) },
});
console.error("evaluated VERSION");
`);
    const port = freePort(sockets.SOCK_DGRAM);
    await using service = await activate(process.execPath, {
      flags: ["-d"],
      listen: [`127.0.0.1:${port}`],
      args: ["--hot", source.path],
    });
    for (let version = 0; version <= 3; version++) {
      await source.evaluate(service, version);
      expect(await askDatagram(port)).toBe(`udp v${version}`);
    }
  });

  test("under bun --watch, the error after the first edit names --hot", async () => {
    using source = edited();
    const ports = [freePort(), freePort()];
    await using service = await start("--watch", source.path, ports);
    expect(await get(ports[0] ?? 0)).toBe("http v0");
    source.edit(1);
    await service.says(
      /descriptor 3 is not open, though LISTEN_FDS is 2: use bun --hot, because bun --watch .*\n/,
    );
  });
});

test("under bun --hot, the count of lost log entries and the failure of notifications outlast an edit", async () => {
  using source = edited(`
import { openSync } from "node:fs";
import { log, LogLevel, notify } from "socket-service/activation";
import { duplicate, replace } from "${resolve(import.meta.dir, "../../src/activation/linux/libc.ts")}";
if (notify({ ready: true })) throw new Error("somebody is there");
globalThis.stderr ??= duplicate(2);
replace("VERSION" === "v0" ? openSync("/dev/full", "w") : globalThis.stderr, 2);
console.log(log(LogLevel.info, "VERSION"));
`);
  const variables = { NOTIFY_SOCKET: "/nonexistent/notify" };
  await using service = execute(process.execPath, [], variables, ["--hot", source.path]);
  const output = lines(service.process.stdout);
  expect((await output.next()).value).toBe("false");
  source.edit(1);
  expect((await output.next()).value).toBe("true");
  await service.says(
    /^cannot notify [^\n]*\nv1\nlog entries were lost, because the journal or stderr was full: 1\n$/,
  );
});
