/* How unchanged programs end, with the preload: by SIGTERM, and after a time with no connection. */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";

import { resolve } from "node:path";

import { client, text } from "../support/listening.ts";
import { Service, type StartOptions, type Unit } from "../support/unchanged.ts";
import { until } from "../support/until.ts";

setDefaultTimeout(60_000);

// Most of these tests wait, so they run at once. The others measure how long a program takes to end.
const services = new AsyncDisposableStack();
afterAll(() => services.disposeAsync());

async function started(source: string, options?: StartOptions, unit: Unit = {}) {
  const it = new Service([unit]);
  services.use(it);
  const running = it.run(source, options);
  await it.ready();
  return { it, running };
}

const BUN = `const server = Bun.serve({ port: 3000, fetch: () => new Response("Hello\\n") });`;
const NODE = `const server = require("node:http").createServer((request, response) => response.end("Hello\\n")).listen(3000);`;

const ENDS = {
  "no handler": "",
  "process.exit()": `process.on("SIGTERM", () => process.exit());`,
  "process.exit(143)": `process.once("SIGTERM", () => process.exit(143));`,
  "a stop of the server": `process.on("SIGTERM", () => {
    if (server.stop) server.stop(); else server.close();
  });`,
} as const;

describe.each(Object.entries({ "Bun.serve": BUN, "node:http": NODE }))(
  "a program of %s",
  (_, source) => {
    test.each(Object.entries(ENDS))(
      "that ends by %s loses no request in five restarts",
      async (end, handler) => {
        const { it } = await started(source + handler);
        const { lost, answered, statuses } = await it.restarts(5, () => it.start("program.ts"));
        const status = end.includes("143") ? 143 : 0;
        expect({ lost, statuses }).toEqual({
          lost: {},
          statuses: Array.from({ length: 5 }, () => status),
        });
        expect(answered).toBeGreaterThan(200);
      },
    );
  },
);

/** A connection to the service that is kept, and all that came on it. */
async function kept(it: Service) {
  const socket = await client(it.to);
  const connection = { socket, received: "", hasEnded: false, error: "" };
  socket.setEncoding("latin1");
  socket.on("data", (data) => (connection.received += String(data)));
  socket.on("end", () => (connection.hasEnded = true));
  socket.on("error", (error: NodeJS.ErrnoException) => {
    Object.assign(connection, { hasEnded: true, error: error.code });
  });
  const send = (head: string) => socket.write(`${head}\r\nHost: example\r\n\r\n`);
  return Object.assign(connection, { send });
}

/** A connection on which a body was sent, in so many pieces, a millisecond apart. */
async function posted(it: Service, path: string, body: Uint8Array, pieces = 1, length = 0) {
  const connection = await kept(it);
  const head = `POST ${path} HTTP/1.1\r\nHost: example\r\n`;
  connection.socket.write(`${head}Content-Length: ${length || body.length}\r\n\r\n`);
  const size = Math.ceil(body.length / pieces);
  for (let sent = 0; sent < body.length; sent += size) {
    connection.socket.write(body.subarray(sent, sent + size));
    if (pieces > 1) await Bun.sleep(1);
  }
  return connection;
}

describe.concurrent("SIGTERM", () => {
  test.serial(
    "with no open connection ends a program in milliseconds, with its own exit status",
    async () => {
      for (const source of [BUN, NODE, `process.exitCode = 3; ${NODE}`]) {
        const { it } = await started(source);
        const { status, milliseconds } = await it.stop();
        expect(status).toBe(source.startsWith("process") ? 3 : 0);
        // With a grace it would be a second.
        expect(milliseconds).toBeLessThan(800);
        expect(await it.notified("STOPPING=1")).toEqual(["STOPPING=1\n"]);
      }
    },
  );

  test("before the program listens ends it", async () => {
    const it = new Service();
    services.use(it);
    const running = it.run(`console.error("starting"); setInterval(() => {}, 1000);`);
    await running.says(/starting/);
    expect((await it.stop()).status).toBe(0);
  });

  test("reaches all handlers of a program, as without the preload", async () => {
    const { running } = await started(
      `${NODE}
      const first = () => console.error("first", process.listenerCount("SIGTERM"));
      const gone = () => console.error("gone");
      process.once("SIGTERM", first);
      process.prependListener("SIGTERM", function (name, number) { console.error(this === process, name, number); });
      process.on("SIGTERM", gone).off("SIGTERM", gone);
      process.on("SIGUSR1", () => console.error("other", process.listeners("SIGTERM").length));
      process.emit("SIGTERM", "SIGTERM", 15);
      console.error("emitted");`,
    );
    await running.says(/^true SIGTERM 15\nfirst 1\nemitted\n$/);
    running.process.kill("SIGUSR1");
    await running.says(/other 1\n/);
    running.process.kill("SIGTERM");
    await running.says(/other 1\ntrue SIGTERM 15\n$/);
    // It ignores the signal: as many as come.
    running.process.kill("SIGTERM");
    await running.says(/other 1\n(true SIGTERM 15\n){2}$/);
    expect(running.process.exitCode).toBeNull();
  });

  test("after removeAllListeners() still drains", async () => {
    const { it } = await started(
      `process.on("SIGTERM", () => {}); ${BUN} process.removeAllListeners();`,
    );
    expect((await it.stop()).status).toBe(0);
    expect(await it.notified("STOPPING=1")).toEqual(["STOPPING=1\n"]);
  });

  test.serial(
    "a second time reaches the handler of the program at once, or ends it without one",
    async () => {
      const stream = `const server = require("node:http").createServer((request, response) => response.write("a")).listen(3000);`;
      for (const handler of [`process.on("SIGTERM", () => process.exit(5));`, ""]) {
        const { it, running } = await started(stream + handler);
        const open = await kept(it);
        open.send("GET / HTTP/1.1");
        await until("the stream begins", 10, () => open.received.includes("\r\n\r\n"));
        running.process.kill("SIGTERM");
        await it.notified("STOPPING=1");
        const { status, milliseconds } = await it.stop();
        expect(status).toBe(handler === "" ? 0 : 5);
        expect(milliseconds).toBeLessThan(900);
      }
    },
  );

  test.serial("has the WebSockets of Bun.serve closed with 1001", async () => {
    const { it } = await started(
      `Bun.serve({ port: 3000, fetch: (request, server) => server.upgrade(request) ? undefined : new Response(),
        websocket: { message: (socket, message) => void socket.send(message) } });`,
    );
    const socket = new WebSocket(it.url);
    await new Promise((resolve) => socket.addEventListener("open", resolve));
    const closed = new Promise<CloseEvent>((resolve) => socket.addEventListener("close", resolve));
    expect((await it.stop()).status).toBe(0);
    expect((await closed).code).toBe(1001);
  });

  test("lets an answer under way end, and cuts an endless stream after ten seconds", async () => {
    const { it } = await started(
      `require("node:http").createServer((request, response) => {
        response.write("begun");
        if (request.url === "/slow") setTimeout(() => response.end(" ended"), 500);
      }).listen(3000);`,
    );
    const [slow, endless] = [await kept(it), await kept(it)];
    slow.send("GET /slow HTTP/1.1");
    endless.send("GET /endless HTTP/1.1");
    await until("both begin", 10, () =>
      [slow, endless].every((one) => one.received.includes("begun")),
    );
    const { status, milliseconds } = await it.stop();
    expect(status).toBe(0);
    expect(slow.received).toContain(" ended");
    expect(milliseconds).toBeWithin(9500, 12_000);
  });

  test("has a program that uses the module itself end as without the preload", async () => {
    const module = JSON.stringify(resolve(import.meta.dir, "../../src/activation/index.ts"));
    for (const source of [
      `${NODE} const { drain } = await import(${module});`,
      `const { drain, passedFd, serve } = await import(${module});
      const server = serve({ fd: passedFd(), port: 3000, fetch: () => new Response("Hello\\n") });`,
    ]) {
      const { it } = await started(
        `${source} process.on("SIGTERM", async () => process.exit((await drain(server)) ? 4 : 5));`,
      );
      const open = await kept(it);
      open.send("GET / HTTP/1.1");
      await until("the answer", 10, () => open.received.endsWith("Hello\n"));
      expect((await it.stop()).status).toBe(4);
    }
  });

  test("leaves newcomers to the next process, for a program of node:net too", async () => {
    const { it, running } = await started(
      `require("node:net").createServer((socket) => socket.pipe(socket)).listen(3000);
      process.on("SIGTERM", () => console.error("asked to stop"));`,
    );
    const open = await kept(it);
    open.socket.write("for the first");
    await until("the echo", 10, () => open.received === "for the first");
    running.process.kill("SIGTERM");
    await running.says(/asked to stop/);
    const newcomer = await client(it.to);
    newcomer.end("for the next");
    open.socket.end(" still");
    await until("the end", 10, () => open.hasEnded);
    expect(open.received).toBe("for the first still");
    await running[Symbol.asyncDispose]();
    it.start("program.ts");
    expect(await text(newcomer)).toBe("for the next");
  });

  test("says GOAWAY to clients of node:http2, lets answers under way end, leaves others to the next", async () => {
    const { it, running } = await started(
      `require("node:http2").createServer((request, response) =>
        setTimeout(() => response.end("Hello"), request.url === "/slow" ? 500 : 0)).listen(3000);`,
    );
    const { connect } = await import("node:http2");
    const get = async (session: ReturnType<typeof connect>, path: string) => {
      let body = "";
      for await (const chunk of session.request({ ":path": path }).setEncoding("latin1"))
        body += String(chunk);
      return body;
    };
    const session = connect(it.url);
    const goaway = new Promise((resolve) => session.once("goaway", resolve));
    expect(await get(session, "/")).toBe("Hello");
    const slow = get(session, "/slow");
    // It is there before the signal.
    await new Promise((resolve) => session.ping(resolve));
    running.process.kill("SIGTERM");
    expect(await goaway).toBe(0);
    const next = connect(it.url);
    const late = get(next, "/");
    expect(await slow).toBe("Hello");
    expect(await running.status()).toBe(0);
    it.start("program.ts");
    expect(await late).toBe("Hello");
    next.destroy();
  });

  describe("answers a request with a body in node:http", () => {
    /** A program that has got SIGTERM, with a connection that makes the grace last. */
    async function ending() {
      const { it, running } = await started(
        `require("node:http").createServer(async (request, response) => {
          if (request.url === "/refused") return void response.writeHead(401).end("refused");
          const hash = new Bun.CryptoHasher("sha1");
          if (request.url === "/iterated") for await (const chunk of request) hash.update(chunk);
          else await new Promise((done) => request.on("data", (chunk) => hash.update(chunk)).on("end", done));
          response.end(hash.digest("hex"));
        }).listen(3000);`,
      );
      const other = await kept(it);
      other.send("GET / HTTP/1.1");
      await until("the answer", 10, () => other.received.includes("200 OK"));
      running.process.kill("SIGTERM");
      await it.notified("STOPPING=1");
      return { it, running, other };
    }

    test("that the handler does not read, and ends the connection once the body has come", async () => {
      const { it, running, other } = await ending();
      for (const [size, pieces] of [
        [1, 1],
        [4_000_000, 1],
        [4_000_000, 40],
      ] as const) {
        const connection = await posted(it, "/refused", Buffer.alloc(size), pieces);
        await until("the end", 10, () => connection.hasEnded);
        expect(connection.error).toBe("");
        expect(connection.received).toMatch(/^HTTP\/1.1 401 [^]*connection: close[^]*refused/i);
        connection.socket.destroy();
      }
      other.socket.destroy();
      expect(await running.status()).toBe(0);
    });

    test("that the handler reads, with all of the body in its order", async () => {
      const { it, running, other } = await ending();
      const body = crypto.getRandomValues(Buffer.alloc(60_000));
      const hash = new Bun.CryptoHasher("sha1").update(body).digest("hex");
      for (const path of ["/heard", "/iterated"])
        for (const pieces of [1, 7]) {
          const connection = await posted(it, path, body, pieces);
          await until("the end", 10, () => connection.hasEnded);
          expect(connection.error).toBe("");
          expect(connection.received).toMatch(RegExp(`^connection: close[^]*${hash}$`, "im"));
          connection.socket.destroy();
        }
      other.socket.destroy();
      expect(await running.status()).toBe(0);
    });

    test("in restarts under load, and loses none", async () => {
      const { it } = await started(NODE);
      const { lost, statuses } = await it.restarts(3, () => it.start("program.ts"), 5, 3000);
      expect({ lost, statuses }).toEqual({ lost: {}, statuses: [0, 0, 0] });
    });

    test("whose body takes long, and does not reset the client", async () => {
      const { it, running, other } = await ending();
      const connection = await posted(it, "/refused", Buffer.alloc(9), 1, 10);
      await until("the answer", 10, () => connection.received.includes("refused"));
      expect(connection.received).not.toMatch(/^connection: close/im);
      expect(connection.hasEnded).toBe(false);
      connection.socket.write("1");
      connection.socket.destroy();
      other.socket.destroy();
      expect(await running.status()).toBe(0);
    });
  });
});

describe.concurrent("IDLE_TIMEOUT", () => {
  const env = { IDLE_TIMEOUT: "0.5" };

  test.each(Object.entries({ "Bun.serve": BUN, "node:http": NODE }))(
    "ends a program of %s, which the next client wakes",
    async (_, source) => {
      const { it, running } = await started(source, { env });
      const begun = performance.now();
      expect(await it.get()).toBe("Hello\n");
      expect(await running.status()).toBe(0);
      expect(performance.now() - begun).toBeWithin(500, 2000);
      expect(await it.notified("STOPPING=1")).toEqual(["STOPPING=1\n"]);
      const waiting = it.get();
      it.start("program.ts", { env });
      expect(await waiting).toBe("Hello\n");
    },
  );

  test("counts from the end of the last connection, kept or not", async () => {
    for (const source of [BUN, NODE]) {
      const { it, running } = await started(source, { env });
      const open = await kept(it);
      await Bun.sleep(1000);
      open.send("GET / HTTP/1.1");
      await until("the answer", 10, () => open.received.endsWith("Hello\n"));
      open.socket.destroy();
      // Nobody has a connection when it looks.
      for (let i = 0; i < 10; i++) {
        expect(await it.get()).toBe("Hello\n");
        await Bun.sleep(100);
      }
      expect(running.process.exitCode).toBeNull();
      expect(await running.status()).toBe(0);
    }
  });

  test("calls the handlers of the program", async () => {
    const { running } = await started(`${NODE} process.on("SIGTERM", () => process.exit(7));`, {
      env,
    });
    expect(await running.status()).toBe(7);
  });

  test("counts connections of node:net, and datagrams", async () => {
    const net = await started(
      `require("node:net").createServer((socket) => socket.end("bye")).listen(3000);`,
      { env },
    );
    for (let i = 0; i < 10; i++) {
      expect(await text(await client(net.it.to))).toBe("bye");
      await Bun.sleep(100);
    }
    expect(net.running.process.exitCode).toBeNull();
    expect(await net.running.status()).toBe(0);
    const udp = await started(
      `require("node:dgram").createSocket("udp4").on("message", () => {}).bind(5353);`,
      { env },
      { family: "UDP" },
    );
    const { createSocket } = await import("node:dgram");
    const socket = createSocket("udp4");
    for (let i = 0; i < 10; i++) {
      socket.send("hello", udp.it.port, "127.0.0.1");
      await Bun.sleep(100);
    }
    socket.close();
    expect(udp.running.process.exitCode).toBeNull();
    expect(await udp.running.status()).toBe(0);
  });

  test.each(["0", "infinity"])("of %s never ends it", async (seconds) => {
    const { it, running } = await started(BUN, { env: { IDLE_TIMEOUT: seconds } });
    await Bun.sleep(500);
    expect(await it.get()).toBe("Hello\n");
    expect(running.process.exitCode).toBeNull();
  });

  test("of anything else is an error, with the exit status 78", async () => {
    const it = new Service();
    services.use(it);
    const running = it.run(BUN, { env: { IDLE_TIMEOUT: "a minute" } });
    expect(await running.status()).toBe(78);
    expect(running.stderr).toBe(
      'socket-service/register: IDLE_TIMEOUT is "a minute", which is not a number of seconds: set seconds, such as 60, or infinity\n',
    );
  });
});
