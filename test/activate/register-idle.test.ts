/* Unchanged programs end, with the preload, after a time with no connection. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { resolve } from "node:path";

import { freePort } from "../support/daemon.ts";
import { Kept } from "../support/kept.ts";
import { client, text } from "../support/listening.ts";
import { lacksIPv6 } from "../support/needs.ts";
import { LOOPBACK6 } from "../support/sockets.ts";
import { BUN_SERVE, NODE_HTTP, startsServices } from "../support/unchanged.ts";
import { until } from "../support/until.ts";

setDefaultTimeout(60_000);

const { service, started } = startsServices();

describe.concurrent("IDLE_TIMEOUT", () => {
  const env = { IDLE_TIMEOUT: "0.5" };
  /** For a program that is used meanwhile. On a busy machine, half a second may pass between two uses. */
  const used = { IDLE_TIMEOUT: "1.5" };

  test.each(Object.entries({ "Bun.serve": BUN_SERVE, "node:http": NODE_HTTP }))(
    "ends a program of %s, which the next client wakes",
    async (_, source) => {
      const { it, running } = await started(source, { env: used });
      const begun = performance.now();
      expect(await it.get()).toBe("Hello\n");
      expect(await running.status()).toBe(0);
      expect(performance.now() - begun).toBeWithin(1500, 4000);
      expect(await it.notified("STOPPING=1")).toEqual(["STOPPING=1\n"]);
      const waiting = it.get();
      it.start("program.ts", { env: used });
      expect(await waiting).toBe("Hello\n");
    },
  );

  test("counts from the end of the last connection, kept or not", async () => {
    const counts = async (source: string) => {
      const { it, running } = await started(source, { env: used });
      const open = await Kept.to(it.to);
      await Bun.sleep(2000);
      expect(await open.ask()).toMatchObject({ body: "Hello\n" });
      open.socket.destroy();
      // Nobody has a connection when it looks.
      for (let i = 0; i < 10; i++) {
        expect(await it.get()).toBe("Hello\n");
        await Bun.sleep(200);
      }
      expect(running.process.exitCode).toBeNull();
      expect(await running.status()).toBe(0);
    };
    await Promise.all([BUN_SERVE, NODE_HTTP].map(counts));
  });

  test("counts from the close of a connection to a net.Server that got its handler late", async () => {
    const { it, running } = await started(
      `const server = new (require("node:net").Server)().listen(${freePort()});
      server.on("connection", (socket) => socket.resume());`,
      { env: { IDLE_TIMEOUT: "1" } },
    );
    const open = await client(it.to);
    await Bun.sleep(900);
    const closed = performance.now();
    open.destroy();
    expect(await running.status()).toBe(0);
    expect(performance.now() - closed).toBeGreaterThan(700);
  });

  test("ends a program whose net.Server got two handlers late", async () => {
    const { running } = await started(
      `const server = require("node:net").createServer().listen(${freePort()});
      for (const _ of [1, 2]) server.on("connection", (socket) => socket.resume());`,
      { env },
    );
    expect(await running.status()).toBe(0);
  });

  test.skipIf(lacksIPv6())(
    "ends a program that listens on the same port of ::1, as Fastify does, once nobody is there",
    async () => {
      const it = service({});
      // Its own port is another one.
      const running = it.run(
        `const { createServer } = require("node:http");
        const first = createServer((_, response) => response.end("first")).listen(${freePort()}, "127.0.0.1", () =>
          createServer((_, response) => response.end("::1")).listen(first.address().port, "::1"));`,
        { env: used },
      );
      const there = { port: it.port, host: LOOPBACK6 };
      const open = await until("the second server", 10, () =>
        Kept.to(there).catch(() => undefined),
      );
      expect(await open.ask()).toMatchObject({ body: "::1" });
      expect(await it.get()).toBe("first");
      await Bun.sleep(2000);
      open.socket.destroy();
      // Nobody has a connection when it looks.
      for (let i = 0; i < 10; i++) {
        const other = await Kept.to(there);
        expect(await other.ask()).toMatchObject({ body: "::1" });
        other.socket.destroy();
        await Bun.sleep(200);
      }
      expect(running.process.exitCode).toBeNull();
      expect(await running.status()).toBe(0);
    },
  );

  test("counts only as a variable of the unit, not of the program's .env", async () => {
    for (const env of [{}, { IDLE_TIMEOUT: "0.2" }]) {
      const it = service({});
      it.write(".env", "IDLE_TIMEOUT=30s");
      const running = it.run(`console.error(process.env.IDLE_TIMEOUT); ${BUN_SERVE}`, { env });
      await it.ready();
      await running.says("IDLE_TIMEOUT" in env ? /^0.2\n/ : /^30s\n/);
      if ("IDLE_TIMEOUT" in env) expect(await running.status()).toBe(0);
    }
  });

  test("does not end a program while it has a server on a port of its own", async () => {
    for (const own of [
      "Bun.serve({ port, fetch: () => new Response() })",
      "require('node:net').createServer(() => {}).listen(port)",
      "require('node:dgram').createSocket('udp4').bind(port)",
      // Only the other address of localhost is none of its own.
      "Bun.serve({ port: passed, hostname: '127.0.0.2', fetch: () => new Response() })",
    ]) {
      const it = service({ name: "3000" });
      const source = `const [port, passed] = [${freePort()}, ${it.port}];
        ${BUN_SERVE}
        const own = ${own};
        process.on("SIGUSR1", () => (own.stop ?? own.close).call(own));`;
      const running = it.run(source, { env });
      await it.ready();
      await Bun.sleep(1200);
      expect(running.process.exitCode).toBeNull();
      running.process.kill("SIGUSR1");
      expect(await running.status()).toBe(0);
    }
  });

  test("ends a program whose test for a free port gets a handler after it was closed", async () => {
    const it = service({ name: "3000" });
    const running = it.run(
      `${BUN_SERVE}
      const probe = require("node:net").createServer();
      probe.listen(${freePort()}, () => probe.close(() => {
        probe.on("connection", (socket) => socket.end());
        console.error("closed");
      }));`,
      { env },
    );
    await running.says(/closed/);
    expect(await running.status()).toBe(0);
  });

  test("ends a program whose test for the passed port gets a handler when that has a server", async () => {
    const it = service({});
    const running = it.run(
      `const probe = require("node:net").createServer().listen(${it.port}, "127.0.0.1", () => {
        Bun.serve({ port: ${it.port}, fetch: () => new Response() });
        probe.on("connection", (socket) => socket.end());
      });`,
      { env },
    );
    expect(await running.status()).toBe(0);
  });

  test("ends no program that serves a socket by serve of the module itself", async () => {
    const module = JSON.stringify(resolve(import.meta.dir, "../../src/activation/index.ts"));
    const it = service({}, { name: "3000" });
    const running = it.run(
      `const { serve } = await import(${module});
      serve({ fd: 3, fetch: () => new Response() });
      Bun.serve({ port: 3000, fetch: () => new Response() });`,
      { env },
    );
    await it.ready();
    await Bun.sleep(1200);
    expect(running.process.exitCode).toBeNull();
  });

  test("ends no program that was passed no socket", async () => {
    const it = service();
    const running = it.run(
      `const socket = await Bun.udpSocket({ hostname: "127.0.0.1", port: ${freePort()} });`,
      { env: { IDLE_TIMEOUT: "0.1" } },
    );
    await it.ready();
    await Bun.sleep(600);
    expect(running.process.exitCode).toBeNull();
  });

  test("ends no program that was passed no socket and has closed its own", async () => {
    const it = service();
    const running = it.run(
      `const server = Bun.serve({ hostname: "127.0.0.1", port: ${freePort()}, fetch: () => new Response() });
      process.on("SIGUSR2", () => server.stop(true));
      setInterval(() => {}, 1000);`,
      { env: { IDLE_TIMEOUT: "0.1" } },
    );
    await it.ready();
    running.process.kill("SIGUSR2");
    await Bun.sleep(600);
    expect(running.process.exitCode).toBeNull();
  });

  test("does not call the handler of SIGTERM again while that ends the program", async () => {
    const { it, running } = await started(
      `${BUN_SERVE} let calls = 0;
      process.on("SIGTERM", async () => {
        console.error("called", ++calls);
        await Bun.sleep(2500);
        process.exit(calls);
      });`,
      { env: used },
    );
    expect((await it.stop()).status).toBe(1);
    expect(running.stderr).toContain("called 1\n");
  });

  test("calls the handlers of the program", async () => {
    const handler = `process.on("SIGTERM", (name, number) => process.exit(name === "SIGTERM" ? number : 1));`;
    const { running } = await started(NODE_HTTP + handler, { env });
    expect(await running.status()).toBe(15);
  });

  test("counts connections of node:net", async () => {
    const net = await started(
      `require("node:net").createServer((socket) => socket.end("bye")).listen(3000);`,
      { env: used },
    );
    for (let i = 0; i < 10; i++) {
      expect(await text(await client(net.it.to))).toBe("bye");
      await Bun.sleep(200);
    }
    expect(net.running.process.exitCode).toBeNull();
    expect(await net.running.status()).toBe(0);
  });

  test("counts datagrams", async () => {
    const udp = await started(
      `require("node:dgram").createSocket("udp4").on("message", () => {}).bind(5353);`,
      { env: used },
      { family: "UDP" },
    );
    const { createSocket } = await import("node:dgram");
    const socket = createSocket("udp4");
    for (let i = 0; i < 10; i++) {
      socket.send("hello", udp.it.port, "127.0.0.1");
      await Bun.sleep(200);
    }
    socket.close();
    expect(udp.running.process.exitCode).toBeNull();
    expect(await udp.running.status()).toBe(0);
  });

  test.each(["0", "0.0", "00", "", "infinity"])("of %p never ends it", async (seconds) => {
    const { it, running } = await started(BUN_SERVE, { env: { IDLE_TIMEOUT: seconds } });
    await Bun.sleep(500);
    expect(await it.get()).toBe("Hello\n");
    expect(running.process.exitCode).toBeNull();
  });

  test("of anything else is an error, with the exit status 78", async () => {
    for (const wrong of ["a minute", "2 minutes"]) {
      const it = service({});
      const running = it.run(BUN_SERVE, { env: { IDLE_TIMEOUT: wrong } });
      expect(await running.status()).toBe(78);
      expect(running.stderr).toBe(
        `socket-service/register: IDLE_TIMEOUT is "${wrong}", which is not a number of seconds: set seconds, such as 60, or infinity\n`,
      );
    }
  });
});
