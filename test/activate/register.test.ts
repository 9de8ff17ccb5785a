/* Programs that know nothing of systemd, with the preload, on sockets that they are passed. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { createSocket } from "node:dgram";
import { join, relative, resolve } from "node:path";
import { connect as connectTLS } from "node:tls";

import { Client, execute, freePort, get, type Running } from "../support/daemon.ts";
import { Kept } from "../support/kept.ts";
import { CERTIFICATE, client, exchange, text } from "../support/listening.ts";
import { lacksIPv6 } from "../support/needs.ts";
import * as sockets from "../support/sockets.ts";
import { LOOPBACK6 } from "../support/sockets.ts";
import { REGISTER, type Service, type StartOptions, startsServices } from "../support/unchanged.ts";
import { shortest, until } from "../support/until.ts";

setDefaultTimeout(60_000);

const { service, started } = startsServices();

/** The module, for a program that uses it. */
const MODULE = JSON.stringify(resolve(import.meta.dir, "../../src/activation/index.ts"));

const warnings = ({ stderr }: Running) => stderr.match(/^socket-service\/register: .*$/gm) ?? [];
/** The output of a program on stderr, but for Bun's own line. */
const noise = ({ stderr }: Running) => stderr.replace(/^Started development server: .*\n/m, "");

/** Programs that answer with their own address, the client's, and a version, by the API of their socket. */
const FETCH = `fetch: (request, server) => Response.json(
  [server.hostname, server.port, server.requestIP(request)?.address, "VERSION"])`;
const HANDLER = `({ socket }, response) => {
  const { address, port } = server.address();
  response.end(JSON.stringify([address, port, socket.remoteAddress, "VERSION"]));
}`;
const HTTP = {
  "Bun.serve": `Bun.serve({ port: 3000, ${FETCH} });`,
  "export default": `export default { ${FETCH} };`,
  "export default of a class": `class App {
      ${FETCH.replace(": (request, server) =>", " = (request, server) =>")};
      routes = [];
      get port() { return 3000; }
    }
    export default new App();`,
  "node:http": `import { createServer } from "node:http";
    const server = createServer(${HANDLER}).listen(3000);`,
} as const;

describe.each(Object.entries(HTTP))("a program of %s", (_, source) => {
  test("serves on the passed socket, reports its address, becomes ready, and sees the client's", async () => {
    const { it, running, status } = await started(source);
    expect(status).toBe(`READY=1\nSTATUS=Listening on 127.0.0.1:${it.port}\n`);
    expect(JSON.parse(await it.get())).toEqual(["127.0.0.1", it.port, "127.0.0.1", "VERSION"]);
    expect(noise(running)).toBe("");
  });

  test("has the same socket after each edit under bun --hot", async () => {
    const { it, running } = await started(source, { flags: ["--hot"] });
    for (const version of ["first", "second", "third"]) {
      it.write("program.ts", source.replace("VERSION", version));
      const answer = await until(`the ${version} edit`, 10, async () => {
        const answer = await it.get();
        return answer.includes(version) && answer;
      });
      expect(JSON.parse(answer)).toEqual(["127.0.0.1", it.port, "127.0.0.1", version]);
    }
    expect(noise(running)).toBe("");
  });

  test("serves over a Unix socket", async () => {
    const { it, running, status } = await started(source, {}, { family: "Unix" });
    const { to } = it;
    if (!("path" in to)) expect.unreachable();
    expect(status).toBe(`READY=1\nSTATUS=Listening on ${to.path}\n`);
    const answer = await fetch("http://example/", { unix: to.path });
    expect(answer.status).toBe(noise(running) === "" ? 200 : 0);
  });
});

test("a path that is relative to the working directory is that of its socket, named or not", async () => {
  for (const isNamed of [false, true]) {
    const it = service({ name: "3001" }, { family: "Unix" });
    const { to } = it.sockets[1] ?? expect.unreachable();
    if (!("path" in to)) expect.unreachable();
    const path = relative(it.directory.path, to.path);
    const env = isNamed ? { LISTEN_FDNAMES: `3001:${to.path}` } : {};
    const running = it.run(`Bun.serve({ unix: "./${path}", fetch: () => new Response("x") });`, {
      env,
    });
    const signal = AbortSignal.timeout(10_000);
    expect(await (await fetch("http://example/", { unix: to.path, signal })).text()).toBe("x");
    expect(warnings(running)).toEqual([]);
  }
});

const TLS = JSON.stringify(CERTIFICATE);

describe("over TLS", () => {
  test.each([
    ["Bun.serve", `Bun.serve({ port: 3000, tls: ${TLS}, ${FETCH} });`],
    [
      "node:https",
      `const server = require("node:https").createServer(${TLS}, ${HANDLER}).listen(3000);`,
    ],
  ])("a program of %s serves", async (_, source) => {
    const { it } = await started(source);
    const url = it.url.replace("http:", "https:");
    const answer = await fetch(url, { tls: { ca: CERTIFICATE.cert, serverName: "localhost" } });
    expect(await answer.json()).toEqual(["127.0.0.1", it.port, "127.0.0.1", "VERSION"]);
  });

  test("a program of node:tls serves, whenever it sets its handler, and is ready then", async () => {
    const it = service({});
    const running = it.run(
      `const server = require("node:tls").createServer(${TLS}).listen(${freePort()});
      process.on("SIGUSR2", () => server.on("secureConnection", (socket) => socket.end("safe")));
      setTimeout(() => console.error("listens"), 50);`,
    );
    await running.says(/listens/);
    expect(it.receiver.poll()).toBeUndefined();
    running.process.kill("SIGUSR2");
    await it.ready();
    const socket = connectTLS({ host: "127.0.0.1", port: it.port, rejectUnauthorized: false });
    expect(await text(socket)).toBe("safe");
  });

  test("a program of node:http2 serves", async () => {
    const source = `require("node:http2").createServer((request, response) => response.end("two")).listen(3000);`;
    const { it } = await started(source);
    const { connect } = await import("node:http2");
    const session = connect(it.url);
    const stream = session.request({ ":path": "/" }).setEncoding("latin1");
    let body = "";
    for await (const chunk of stream) body += String(chunk);
    expect(body).toBe("two");
    session.destroy();
  });
});

test("under bun --hot, a net.Server that gets its handler late serves the newest code only", async () => {
  const source = `const server = require("node:net").createServer().listen(${freePort()}, "127.0.0.1");
    server.on("connection", (socket) => socket.end("VERSION"));`;
  const { it } = await started(source, { flags: ["--hot"] });
  const ask = async () => await text(await client(it.to));
  for (const version of ["first", "second", "third"]) {
    it.write("program.ts", source.replace("VERSION", version));
    await until(`the ${version} edit`, 10, async () => (await ask()) === version);
  }
  const answers = new Set<string>();
  const asking = async () => {
    for (let n = 0; n < 200; n++) answers.add(await ask());
  };
  await Promise.all(Array.from({ length: 8 }, asking));
  expect(answers).toEqual(new Set(["third"]));
});

test("a socket on [::] is reported as Bun reports its own", async () => {
  const { it } = await started(HTTP["node:http"], {}, { family: "IPv6" });
  const { to } = it;
  if (!("port" in to)) expect.unreachable();
  const answer = await fetch(`http://[${LOOPBACK6}]:${to.port}/`);
  expect(await answer.json()).toEqual([LOOPBACK6, to.port, LOOPBACK6, "VERSION"]);
});

test("a program of node:net reports the address of the passed socket", async () => {
  const { it } = await started(
    `const server = require("node:net").createServer((socket) =>
      socket.end(JSON.stringify(server.address()))).listen(3000);`,
  );
  const { port } = it;
  const address = { address: "127.0.0.1", family: "IPv4", port };
  expect(JSON.parse(await text(await client(it.to)))).toEqual(address);
});

test("a program of Bun.listen serves, whatever its data is", async () => {
  for (const data of ["undefined", "{}", `new (require("node:events"))()`]) {
    const { it } = await started(
      `Bun.listen({ hostname: "127.0.0.1", port: 3000, data: ${data}, socket: { open: (it) => void it.end("Hello"), data() {} } });`,
    );
    expect(await text(await client(it.to))).toBe("Hello");
  }
});

test("a child that starts before the program listens does not get the address of systemd", async () => {
  const { running } = await started(
    `const { spawnSync } = require("node:child_process");
    console.error("child:", spawnSync("env", { encoding: "utf8" }).stdout.match(/^NOTIFY_SOCKET=.*$/m));
    Bun.serve({ port: 3000, fetch: () => new Response() });`,
  );
  expect(running.stderr).toContain("child: null\n");
});

test("a program of node:http keeps its own timeouts", async () => {
  const { it } = await started(`import { createServer } from "node:http";
    createServer({ headersTimeout: 500, connectionsCheckingInterval: 100 }).listen(3000);`);
  const client = await Client.connect(it.port);
  expect(await client.received()).toStartWith("HTTP/1.1 408 ");
  client.close();
});

test.each([
  "require('node:net').createServer((socket) => socket.end('bye')).listen({ fd: 3 })",
  "require('node:net').createServer().listen({ fd: 3 }).on('connection', (socket) => socket.end('bye'))",
  "Bun.listen({ fd: 3, socket: { open: (socket) => void socket.end('bye'), data() {} } })",
])("a program that names descriptor 3 itself is ready, and ends: %s", async (source) => {
  const { it, running, status } = await started(source, { env: { IDLE_TIMEOUT: "0.5" } });
  expect(status).toBe(`READY=1\nSTATUS=Listening on 127.0.0.1:${it.port}\n`);
  expect(await text(await client(it.to))).toBe("bye");
  expect(await running.status()).toBe(0);
  expect(noise(running)).toBe("");
});

test("a program that limits its connections with listen of the module goes on at each close", async () => {
  const { it, running } = await started(
    `const { listen } = await import(${MODULE});
    const socket = { data() {}, open: (socket) => void socket.write("open"), close: () => console.error("closed") };
    listen({ port: 3000, hostname: "127.0.0.1", maxConnections: 1, socket });`,
  );
  for (let n = 1; n <= 2; n++) {
    const clients = await Promise.all([Kept.to(it.to), Kept.to(it.to)]);
    for (const one of clients) {
      await until("it is served", 10, () => one.received === "open");
      one.socket.destroy();
    }
    await running.says(RegExp(`^(closed\n){${2 * n}}$`));
  }
});

test("a program that limits its connections accepts nobody after SIGTERM, also when one has closed", async () => {
  const { it, running } = await started(
    `const { listen } = await import(${MODULE});
    const socket = { data() {}, open: (socket) => void socket.write("open"), close: () => console.error("closed") };
    listen({ port: 3000, hostname: "127.0.0.1", maxConnections: 1, socket });
    process.on("SIGTERM", () => console.error("told"));`,
  );
  const [first, second] = [await Kept.to(it.to), await Kept.to(it.to)];
  await until("the first is served", 10, () => first.received === "open");
  running.process.kill("SIGTERM");
  await running.says(/^told\n$/);
  first.socket.destroy();
  await running.says(/closed\n$/);
  // As long as it takes to serve another one.
  await Bun.sleep(300);
  expect(second.received).toBe("");
});

test("a program that has sent READY=1 itself keeps its status", async () => {
  const { it, status } = await started(
    `const { notify } = await import(${MODULE});
    Bun.serve({ port: 3000, fetch: () => new Response() });
    notify({ ready: true, status: "of the program" });
    setTimeout(() => notify({ status: "later" }), 200);`,
  );
  expect(status).toBe("READY=1\nSTATUS=of the program\n");
  expect(await it.notified("later")).toEqual(["STATUS=later\n"]);
});

test.each(["serve", "listen"])(
  "what a program gives to %s of the module no other call gets",
  async (name) => {
    const port = freePort();
    const call = {
      serve: "serve({ fd: 3, fetch: () => new Response('bye') })",
      listen:
        "listen({ fd: 3, socket: { open: (socket) => void socket.write('bye'), data() {} } })",
    }[name];
    for (const family of ["IPv4", "Unix"] as const) {
      const it = service({ family });
      const running = it.run(
        `const { listen, serve } = await import(${MODULE});
      ${call};
      Bun.serve({ port: ${port}, fetch: () => new Response("own") });
      console.error("listening");`,
      );
      await running.says(/^listening\n$/);
      expect(await get(port)).toBe("own");
      const socket = await client(it.to);
      if (name === "serve") socket.write("GET / HTTP/1.0\r\n\r\n");
      else socket.end();
      expect(await text(socket)).toEndWith("bye");
      await running.stop();
    }
  },
);

test("after an error of listen of the module, a call gets the socket", async () => {
  const { it } = await started(
    `const { listen } = await import(${MODULE});
    try { listen({ fd: 3, socket: { data: 5 } }); } catch {}
    Bun.serve({ port: 3000, fetch: () => new Response("served") });`,
  );
  expect(await it.get()).toBe("served");
});

test("under bun --hot, too, the program is passed nothing", async () => {
  const { it, running } = await started(
    `const { listenFds, passedFd } = await import(${MODULE});
    console.error(listenFds().length, passedFd());
    Bun.serve({ port: 3000, fetch: () => new Response("served") });`,
    { flags: ["--hot"] },
  );
  expect(await it.get()).toBe("served");
  await running.says(/^0 undefined\n/);
});

test("a second call that names a descriptor is an error, and takes nothing from the first", async () => {
  const { it, running } = await started(
    `const call = () => Bun.listen({ fd: 3, socket: { open: (socket) => void socket.end("bye"), data() {} } });
    call();
    try { call(); } catch ({ message }) { console.error(message); }`,
  );
  await running.says(/^descriptor 3 has a server already: listen on it once\n$/);
  for (let n = 0; n < 2; n++) expect(await text(await client(it.to))).toBe("bye");
});

test("a call that finds no free descriptor leaves the socket to the next one", async () => {
  const { it } = await started(
    `import { closeSync, openSync } from "node:fs";
    const taken = [];
    try { for (;;) taken.push(openSync("/dev/null")); } catch {}
    const call = () => Bun.serve({ port: 3000, fetch: () => new Response("later") });
    try { call(); } catch { taken.forEach((fd) => closeSync(fd)); }
    call();`,
    {
      command: ["/bin/sh", "-c", `ulimit -n 64; exec "$@"`, "sh", process.execPath].concat([
        ...["--preload", REGISTER, "program.ts"],
      ]),
    },
  );
  expect(await it.get()).toBe("later");
});

test("an error of Bun names the line of the program, beside short lines of the preload", async () => {
  const it = service();
  const running = it.run(`Bun.serve({ port: 3000, routes: { wrong: () => new Response() } });`);
  expect(await running.status()).toBe(1);
  expect(running.stderr).toMatch(/\/program\.ts:1:\d+$/m);
  expect(Math.max(...running.stderr.split("\n").map((line) => line.length))).toBeLessThan(200);
});

test("a program of node:net serves, whenever it sets its handler", async () => {
  for (const source of [
    `const server = require("node:net").createServer((socket) => socket.pipe(socket)).listen(3000);`,
    `const server = require("node:net").createServer().listen(${freePort()});
    setTimeout(() => server.on("connection", (socket) => socket.pipe(socket)), 50);`,
    `const server = require("node:net").createServer().listen(PORT, "127.0.0.1");
    setTimeout(() => server.on("connection", (socket) => socket.pipe(socket)), 50);`,
    `require("bun").listen({ port: 3000, hostname: "localhost", socket: { data: (socket, data) => void socket.end(data) } });`,
  ]) {
    const it = service({});
    const running = it.run(source.replace("PORT", `${it.port}`));
    await it.ready();
    const socket = await client(it.to);
    socket.end("echo");
    expect(await text(socket)).toBe("echo");
    expect(noise(running)).toBe("");
  }
});

test("workers of node:cluster with a node:net server are given the clients of the passed socket", async () => {
  const it = service({});
  it.run(
    `const cluster = require("node:cluster");
    if (cluster.isPrimary) for (let n = 0; n < 2; n++) cluster.fork();
    else require("node:net").createServer((socket) => socket.end(String(process.pid))).listen(${freePort()}, "127.0.0.1");`,
  );
  // One waits before the workers listen.
  const waiting = await client(it.to);
  await it.ready();
  const workers = new Set([await text(waiting)]);
  await until("both have served", 10, async () => {
    workers.add(await text(await client(it.to)));
    return workers.size === 2;
  });
  expect(workers.has(String(it.processes[0]?.process.pid))).toBe(false);
});

/** Sends a datagram and returns the answer. */
async function datagram(port: number): Promise<string> {
  const socket = createSocket("udp4");
  const { promise, resolve } = Promise.withResolvers<string>();
  socket.on("message", (message) => resolve(String(message)));
  // A datagram that came before the socket was read may be lost.
  const timer = setInterval(() => socket.send("echo", port, "127.0.0.1"), 100);
  return await promise.finally(() => (clearInterval(timer), socket.close()));
}

test("after a call of Bun.udpSocket that fails, the next one gets the socket", async () => {
  const it = service({ family: "UDP" });
  const running = it.run(
    `await Bun.udpSocket({ port: 5353, socket: { data: 7 } }).catch(({ name }) => console.error(name));
    const data = (socket, bytes, port, address) => socket.send(bytes, port, address);
    await Bun.udpSocket({ port: 5353, hostname: "127.0.0.1", socket: { data } });`,
  );
  await running.says(/^TypeError\n/);
  expect(await datagram(it.port)).toBe("echo");
});

test("programs of node:dgram and Bun.udpSocket serve, and their clients take no socket", async () => {
  for (const source of [
    `const { createSocket } = require("node:dgram");
    const client = createSocket("udp4");
    client.send("hello", 9, "127.0.0.1", () => client.close());
    const server = createSocket("udp4").on("message", (message, { port, address }) => server.send(message, port, address));
    setTimeout(() => server.bind(5353), 50);`,
    `await Bun.udpSocket({ port: ${freePort()}, connect: { hostname: "127.0.0.1", port: 9 } });
    await Bun.udpSocket({});
    await Bun.udpSocket({ port: 5353, connect: undefined, socket: { data: (socket, data, port, address) => void socket.send(data, port, address) } });`,
  ]) {
    const { it, status } = await started(source, {}, { family: "UDP" });
    expect(status).toBe(`READY=1\nSTATUS=Listening on 127.0.0.1:${it.port}\n`);
    expect(await datagram(it.port)).toBe("echo");
  }
});

test.skipIf(lacksIPv6())(
  "a socket for datagrams on the other address of localhost is one of the program's own",
  async () => {
    const it = service({ family: "UDP" });
    const running = it.run(
      `for (const hostname of ["127.0.0.1", "::1"])
      await Bun.udpSocket({ port: ${it.port}, hostname, socket: { data() {} } });
    console.error("both");`,
      { env: { IDLE_TIMEOUT: "0.5" } },
    );
    await running.says(/both/);
  },
);

test("a compiled program serves, with the import as its first line, or a preload in its environment", async () => {
  const it = service({});
  // As the package exports it.
  const source = resolve(import.meta.dir, "../../src/activation/register.ts");
  it.write("imported.ts", `import ${JSON.stringify(source)};\n${HTTP["node:http"]}`);
  it.write("plain.ts", HTTP["Bun.serve"]);
  for (const name of ["imported", "plain"])
    Bun.spawnSync([process.execPath, "build", "--compile", `${name}.ts`, "--outfile", name], {
      cwd: it.directory.path,
    });
  const runs: [string, Record<string, string>][] = [
    ["imported", {}],
    ["plain", { BUN_OPTIONS: `--preload=${REGISTER}` }],
  ];
  for (const [name, env] of runs) {
    const running = it.start("", { command: [join(it.directory.path, name)], env });
    await it.ready();
    expect(JSON.parse(await it.get())).toEqual(["127.0.0.1", it.port, "127.0.0.1", "VERSION"]);
    await running[Symbol.asyncDispose]();
  }
});

describe("which socket", () => {
  const answer = (text: string) => `fetch: () => new Response("${text}")`;
  /** Asks each socket of a service. */
  const all = (it: Service) =>
    Promise.all(it.sockets.map(({ to }) => get("port" in to ? to.port : expect.unreachable())));

  test("each of several sockets goes to the call that its name says, and READY=1 follows the last", async () => {
    const it = service({ name: "3000" }, { name: "9100" });
    const running = it.run(
      `Bun.serve({ port: 9100, ${answer("metrics")} });
      process.on("SIGUSR1", () => Bun.serve({ port: 3000, ${answer("application")} }));
      console.error("waiting");`,
    );
    await running.says(/waiting/);
    expect(it.receiver.poll()).toBeUndefined();
    running.process.kill("SIGUSR1");
    await it.ready();
    expect(await all(it)).toEqual(["application", "metrics"]);
    expect(warnings(running)).toEqual([]);
  });

  test.each<[string, StartOptions]>([
    ["BUN_PORT, before PORT,", { env: { BUN_PORT: "3001", PORT: "3002" } }],
    ["PORT, before NODE_PORT,", { env: { PORT: "3001", NODE_PORT: "3002" } }],
    ["NODE_PORT", { env: { NODE_PORT: "3001" } }],
    ["the option --port=", { flags: ["--port=3001"] }],
    ["the option --port", { flags: ["--port", "3001"] }],
  ])("%s names the socket of a server without a port", async (_, options) => {
    const it = service({ name: "3001" }, { name: "3002" });
    it.run(`Bun.serve({ ${answer("found")} });`, options);
    expect(await it.get()).toBe("found");
  });

  test.each(["null", "undefined", '""'])("port %s is that without a port", async (port) => {
    const it = service({ name: "3000" });
    it.run(`Bun.serve({ port: ${port}, ${answer("found")} });`);
    expect(await it.get()).toBe("found");
  });

  test("an empty path is none, and the port counts", async () => {
    const it = service({ name: "3000" });
    const running = it.run(`Bun.serve({ unix: "", port: 3000, ${answer("found")} });`);
    await it.ready();
    expect(await it.get()).toBe("found");
    expect(warnings(running)).toEqual([]);
  });

  test("an abstract name in the form of the kernel is the one that a name says after @", async () => {
    const it = service({ name: "@one" }, { name: "@two" });
    const running = it.run(
      `Bun.serve({ unix: "\\0two", ${answer("two")} });
      Bun.serve({ unix: "\\0one", ${answer("one")} });`,
    );
    await it.ready();
    expect(await all(it)).toEqual(["one", "two"]);
    expect(warnings(running)).toEqual([]);
  });

  /** Servers on a port of their own that answer with it. */
  const OTHERS = {
    "Bun.serve": `const other = Bun.serve({ port: OTHER, hostname: "127.0.0.1",
      fetch: (_, server) => new Response("other " + server.port) });`,
    "node:http": `const other = require("node:http").createServer((_, response) =>
      response.end("other " + other.address().port)).listen(OTHER, "127.0.0.1");`,
    "node:net": `const other = require("node:net").createServer((socket) =>
      socket.end("HTTP/1.0 200 OK\\r\\n\\r\\nother " + other.address().port)).listen(OTHER, "127.0.0.1");`,
    "Bun.listen": `const other = Bun.listen({ port: OTHER, hostname: "127.0.0.1", socket: { data() {},
      open: (socket) => void socket.end("HTTP/1.0 200 OK\\r\\n\\r\\nother " + other.port) } });`,
  };
  const application = (port: number) =>
    `process.on("SIGUSR1", () => Bun.serve({ port: ${port}, ${answer("application")} })); console.error("first");`;

  test.each(Object.entries(OTHERS))(
    "a server of %s that listens first, on another port, gives the socket to the call for its own port",
    async (_, other) => {
      const it = service({});
      const port = freePort();
      const source = other.replace("OTHER", String(port)) + application(it.port);
      const running = it.run(source, { env: { IDLE_TIMEOUT: "0.1" } });
      await running.says(/first/);
      // Until then, the passed socket is all that a program with one server has.
      expect(await it.get()).toBe(`other ${it.port}`);
      running.process.kill("SIGUSR1");
      await until("the application is there", 10, async () => (await it.get()) === "application");
      expect(await get(port)).toBe(`other ${port}`);
      expect(warnings(running)).toEqual([]);
      // Nobody would start it again for the other port.
      await Bun.sleep(500);
      expect(running.process.exitCode).toBeNull();
      expect((await it.stop()).status).toBe(0);
    },
  );

  test("a server that speaks first still does so at once when it has given the socket up", async () => {
    const it = service({});
    const port = freePort();
    const source = OTHERS["Bun.listen"].replace("OTHER", String(port)) + application(it.port);
    const running = it.run(source);
    await running.says(/first/);
    running.process.kill("SIGUSR1");
    await until("the application is there", 10, async () => (await it.get()) === "application");
    // The kernel would hold a client of Bun.serve back for a second.
    const greeted = await shortest(500, async () => {
      const begun = performance.now();
      await text(await client({ port, host: "127.0.0.1" }));
      return performance.now() - begun;
    });
    expect(greeted).toBeLessThan(900);
  });

  test("a server that has given the socket up reports its own address", async () => {
    const it = service({});
    const port = freePort();
    const running = it.run(
      `const own = Bun.serve({ port: ${port}, tls: ${TLS}, fetch: ({ url }) => new Response(url) });
      const listener = Bun.listen({ port: 0, hostname: "0.0.0.0", socket: { data() {} } });
      process.on("SIGUSR1", async () => {
        Bun.serve({ port: ${it.port}, ${answer("application")} });
        console.error(own.url.href, own.port, own.hostname, await (await own.fetch("/relative")).text());
      });
      console.error("first");`,
    );
    await running.says(/first/);
    running.process.kill("SIGUSR1");
    const at = `https://localhost:${port}/`;
    await running.says(RegExp(`${at} ${port} localhost ${at}relative\\n$`));
  });

  test("a test for the free port of the passed socket takes it from no other server", async () => {
    const it = service({});
    const running = it.run(
      `Bun.serve({ port: ${freePort()}, ${answer("first")} });
      const probe = require("node:net").createServer();
      probe.once("error", ({ code }) => console.error(code));
      probe.listen(${it.port}, () => probe.close(() => console.error("free")));`,
    );
    await running.says(/free/);
    expect(await it.get()).toBe("first");
    expect(warnings(running)).toEqual([]);
  });

  test("a net.Server that gets its handler late takes its own port from the server that has it by a guess", async () => {
    const it = service({});
    const running = it.run(
      `Bun.serve({ port: ${freePort()}, hostname: "127.0.0.1", ${answer("first")} });
      const late = require("node:net").createServer().listen(${it.port}, "127.0.0.1");
      late.on("connection", (socket) => socket.end("HTTP/1.0 200 OK\\r\\n\\r\\nlate"));
      console.error("listening");`,
    );
    await running.says(/listening/);
    expect(await it.get()).toBe("late");
    expect(warnings(running)).toEqual([]);
  });

  test("under bun --hot, the port of the passed socket that a server has by a guess is in use", async () => {
    const it = service({});
    const running = it.run(
      `Bun.serve({ port: ${freePort()}, hostname: "127.0.0.1", ${answer("first")} });
      const late = require("node:net").createServer();
      late.on("error", ({ code }) => console.error(code)).on("listening", () => console.error("free"));
      late.listen(${it.port}, "127.0.0.1");`,
      { flags: ["--hot"] },
    );
    await running.says(/EADDRINUSE|free/);
    expect(running.stderr).not.toContain("free");
    expect(await it.get()).toBe("first");
  });

  test("a listener that has given a Unix socket up reports no path", async () => {
    const it = service({ family: "Unix" });
    const { to } = it;
    if (!("path" in to)) expect.unreachable();
    const port = freePort();
    const running = it.run(
      `const own = Bun.listen({ port: ${port}, hostname: "127.0.0.1", socket: { data() {} } });
      console.error(own.unix);
      Bun.serve({ unix: ${JSON.stringify(to.path)}, ${answer("application")} });
      console.error(own.unix, own.port, own.hostname);`,
    );
    await running.says(RegExp(`^${to.path}\\nundefined ${port} 127.0.0.1\\n`));
  });

  test("several processes that share a port of their own do so when they have given the socket up", async () => {
    const it = service({});
    using other = Bun.serve({ port: 0, reusePort: true, fetch: () => new Response("other") });
    const running = it.run(
      `Bun.serve({ port: ${other.port}, reusePort: true, ${answer("first")} }); ${application(it.port)}`,
    );
    await running.says(/first/);
    running.process.kill("SIGUSR1");
    await until("the application is there", 10, async () => (await it.get()) === "application");
    expect(warnings(running)).toEqual([]);
  });

  test.each(Object.entries(OTHERS))(
    "a server of %s that has moved to its own port is all that listens there",
    async (_, other) => {
      const it = service({});
      const port = freePort();
      const stop = `process.on("SIGUSR2", () => (other.stop ?? other.close).call(other));`;
      const running = it.run(other.replace("OTHER", String(port)) + application(it.port) + stop);
      await running.says(/first/);
      running.process.kill("SIGUSR1");
      await until("the application is there", 10, async () => (await it.get()) === "application");
      await expect(client({ port, host: "127.0.0.2" })).rejects.toThrow("ECONNREFUSED");
      running.process.kill("SIGUSR2");
      await until(
        "its port is closed",
        5,
        async () => (await get(port).catch(() => "closed")) === "closed",
      );
      expect(await it.get()).toBe("application");
    },
  );

  test("under bun --hot, a server keeps the socket that it got without being asked for its port", async () => {
    const it = service({});
    const port = freePort();
    const source = OTHERS["Bun.serve"].replace("OTHER", String(port)) + application(it.port);
    const running = it.run(source, { flags: ["--hot"] });
    await running.says(/first/);
    running.process.kill("SIGUSR1");
    await until("the warning", 10, () => warnings(running)[0]);
    expect(await it.get()).toBe(`other ${it.port}`);
  });

  test("a server whose own port is in use keeps the socket, and a warning says so", async () => {
    const it = service({});
    using used = Bun.listen({ port: 0, hostname: "127.0.0.1", socket: { data() {} } });
    const source = OTHERS["Bun.serve"].replace("OTHER", String(used.port)) + application(it.port);
    const running = it.run(source);
    await running.says(/first/);
    running.process.kill("SIGUSR1");
    await until("the warning", 10, () => warnings(running)[0]);
    expect(warnings(running)).toEqual([
      expect.stringContaining(
        `the call for port ${used.port} came first and got 127.0.0.1:${it.port}`,
      ),
    ]);
  });

  test("two sockets without names are a warning at once, and no call gets one", async () => {
    const it = service({}, {});
    const port = freePort();
    const running = it.run(`Bun.serve({ port: ${port}, ${answer("own")} });`);
    await running.says(/set FileDescriptorName=\d+ in one of them/);
    // The warning comes before the port is open.
    expect(await until("it serves", 5, () => get(port).catch(() => undefined))).toBe("own");
    expect(warnings(running)).toHaveLength(1);
    expect(it.receiver.poll()).toBeUndefined();
  });

  test("a program whose ports are those of the sockets needs no names", async () => {
    const it = service({}, {});
    const [first = 0, second = 0] = it.sockets.map(({ to }) => ("port" in to ? to.port : 0));
    const running = it.run(
      `Bun.serve({ port: "${second}", ${answer("second")} });
      require("node:http").createServer((request, response) => response.end("first")).listen(${first});`,
    );
    await it.ready();
    expect(await all(it)).toEqual(["first", "second"]);
    expect(warnings(running)).toEqual([]);
  });

  test("a server on port 0 and a test for a free port get no socket", async () => {
    const port = freePort();
    const { it, running } = await started(
      `const { createServer } = require("node:net");
      const probe = (port) => new Promise((resolve, reject) => {
        const server = createServer().unref().on("error", reject);
        server.listen(port, () => {
          const found = server.address();
          server.close(() => {
            server.on("connection", () => {});
            resolve(found.port);
          });
        });
      });
      const internal = Bun.serve({ port: 0, ${answer("internal")} });
      const tcp = Bun.listen({ port: 0, hostname: "127.0.0.1", socket: { data() {} } });
      const free = await probe(${port});
      const used = await probe(tcp.port).catch(({ code }) => code);
      Bun.serve({ port: free, fetch: async () => new Response(\`\${free} \${used} \${await (await fetch(internal.url)).text()}\`) });`,
    );
    expect(await it.get()).toBe(`${port} EADDRINUSE internal`);
    expect(warnings(running)).toEqual([]);
  });

  test("a test for the port of the passed socket finds it free", async () => {
    const it = service({});
    const running = it.run(
      `const probe = require("node:net").createServer();
      probe.listen(${it.port}, "127.0.0.1", () => {
        const { port } = probe.address();
        probe.close(() => Bun.serve({ port, hostname: "127.0.0.1", ${answer("application")} }));
      });`,
    );
    await it.ready();
    expect(await it.get()).toBe("application");
    expect(warnings(running)).toEqual([]);
  });

  // Bun 1.4.0 says milliseconds later that a net.Server listens.
  test.skipIf(Bun.version === "1.4.0")(
    "READY=1 follows the server, not a test for a free port that has a handler",
    async () => {
      const it = service({});
      const running = it.run(
        `const probe = require("node:net").createServer(() => {});
      probe.listen(${freePort()}, () => probe.close());
      process.on("SIGUSR1", () => Bun.serve({ port: 3000, ${answer("application")} }));
      probe.on("close", () => setInterval(() => console.error("tested"), 50));`,
      );
      await running.says(/tested/);
      expect(it.receiver.poll()).toBeUndefined();
      running.process.kill("SIGUSR1");
      await it.ready();
      expect(await it.get()).toBe("application");
    },
  );

  test("a net.Server that gets two handlers late takes one socket", async () => {
    const it = service({}, {});
    const [first, second] = it.sockets.map(({ to }) => ("port" in to ? to.port : 0));
    it.run(
      `const server = require("node:net").createServer().listen(${first}, "127.0.0.1");
      for (const _ of [1, 2]) server.on("connection", (socket) => socket.end("first"));
      Bun.serve({ port: ${second}, hostname: "127.0.0.1", ${answer("second")} });`,
    );
    await it.ready();
    expect(await text(await client(it.to))).toBe("first");
    expect(await get(second ?? 0)).toBe("second");
  });

  test("a net.Server that gets its handler late reports the address that it asked for", async () => {
    const it = service({ family: "IPv6" });
    const port = "port" in it.to ? it.to.port : 0;
    const running = it.run(
      `const server = require("node:net").createServer().listen(${port}, "${LOOPBACK6}", () =>
        console.error(JSON.stringify(server.address())));`,
    );
    await running.says(/}\n/);
    expect(JSON.parse(running.stderr)).toEqual({ address: LOOPBACK6, family: "IPv6", port });
    const local = service({ family: "abstract Unix" });
    const name = JSON.stringify("path" in local.to && local.to.path);
    const other = local.run(
      `const server = require("node:net").createServer().listen(${name}, () =>
        console.error(JSON.stringify(server.address())));`,
    );
    await other.says(/"\n/);
    expect(other.stderr).toBe(`${name}\n`);
  });

  test("a net.Server that gets its handler after another call took the socket has its own port", async () => {
    const port = freePort();
    const { it } = await started(
      `const first = require("node:net").createServer().listen(${port}, "127.0.0.1");
      Bun.serve({ port: 3000, ${answer("application")} });
      first.on("connection", (socket) => socket.end("own"));`,
    );
    expect(await it.get()).toBe("application");
    expect(await text(await client({ port, host: "127.0.0.1" }))).toBe("own");
  });

  test("a warning says if an edit under bun --hot has another hostname", async () => {
    const source = `Bun.serve({ port: ${freePort()}, /* HOST */ ${answer("application")} });`;
    const { it, running } = await started(source, { flags: ["--hot"] });
    it.write("program.ts", source.replace("/* HOST */", 'hostname: "127.0.0.1",'));
    await running.says(
      /another hostname has the socket of port \d+: if an edit has changed the hostname, restart/,
    );
    expect(await it.get()).toBe("application");
  });

  test("a second server on the same port is no question of names", async () => {
    const port = freePort();
    const { it, running } = await started(
      `for (const text of ["first", "second"])
        Bun.serve({ port: ${port}, hostname: "127.0.0.1", fetch: () => new Response(text) });`,
    );
    expect(await it.get()).toBe("first");
    expect(await get(port)).toBe("second");
    expect(warnings(running)).toEqual([]);
  });

  test("a later call gets the socket of a server that was stopped", async () => {
    const stop = {
      "Bun.serve": `const first = Bun.serve({ port: 3000, ${answer("first")} }); await first.stop();`,
      using: `{ using first = Bun.serve({ port: 3000, ${answer("first")} }); }`,
      "node:http": `await new Promise((resolve) => {
        const first = require("node:http").createServer(() => {}).listen(3000, () => first.close(resolve));
      });`,
      "node:net": `await new Promise((resolve) => {
        const first = require("node:net").createServer(() => {}).listen(3000, () => first.close(resolve));
      });`,
    };
    for (const source of Object.values(stop)) {
      const { it, running } = await started(
        `${source} Bun.serve({ port: 3001, ${answer("second")} }); console.error("second");`,
      );
      await running.says(/second/);
      expect(await it.get()).toBe("second");
      expect(warnings(running)).toEqual([]);
    }
  });

  test("two servers on one port under bun --hot have a socket each, by their hostnames", async () => {
    const it = service({ name: "3000" }, { family: "IPv6", name: "3000" });
    const source = `Bun.serve({ hostname: "127.0.0.1", port: 3000, ${answer("IPv4 VERSION")} });
      Bun.serve({ hostname: "::", port: 3000, ${answer("IPv6 VERSION")} });`;
    const running = it.run(source, { flags: ["--hot"] });
    await it.ready();
    const both = () => Promise.all(it.sockets.map(({ to }) => exchange(to)));
    for (const version of ["first", "second"]) {
      it.write("program.ts", source.replaceAll("VERSION", version));
      const is = (answer: string, family: string) => answer.endsWith(`${family} ${version}`);
      await until(`the ${version} edit`, 10, async () => {
        const [one = "", other = ""] = await both();
        return is(one, "IPv4") && is(other, "IPv6");
      });
    }
    expect(warnings(running)).toEqual([]);
  });

  test.each<[string, Record<string, string>, string[]]>([
    ["PORT=0", { PORT: "0" }, []],
    ["--port=0", {}, ["--port=0"]],
  ])(
    "Bun.serve without a port gets a random one, and no socket, with %s",
    async (_, env, flags) => {
      const it = service({ name: "3000" });
      it.run(`Bun.serve({ ${answer("random")} }); Bun.serve({ port: 3000, ${answer("3000")} });`, {
        env,
        flags,
      });
      await it.ready();
      expect(await it.get()).toBe("3000");
    },
  );

  test.each<[string, Record<string, string>, number]>([
    ["3000 for a PORT that is no port", { PORT: "70000" }, 3000],
    ["NODE_PORT after a PORT that is no port", { PORT: "none", NODE_PORT: "3002" }, 3002],
    ["the PORT of the start, whatever the program sets", { PORT: "3002" }, 3002],
  ])("Bun.serve without a port gets %s", async (_, env, port) => {
    const it = service({ name: String(port) });
    it.run(`process.env.PORT = "4000"; Bun.serve({ ${answer("default")} });`, { env });
    await it.ready();
    expect(await it.get()).toBe("default");
  });

  test("a call that names a descriptor gets that one, whatever its port", async () => {
    const it = service({ name: "3000" }, { name: "3001" });
    const running = it.run(
      `const { listen } = await import(${MODULE});
      const open = (socket) => void socket.end("by descriptor");
      listen({ fd: 4, port: 3000, hostname: "127.0.0.1", socket: { open, data() {} } });
      Bun.serve({ port: 3000, ${answer("by port")} });
      console.error("listening");`,
    );
    await running.says(/listening/);
    expect(await it.get()).toBe("by port");
    const [, second] = it.sockets;
    expect(await text(await client(second?.to ?? expect.unreachable()))).toBe("by descriptor");
  });

  test("a second server opens its own, and a warning names both", async () => {
    const port = freePort();
    const { it, running } = await started(
      `Bun.serve({ port: 3000, ${answer("application")} });
      Bun.serve({ port: ${port}, ${answer("metrics")} });`,
    );
    await running.says(new RegExp(`FileDescriptorName=3000 or ${port} in the socket unit`));
    expect(await it.get()).toBe("application");
    expect(await get(port)).toBe("metrics");
  });

  test("after an error of the program's own options, the next call gets the socket", async () => {
    const { it, running } = await started(
      `const { readdirSync, readlinkSync } = require("node:fs");
      const name = (fd) => {
        try { return readlinkSync("/proc/self/fd/" + fd); } catch {}
      };
      const count = () => readdirSync("/proc/self/fd").filter((fd) => name(fd) === name(3)).length;
      try { Bun.serve({ port: 3000 }); } catch { console.error(count()); }
      Bun.serve({ port: 3000, ${answer("second")} });`,
    );
    // No duplicate of it is left.
    await running.says(/^1\n/);
    expect(await it.get()).toBe("second");
  });

  test.each([
    ["IPv4", `Bun.serve({ port: 3000, idleTimeout: WRONG ? 9999 : 10, ${answer("repaired")} })`],
    [
      "UDP",
      `await Bun.udpSocket({ port: 5353, hostname: "127.0.0.1",
        socket: { data: WRONG ? 7 : (socket, data, ...to) => void socket.send("repaired", ...to) } })`,
    ],
  ] as const)(
    "after an error of an edit under bun --hot, the next one gets the socket (%s)",
    async (family, call) => {
      const it = service({ family });
      const source = `setInterval(() => {}, 1000);
        try { ${call}; } catch { console.error("wrong"); }`;
      const running = it.run(source.replace("WRONG", "true"), { flags: ["--hot"] });
      await running.says(/^wrong\n/);
      it.write("program.ts", source.replace("WRONG", "false"));
      await it.ready();
      expect(await (family === "UDP" ? datagram(it.port) : it.get())).toBe("repaired");
    },
  );

  test("a warning names a socket that no call gets within ten seconds, and a connection at once", async () => {
    const it = service({ name: "8080" });
    const port = freePort();
    const running = it.run(`Bun.serve({ port: ${port}, ${answer("own")} });`);
    expect(await until("the warning", 15, () => warnings(running)[0])).toBe(
      `socket-service/register: no server of this program has taken 127.0.0.1:${it.port} yet: set FileDescriptorName= in ` +
        "the socket unit to the port or path that the program listens on, or do not pass this socket",
    );
  });
});

test("a warning names a passed socket that no server can use, and no file", async () => {
  const name = `@${crypto.randomUUID()}`;
  const fds = [sockets.bound(sockets.AF_UNIX, sockets.SOCK_DGRAM, name), ...sockets.pipe()];
  await using running = execute(process.execPath, fds, {}, ["--preload", REGISTER, "-e", "0"]);
  fds.forEach(sockets.close);
  expect(await running.status()).toBe(0);
  expect(warnings(running)).toEqual([
    "socket-service/register: descriptor 3 is an unconnected datagram socket (Unix), which no server can use: " +
      "set ListenStream= and Accept=no in the socket unit",
  ]);
});

describe("with no socket", () => {
  test("a program is ready when its first server listens", async () => {
    const it = service();
    const port = freePort();
    it.run(`require("node:net").createServer().listen(${freePort()});
      Bun.serve({ port: 0, fetch: () => new Response() });
      Bun.serve({ port: ${port}, fetch: () => new Response("own") });`);
    expect(await it.ready()).toBe(`READY=1\nSTATUS=Listening on port ${port}\n`);
    expect(await get(port)).toBe("own");
    // A net.Server counts from its handler on.
    const late = freePort();
    it.run(`require("node:net").createServer().listen(${late})
        .on("connection", (socket) => socket.end());`);
    expect(await it.ready()).toBe(`READY=1\nSTATUS=Listening on port ${late}\n`);
    // One that is stopped at once has only tested whether its port is free.
    const real = freePort();
    it.run(`const fetch = () => new Response();
      void Bun.serve({ port: ${freePort()}, fetch }).stop();
      setTimeout(() => Bun.serve({ port: ${real}, fetch }), 300);`);
    expect(await it.ready()).toBe(`READY=1\nSTATUS=Listening on port ${real}\n`);
    // A name may have any character.
    const name = crypto.randomUUID();
    it.run(`Bun.serve({ unix: "\\x00${name}\\n", fetch: () => new Response() });`);
    expect(await it.ready()).toBe(`READY=1\nSTATUS=Listening on @${name}?\n`);
  });

  test("and no notification socket, or in a Worker, Bun keeps its own functions", async () => {
    const it = service();
    const source = `const native = Object.entries({ serve: Bun.serve, listen: Bun.listen, udpSocket: Bun.udpSocket })
      .every(([name, value]) => Function.prototype.toString.call(value).includes("[native code]"));
      console.error(Bun.isMainThread, native, process.listenerCount("SIGTERM"));`;
    // Bun loads no preload in a Worker.
    it.write("worker.ts", `require(${JSON.stringify(REGISTER)}); ${source}`);
    const program = `${source} new Worker("./worker.ts");`;
    const alone = it.run(program, { env: { NOTIFY_SOCKET: undefined } });
    await alone.says(/true true 0\nfalse true 0/);
    await it.run(program).says(/true false 0\nfalse true 0/);
  });
});

test.each([{}, { IDLE_TIMEOUT: "60" }])(
  "with wrong options, Bun's functions say the same as without the preload (%p)",
  async (env) => {
    const source = `const at = { hostname: "127.0.0.1", port: ${freePort()} };
    for (const call of [Bun.serve, Bun.listen, Bun.udpSocket])
      for (const options of [
        ...[undefined, null, 1, { ...at, port: 70000, fetch() {} }, { ...at, port: -1, fetch() {} }],
        ...[null, 1, { data: 1 }, { open: 1, data() {} }].map((socket) => ({ ...at, socket })),
      ])
        await Promise.try(call, options).then((it) => (it.stop ?? it.close).call(it), (error) => console.error(String(error)));
    process.exit();`;
    // One of each type, so that each call is for a passed socket.
    const it = service({}, { family: "UDP" });
    const bare = it.run(source, { command: [process.execPath, "program.ts"] });
    expect(await bare.status()).toBe(0);
    expect(bare.stderr.split("\n").length).toBeGreaterThan(18);
    const preloaded = it.run(source, { env });
    expect(await preloaded.status()).toBe(0);
    expect(preloaded.stderr).toBe(bare.stderr);
  },
);

describe.each([{}, { IDLE_TIMEOUT: "60" }])("as without the preload, with %p,", (env) => {
  test("options and handlers may be inherited, and a handler has the socket as `this`", async () => {
    for (const [family, call, handlers] of [
      ["IPv4", "listen", `data(socket, data) { socket.end(data + " " + (this === socket)); }`],
      [
        "UDP",
        "udpSocket",
        `data(socket, data, ...to) { socket.send(data + " " + (this === socket), ...to); }`,
      ],
    ] as const) {
      const { it } = await started(
        `class Handlers { ${handlers} }
        class Options {
          get socket() { return new Handlers(); }
          get hostname() { return "127.0.0.1"; }
          get port() { return 3000; }
        }
        await Bun.${call}(new Options());`,
        { env },
        { family },
      );
      if (family === "UDP") expect(await datagram(it.port)).toBe("echo true");
      else {
        const socket = await client(it.to);
        socket.write("echo");
        expect(await text(socket)).toBe("echo true");
      }
    }
  });

  test("a function with which the program replaces one of Bun is called once for a server", async () => {
    for (const [family, call, socket] of [
      ["IPv4", "serve", "null"],
      ["IPv4", "listen", "{ data() {} }"],
      ["UDP", "udpSocket", "{ data() {} }"],
    ] as const) {
      const { running } = await started(
        `const { ${call} } = Bun;
        Bun.${call} = (options) => (console.error("called"), ${call}(options));
        await Bun.${call}({ hostname: "127.0.0.1", port: 3000, fetch() {}, socket: ${socket} });
        console.error("done");`,
        { env },
        { family },
      );
      await running.says(/done/);
      expect(noise(running)).toBe("called\ndone\n");
    }
  });
});

test("servers of a program that stops them leave nothing behind", async () => {
  const running = service({}).run(
    `const server = require("node:net").createServer(() => {});
    for (let i = 0; i < 12; i++)
      await new Promise((done) => server.listen(3000, () => server.close(done)));
    const servers = [];
    for (let i = 0; i < 12; i++) {
      const server = Bun.serve({ port: 3000, fetch: () => new Response() });
      servers.push(new WeakRef(server));
      await server.stop();
    }
    while (servers.filter((one) => one.deref()).length > 2) await Bun.sleep(10).then(() => Bun.gc(true));
    console.error(server.listenerCount("session"), "done");`,
  );
  await running.says(/^1 done\n$/);
});

test("a program that listens sends signs of life, and one that does nothing ends", async () => {
  // As systemd sets it. The time is in microseconds.
  const { it } = await started(HTTP["Bun.serve"], { env: { WATCHDOG_USEC: "200000" } });
  await it.notified("WATCHDOG=1");
  // Before a warning that nothing listens.
  expect(await service({}).run("").status()).toBe(0);
});

test("wrong variables are an error of one line, with the exit status 78", async () => {
  const it = service({});
  const running = it.run("", { env: { LISTEN_FDS: "many" } });
  expect(await running.status()).toBe(78);
  expect(running.stderr).toBe(
    'socket-service/register: LISTEN_FDS is "many", which is not a count of descriptors: do not set LISTEN_FDS yourself, because systemd sets it\n',
  );
});
