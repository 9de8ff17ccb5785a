/* Unchanged programs end, with the preload, at SIGTERM. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";

import { connect as connectHTTP2 } from "node:http2";
import { resolve } from "node:path";
import { connect as connectTLS } from "node:tls";

import { freePort, type Running } from "../support/daemon.ts";
import { HI, Kept } from "../support/kept.ts";
import { getHTTP2, GOAWAY, untilGoaway } from "../support/http2.ts";
import { CERTIFICATE, client, text } from "../support/listening.ts";
import {
  BUN_SERVE,
  ENDS,
  KEEPING,
  NODE_HTTP,
  type Service,
  SLOW_ANSWERS,
  startsServices,
} from "../support/unchanged.ts";
import { shortest, until } from "../support/until.ts";

setDefaultTimeout(60_000);

const { service, started } = startsServices();

const LAX = { rejectUnauthorized: false };

/** The module, for a program that uses it. */
const MODULE = JSON.stringify(resolve(import.meta.dir, "../../src/activation/index.ts"));

/** Whether all of an answer has come, with a body of known length or in chunks. */
function isWhole(received: string): boolean {
  const [head = "", body] = received.split("\r\n\r\n");
  if (body === undefined) return false;
  const length = /^content-length: (\d+)/im.exec(head)?.[1];
  return length === undefined ? received.endsWith("0\r\n\r\n") : body.length >= Number(length);
}

/** The first lines of a handler of node:http: a request for /held is not answered to its end. */
const HOLD = `if (request.url === "/held") return void response.write("held");`;

/** Sends SIGTERM under a request for /held, which makes the grace last until its connection ends. */
async function holding(it: Service, running: Running): Promise<Kept> {
  const held = await Kept.to(it.to);
  held.send("/held");
  await until("the held answer", 10, () => held.received.includes("held"));
  running.process.kill("SIGTERM");
  await it.notified("STOPPING=1");
  return held;
}

/** A connection on which a body was sent, in so many pieces, a millisecond apart. */
async function posted(it: Service, path: string, body: Uint8Array, pieces = 1, length = 0) {
  const connection = await Kept.to(it.to);
  connection.send(path, `Content-Length: ${length || body.length}\r\n`, "POST");
  const size = Math.ceil(body.length / pieces);
  for (let sent = 0; sent < body.length; sent += size) {
    connection.socket.write(body.subarray(sent, sent + size));
    if (pieces > 1) await Bun.sleep(1);
  }
  return connection;
}

/** A connection whose request is answered, while the last byte of its body is still to come. */
async function answeredEarly(it: Service, path = "/refused") {
  const connection = await posted(it, path, Buffer.alloc(9), 1, 10);
  await until("the answer", 10, () => connection.received.includes("refused"));
  return connection;
}

/** Handlers of node:http that read a body, or look at the request, and answer with what they found. */
const READS = {
  "data and end": `let text = ""; request.on("data", (chunk) => (text += chunk)).on("end", () => response.end(text));`,
  "setEncoding()": `let text = ""; const types = new Set(); request.setEncoding("utf8");
    request.on("data", (chunk) => (types.add(typeof chunk), text += chunk))
      .on("end", () => response.end([...types, text].join()));`,
  readable: `let text = ""; request.on("end", () => response.end(text));
    request.on("readable", () => { for (let chunk; (chunk = request.read()) !== null;) text += chunk; });`,
  // How much of a large body the first read gives is a matter of time.
  "one readable": `request.once("readable", () => response.end(request.read().subarray(0, 5)));`,
  "read() at once": `const first = String(request.read());
    request.once("readable", () => response.end(first + request.read().subarray(0, 5)));`,
  "pause() and resume()": `let text = ""; request.pause(); await Bun.sleep(20);
    request.on("data", (chunk) => (text += chunk)).on("end", () => response.end(text)); request.resume();`,
  "resume()": `request.resume().on("end", () => response.end("read"));`,
  "pipe()": `request.pipe(response);`,
  "an iteration": `let text = ""; for await (const chunk of request) text += chunk; response.end(text);`,
  "an iteration later": `await Bun.sleep(20); let text = ""; for await (const chunk of request) text += chunk; response.end(text);`,
  toWeb: `response.end(await new Response(require("node:stream").Readable.toWeb(request)).text());`,
  "the state": `const state = () => [request.readableDidRead, request.readableFlowing, request.readableLength,
      request.readableEnded, request.readableAborted, request.aborted, request.destroyed, request.isPaused(),
      request.eventNames()].join();
    const states = [state()]; queueMicrotask(() => states.push(state()));
    request.on("end", () => response.end(states.concat(state()).join(" "))).resume();`,
  "the events": `const seen = [];
    for (const name of ["data", "end", "pause", "resume", "error", "aborted"])
      request.on(name, () => seen.push(name));
    request.on("end", () => setImmediate(() => response.end([...new Set(seen)].join())));`,
  "an end that it awaits late": `request.resume(); await 1; await 2; request.on("end", () => response.end("ended"));`,
  "an exception": `throw new Error("thrown");`,
  "the end of the client": `request.destroy();`,
  "100 Continue": `let text = ""; request.on("data", (chunk) => (text += chunk)).on("end", () => response.end(text));`,
} as const;

/** Ways to begin a response with a header `Connection` of the program's own, or with none. */
const HEADS = {
  none: ["", "close"],
  "setHeader()": [`response.setHeader("Connection", "keep-alive");`, "close"],
  "appendHeader()": [`response.appendHeader("Connection", "keep-alive");`, "close"],
  "setHeaders()": [`response.setHeaders(new Headers({ Connection: "keep-alive" }));`, "close"],
  "flushHeaders()": [
    `response.setHeader("Connection", "keep-alive"); response.flushHeaders();`,
    "close",
  ],
  "removeHeader()": [`response.removeHeader("Connection");`, "close"],
  "write()": [`response.setHeader("connection", ["keep-alive"]); response.write("");`, "close"],
  "writeHead() of an object": [
    `response.writeHead(200, "Fine", { connection: "keep-alive", "Keep-Alive": "timeout=5" });`,
    "close",
  ],
  "writeHead() of pairs": [
    `response.writeHead(200, [["Connection", "keep-alive"], ["X-Own", "1"]]);`,
    "close",
  ],
  "writeHead() of a flat array": [
    `response.writeHead(200, ["X-Own", "1", "Connection", "keep-alive"]);`,
    "close",
  ],
  "both, and another wrapper": [
    `const { writeHead } = response; response.setHeader("Connection", "keep-alive");
    response.writeHead = function (...args) { return writeHead.call(this, args[0], { connection: "keep-alive" }); };`,
    "close",
  ],
  "early hints": [
    `response.writeEarlyHints({ link: "</a>; rel=preload" }); response.writeProcessing();`,
    "close",
  ],
  "its own close": [`response.writeHead(200, { Connection: "close" });`, "close"],
  "an upgrade that it asks for": [
    `response.writeHead(426, { Upgrade: "echo", Connection: "Upgrade, keep-alive" });`,
    "close, Upgrade",
  ],
} as const;

// Most of these tests wait, so they run at once. The first ones measure how long a program takes to end.
describe.concurrent("SIGTERM", () => {
  test.serial(
    "with no open connection ends a program in milliseconds, with its own exit status",
    async () => {
      for (const source of [BUN_SERVE, NODE_HTTP, `process.exitCode = 3; ${NODE_HTTP}`]) {
        const { it } = await started(source);
        const { status, milliseconds } = await it.stop();
        expect(status).toBe(source.startsWith("process") ? 3 : 0);
        // With a grace it would be a second.
        expect(milliseconds).toBeLessThan(800);
        expect(await it.notified("STOPPING=1")).toEqual(["STOPPING=1\n"]);
      }
    },
  );

  test.serial("ends a program in milliseconds once its last connection has closed", async () => {
    const { it, running } = await started(BUN_SERVE);
    const open = await client(it.to);
    running.process.kill("SIGTERM");
    await it.notified("STOPPING=1");
    const begun = performance.now();
    open.destroy();
    expect(await running.status()).toBe(0);
    // With a grace it would be a second.
    expect(performance.now() - begun).toBeLessThan(800);
  });

  test.serial("does not wait for a session of node:http2 that has ended", async () => {
    const { it } = await started(
      `require("node:http2").createServer((request, response) => response.end("Hello")).listen(3000);`,
    );
    const { connect } = await import("node:http2");
    const session = connect(it.url);
    await new Promise((resolve) => session.ping(resolve));
    await new Promise<void>((resolve) => session.close(resolve));
    const { status, milliseconds } = await it.stop();
    expect(status).toBe(0);
    expect(milliseconds).toBeLessThan(2000);
  });

  test.serial("reaches a program of node:net at once, though a connection is open", async () => {
    const took = await shortest(450, async () => {
      const { it } = await started(
        `require("node:net").createServer((socket) => socket.write("open")).listen(3000);` +
          ENDS["process.exit()"],
      );
      const open = await Kept.to(it.to);
      await until("it is open", 10, () => open.received === "open");
      const { status, milliseconds } = await it.stop();
      expect(status).toBe(0);
      return milliseconds;
    });
    // With the time for a handshake of node:http2, it would be half a second.
    expect(took).toBeLessThan(450);
  });

  test.serial(
    "a second time reaches the handler of the program at once, or ends it without one",
    async () => {
      const stream = `const server = require("node:http").createServer((request, response) => response.write("a")).listen(3000);`;
      for (const handler of [`process.on("SIGTERM", () => process.exit(5));`, ""]) {
        const { it, running } = await started(stream + handler);
        const open = await Kept.to(it.to);
        open.send("/");
        await until("the stream begins", 10, () => open.received.includes("\r\n\r\n"));
        running.process.kill("SIGTERM");
        await it.notified("STOPPING=1");
        const { status, milliseconds } = await it.stop();
        expect(status).toBe(handler === "" ? 0 : 5);
        expect(milliseconds).toBeLessThan(900);
      }
    },
  );

  test.serial(
    "a second time ends a program at once that waits for the rest of a body",
    async () => {
      const took = await shortest(450, async () => {
        const { it, running } = await started(
          `Bun.serve({ port: 3000, fetch: () => new Response("refused", { status: 401 }) });`,
        );
        const open = await Kept.to(it.to);
        await open.ask();
        running.process.kill("SIGTERM");
        await it.notified("STOPPING=1");
        // The grace lasts for a second, and is over before the answer. A busy machine can come too late for it.
        await Bun.sleep(600);
        const late = await posted(it, "/", Buffer.alloc(9), 1, 10);
        const isAnswered = () => late.received.includes("refused");
        const { process } = running;
        await until("an answer or the end", 10, () => isAnswered() || process.exitCode !== null);
        if (!isAnswered()) return Infinity;
        open.socket.destroy();
        const begun = performance.now();
        // By then, the drain is in its last phase, which lasts for half a second from the answer.
        await Bun.sleep(100);
        process.kill("SIGTERM");
        expect(await running.status()).toBe(0);
        return performance.now() - begun;
      });
      expect(took).toBeLessThan(450);
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

  test("a program that exits at SIGTERM has sent a large answer to a client that reads late", async () => {
    const length = 20_000_000;
    const { it, running } = await started(
      `const routes = { "/small": () => new Response("small") };
      Bun.serve({ port: 3000, routes, fetch: () => new Response(new Uint8Array(${length})) });` +
        ENDS["process.exit()"],
    );
    const reader = await Kept.to(it.to);
    expect(await reader.ask("/small")).toMatchObject({ body: "small" });
    running.process.kill("SIGTERM");
    await it.notified("STOPPING=1");
    reader.socket.pause();
    reader.send("/");
    await Bun.sleep(1500);
    expect(running.process.exitCode).toBeNull();
    reader.socket.resume();
    expect(await reader.ended()).toBe("closed");
    expect(reader.received.split("\r\n\r\n")[1]).toHaveLength(length);
  });

  test("a program that exits at SIGTERM has sent a direct stream to a client that reads late", async () => {
    const length = 20_000_000;
    const { it, running } = await started(
      `const pull = (stream) => { stream.write(new Uint8Array(${length})); stream.end(); };
      Bun.serve({ port: 3000, fetch: () => new Response(new ReadableStream({ type: "direct", pull })) });` +
        ENDS["process.exit()"],
    );
    const reader = await Kept.to(it.to);
    reader.send("/");
    await until("it has begun", 10, () => reader.received.length > 0);
    reader.socket.pause();
    running.process.kill("SIGTERM");
    // Longer than the grace.
    await Bun.sleep(1800);
    expect(running.process.exitCode).toBeNull();
    reader.socket.resume();
    expect(await reader.ended()).toBe("closed");
    expect(reader.received.length).toBeGreaterThan(length);
  });

  test("has a newcomer's slow answer sent, though a stream never ends", async () => {
    const { it, running } = await started(
      `const ticks = async function* () { for (;;) { yield "tick"; await Bun.sleep(100); } };
      const slow = async () => (await Bun.sleep(6500), new Response("slow"));
      const routes = { "/stream": () => new Response(ticks()), "/slow": slow };
      Bun.serve({ port: 3000, routes });` + ENDS["process.exit()"],
    );
    const stream = await Kept.to(it.to);
    stream.send("/stream");
    await until("it has begun", 10, () => stream.received.includes("tick"));
    running.process.kill("SIGTERM");
    await it.notified("STOPPING=1");
    const newcomer = await Kept.to(it.to);
    expect(await newcomer.ask("/slow")).toMatchObject({ body: "slow" });
    stream.socket.destroy();
    expect(await running.status()).toBe(0);
  });

  test("sends no READY=1 after it, though the program listens then", async () => {
    const it = service({});
    const running = it.run(
      `process.on("SIGTERM", () => { ${BUN_SERVE} setTimeout(() => process.exit(), 200); });
      console.error("starting"); setInterval(() => {}, 1000);`,
    );
    await running.says(/starting/);
    expect((await it.stop()).status).toBe(0);
    expect(await it.notified("STOPPING=1")).toEqual(["STOPPING=1\n"]);
    expect(it.receiver.poll()).toBeUndefined();
  });

  test("before the program listens ends it", async () => {
    const it = service({});
    const running = it.run(`console.error("starting"); setInterval(() => {}, 1000);`);
    await running.says(/starting/);
    expect((await it.stop()).status).toBe(0);
  });

  test("reaches all handlers of a program, as without the preload", async () => {
    const { running } = await started(
      `${NODE_HTTP}
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

  test("reaches a handler that a preload of bunfig.toml has added, after the answers", async () => {
    const it = service({});
    it.write("bunfig.toml", 'preload = ["./first.ts"]');
    it.write(
      "first.ts",
      `process.on("SIGTERM", async () => {
        console.error("before");
        await Bun.sleep(100);
        console.error("flushed");
        process.exit(3);
      });`,
    );
    const running = it.run(
      `process.on("SIGTERM", () => console.error("after", process.listenerCount("SIGTERM")));
      Bun.serve({ port: 3000, fetch: async () => (await Bun.sleep(300), new Response("slow")) });`,
    );
    await it.ready();
    const answer = it.get();
    await Bun.sleep(100);
    const { status } = await it.stop();
    expect([status, await answer]).toEqual([3, "slow"]);
    expect(running.stderr).toEndWith("before\nafter 2\nflushed\n");
  });

  test("leaves the end to a handler that is called once, however long that takes", async () => {
    const { it } = await started(
      `${BUN_SERVE} process.once("SIGTERM", async () => (await Bun.sleep(500), process.exit(7)));`,
    );
    expect((await it.stop()).status).toBe(7);
  });

  test("reaches a handler that another one removes meanwhile no more, and all others", async () => {
    const { running } = await started(
      `${BUN_SERVE}
      const removed = () => console.error("removed");
      process.once("SIGTERM", () => {
        console.error("first");
        process.off("SIGTERM", removed);
      });
      process.once("SIGTERM", removed);
      process.on("SIGTERM", () => console.error("last"));`,
    );
    running.process.kill("SIGTERM");
    await running.says(/^first\nremoved\nlast\n$/);
    running.process.kill("SIGTERM");
    await running.says(/last\nlast\n$/);
  });

  test.each(Object.entries(SLOW_ANSWERS))(
    "waits for the answers of a server of %s that the program has replaced",
    async (_, source) => {
      const { it, running } = await started(
        `function start() { ${source.replace("800", "(console.error('asked'), 2500)")} return server; }
        let server = start();
        process.on("SIGUSR2", () => {
          if (server.stop) server.stop(); else server.close();
          server = start();
          console.error("replaced");
        });` + ENDS["process.exit()"],
      );
      const open = await Kept.to(it.to);
      open.send("/");
      await running.says(/asked/);
      running.process.kill("SIGUSR2");
      await running.says(/replaced/);
      expect((await it.stop()).status).toBe(0);
      expect(open.received).toContain("Hello");
    },
  );

  test("has its handlers added, removed and counted as other events have", async () => {
    const { running } = await started(
      `${NODE_HTTP}
      const [a, b] = ["a", "b"].map((name) => () => console.error(name));
      process.on("SIGTERM", a).on("SIGTERM", b).on("SIGTERM", a);
      process.off("SIGTERM", a).removeListener("SIGTERM", () => {});
      process.on("SIGUSR2", a);
      process.removeAllListeners("SIGUSR2");
      console.error(process.listenerCount("SIGTERM"), process.listenerCount("SIGTERM", b), process.listenerCount("SIGUSR2"));
      console.error(process.rawListeners("SIGTERM").map((one) => [a, b].indexOf(one)).join());
      process.emit("SIGTERM");
      process.on("SIGUSR2", a).removeAllListeners("SIGTERM");
      console.error(process.listenerCount("SIGTERM"), process.listenerCount("SIGUSR2"));
      try { process.on("SIGTERM", "no function"); } catch (error) { console.error(error.name); }
      // Bun ignores it.
      process.on("SIGTERM", undefined).once("SIGTERM", null);
      console.error(process.listenerCount("SIGTERM"));`,
    );
    await running.says(/^2 1 0\n0,1\na\nb\n0 1\nTypeError\n0\n$/);
  });

  test("makes an error of a handler an uncaught exception, as without the preload", async () => {
    const { it } = await started(
      `${BUN_SERVE}
      process.on("uncaughtException", ({ message }) => process.exit(message === "on purpose" ? 3 : 4));
      process.on("unhandledRejection", () => process.exit(5));
      process.on("SIGTERM", () => { throw new Error("on purpose"); });`,
    );
    expect((await it.stop()).status).toBe(3);
  });

  test("calls the other handlers after an error of one, as without the preload", async () => {
    const { it, running } = await started(
      `${BUN_SERVE}
      process.on("uncaughtException", ({ message }) => console.error(message));
      process.on("SIGTERM", () => { throw new Error("on purpose"); });
      process.on("SIGTERM", () => process.exit(3));
      try { process.emit("SIGTERM"); } catch ({ message }) { console.error("emitted:", message); }`,
    );
    expect((await it.stop()).status).toBe(3);
    expect(running.stderr).toBe("emitted: on purpose\non purpose\n");
  });

  test.each(["no handler", "process.exit()"] as const)(
    "waits for the answers of a server if another one fails to drain (%s)",
    async (end) => {
      const it = service({ name: "3000" }, { name: "3001" });
      const running = it.run(
        `let isBroken = false;
        class Options {
          port = 3000;
          get fetch() {
            if (isBroken) throw new Error("on purpose");
            return () => (isBroken = true, new Response());
          }
        }
        Bun.serve(new Options());
        const slow = () => (console.error("begun"), Bun.sleep(800).then(() => new Response("slow")));
        Bun.serve({ port: 3001, fetch: slow });
        process.on("unhandledRejection", () => {});` + ENDS[end],
      );
      await it.ready();
      await it.get();
      const slow = await Kept.to(it.sockets[1]?.to ?? expect.unreachable());
      slow.send("/");
      await running.says(/begun/);
      expect((await it.stop()).status).toBe(0);
      expect(slow.received).toEndWith("slow");
      expect(running.stderr).toMatch(/^socket-service\/register: on purpose$/m);
    },
  );

  test("a second time reaches a handler at once, and not again when the clients are gone", async () => {
    const { it, running } = await started(
      `${BUN_SERVE} process.on("SIGTERM", () => console.error("told"));
      process.on("SIGUSR1", () => console.error("still here"));`,
    );
    const open = await Kept.to(it.to);
    expect(await open.ask()).toMatchObject({ status: 200 });
    running.process.kill("SIGTERM");
    await it.notified("STOPPING=1");
    running.process.kill("SIGTERM");
    await running.says(/^told\n$/);
    open.socket.destroy();
    // Longer than the preload waits for clients.
    await Bun.sleep(1500);
    running.process.kill("SIGUSR1");
    await running.says(/^told\nstill here\n$/);
  });

  test("a second time ends a program at once that waits for an endless stream alone", async () => {
    const { it, running } = await started(
      `require("node:http").createServer((request, response) => response.write("begun")).listen(3000);`,
    );
    const endless = await Kept.to(it.to);
    endless.send("/");
    await until("it has begun", 10, () => endless.received.includes("begun"));
    const begun = performance.now();
    running.process.kill("SIGTERM");
    // From five seconds on, it waits for nothing else, up to ten.
    await Bun.sleep(6000);
    expect(running.process.exitCode).toBeNull();
    expect((await it.stop()).status).toBe(0);
    expect(performance.now() - begun).toBeLessThan(9000);
  });

  test.each(["", `"SIGTERM"`])("after removeAllListeners(%s) still drains", async (event) => {
    const { it } = await started(
      `process.on("SIGTERM", () => {}); ${BUN_SERVE} process.removeAllListeners(${event});`,
    );
    expect((await it.stop()).status).toBe(0);
    expect(await it.notified("STOPPING=1")).toEqual(["STOPPING=1\n"]);
  });

  test("lets the rest of a body come that was answered early", async () => {
    const { it, running } = await started(
      `Bun.serve({ port: 3000, fetch: () => new Response("refused") });` + ENDS["process.exit()"],
    );
    const open = await Kept.to(it.to);
    await open.ask();
    running.process.kill("SIGTERM");
    await it.notified("STOPPING=1");
    // The grace lasts for a second, and is over before the answer.
    await Bun.sleep(600);
    await answeredEarly(it);
    const answered = performance.now();
    expect(await running.status()).toBe(0);
    expect(performance.now() - answered).toBeGreaterThan(300);
    open.socket.destroy();
  });

  test("lets answers end, of newcomers too, and cuts an endless stream after ten seconds", async () => {
    const { it } = await started(
      `require("node:http").createServer((request, response) => {
        response.write("begun");
        if (request.url === "/slow") setTimeout(() => response.end(" ended"), 500);
      }).listen(3000);`,
    );
    const [slow, endless] = [await Kept.to(it.to), await Kept.to(it.to)];
    slow.send("/slow");
    endless.send("/endless");
    await until("both begin", 10, () =>
      [slow, endless].every((one) => one.received.includes("begun")),
    );
    const stopped = it.stop();
    await it.notified("STOPPING=1");
    // The grace lasts, for longer than a second, whatever was asked since.
    for (let i = 0; i < 4; i++) {
      const newcomer = await Kept.to(it.to);
      newcomer.send("/slow");
      await newcomer.ended();
      expect(newcomer.received).toContain(" ended");
    }
    const { status, milliseconds } = await stopped;
    expect(status).toBe(0);
    expect(slow.received).toContain(" ended");
    expect(milliseconds).toBeWithin(9500, 12_000);
  });

  test("cuts a request that never gets an answer after ten seconds, whenever it came", async () => {
    const { it, running } = await started(
      `Bun.serve({ port: 3000, fetch: () => (console.error("asked"), new Promise(() => {})) });`,
    );
    const early = await Kept.to(it.to);
    early.send("/");
    await running.says(/^asked\n$/);
    const stopped = it.stop();
    await it.notified("STOPPING=1");
    // The early one makes the grace last until then.
    const late = await Kept.to(it.to);
    late.send("/");
    await running.says(/^asked\nasked\n$/);
    const { status, milliseconds } = await stopped;
    expect(status).toBe(0);
    expect(milliseconds).toBeWithin(9500, 12_000);
    expect(running.stderr).toBe("asked\nasked\n");
  });

  test("has a program that uses the module itself end as without the preload", async () => {
    for (const source of [
      `${NODE_HTTP} const { drain } = await import(${MODULE});`,
      `const { drain, passedFd, serve } = await import(${MODULE});
      const server = serve({ fd: passedFd(), port: 3000, fetch: () => new Response("Hello\\n") });`,
    ]) {
      const { it } = await started(
        `${source} process.on("SIGTERM", async () => process.exit((await drain(server)) ? 4 : 5));`,
      );
      const open = await Kept.to(it.to);
      expect(await open.ask()).toMatchObject({ body: "Hello\n" });
      expect((await it.stop()).status).toBe(4);
    }
  });

  test("does not take the messages of a WebSocket of ws for requests that it cuts off", async () => {
    const { it } = await started(
      `const { drain } = await import(${MODULE});
      const server = require("node:http").createServer(() => {});
      new (require("ws").WebSocketServer)({ server }).on("connection", (socket) => socket.on("message", () => {}));
      server.listen(3000);
      process.on("SIGTERM", async () => process.exit((await drain(server)) ? 4 : 5));`,
    );
    const chat = await Kept.to(it.to);
    await chat.upgrade();
    const talking = setInterval(() => chat.socket.write(HI), 50);
    expect((await it.stop()).status).toBe(4);
    clearInterval(talking);
  });

  test("leaves newcomers to the next process, for a program of node:net too", async () => {
    const { it, running } = await started(
      `require("node:net").createServer((socket) => socket.pipe(socket)).listen(3000);
      process.on("SIGTERM", () => console.error("asked to stop"));`,
    );
    const open = await Kept.to(it.to);
    open.socket.write("for the first");
    await until("the echo", 10, () => open.received === "for the first");
    running.process.kill("SIGTERM");
    await running.says(/asked to stop/);
    const newcomer = await client(it.to);
    newcomer.end("for the next");
    open.socket.end(" still");
    await open.ended();
    expect(open.received).toBe("for the first still");
    await running[Symbol.asyncDispose]();
    it.start("program.ts");
    expect(await text(newcomer)).toBe("for the next");
  });

  test("says GOAWAY to clients of node:http2, lets answers under way end, leaves others to the next", async () => {
    const { it, running } = await started(
      `require("node:http2").createServer((request, response) =>
        setTimeout(() => response.end("Hello"), request.url === "/slow" ? 1500 : 0)).listen(3000);`,
    );
    const [session, quiet] = [connectHTTP2(it.url), connectHTTP2(it.url)];
    const goaway = new Promise((resolve) => session.once("goaway", resolve));
    const told = new Promise((resolve) => quiet.once("goaway", () => resolve(performance.now())));
    await new Promise((resolve) => quiet.ping(resolve));
    expect(await getHTTP2(session)).toBe("Hello");
    const slow = getHTTP2(session, "/slow");
    // It is there before the signal.
    await new Promise((resolve) => session.ping(resolve));
    const begun = performance.now();
    running.process.kill("SIGTERM");
    expect(await goaway).toBe(0);
    // One that has not asked has half a second to do so.
    expect(Number(await told) - begun).toBeGreaterThan(400);
    const next = connectHTTP2(it.url);
    const late = getHTTP2(next);
    expect(await slow).toBe("Hello");
    expect(await running.status()).toBe(0);
    it.start("program.ts");
    expect(await late).toBe("Hello");
    next.destroy();
  });

  test("answers a client of node:http2 whose TLS handshake comes after it, and says GOAWAY then", async () => {
    const { it, running } = await started(
      `require("node:http2").createSecureServer(${JSON.stringify(CERTIFICATE)}, (request, response) =>
        setTimeout(() => response.end("Hello"), 50)).listen(3000);`,
    );
    const url = `https://127.0.0.1:${it.port}`;
    const silent = [await client(it.to), await client(it.to)];
    const session = connectHTTP2(url, LAX);
    // It was accepted after the silent ones.
    expect(await getHTTP2(session)).toBe("Hello");
    const begun = performance.now();
    running.process.kill("SIGTERM");
    await new Promise((resolve) => session.once("goaway", resolve));
    const [quiet, late] = silent.map((socket) => {
      const createConnection = () => connectTLS({ ...LAX, socket, ALPNProtocols: ["h2"] });
      return connectHTTP2(url, { createConnection });
    });
    const [told, seen]: [unknown[], unknown[]] = [[], []];
    quiet?.once("goaway", (code) => told.push(code));
    late?.once("goaway", (code) => seen.push(code));
    seen.push(await getHTTP2(late ?? expect.unreachable()));
    // It is told at its request, not some time after the answer.
    expect(seen).toEqual([0, "Hello"]);
    expect(await running.status()).toBe(0);
    // With a session that nobody tells to end, such as one that asks nothing, it would be five seconds.
    expect(performance.now() - begun).toBeLessThan(4000);
    expect(told).toEqual([0]);
  });

  // Bun 1.4.0 does not speak it.
  test.skipIf(Bun.version === "1.4.0")(
    "tells sessions of Bun.serve to end before it reaches a handler that exits",
    async () => {
      const { it, running } = await started(
        `const tls = ${JSON.stringify(CERTIFICATE)};
      Bun.serve({ port: 3000, http2: true, tls, fetch: async () => (await Bun.sleep(20), new Response("Hello")) });
      process.on("SIGTERM", () => process.exit(3));`,
      );
      const session = connectHTTP2(`https://127.0.0.1:${it.port}`, LAX);
      expect(await getHTTP2(session)).toBe("Hello");
      running.process.kill("SIGTERM");
      expect(await untilGoaway(session, "Hello")).toMatch(GOAWAY);
      expect(await running.status()).toBe(3);
    },
  );

  test.skipIf(Bun.version === "1.4.0")(
    "lets a stream of HTTP/2 end that takes longer than the sessions are waited for",
    async () => {
      const { it, running } = await started(
        `const tls = ${JSON.stringify(CERTIFICATE)};
        async function* chunks() { for (let i = 0; i < 16; i++) { yield "x"; await Bun.sleep(500); } }
        Bun.serve({ port: 3000, http2: true, tls, fetch: () => (console.error("asked"), new Response(chunks())) });
        process.on("SIGTERM", () => process.exit(3));`,
      );
      const session = connectHTTP2(`https://127.0.0.1:${it.port}`, LAX);
      const answer = getHTTP2(session);
      await running.says(/asked/);
      running.process.kill("SIGTERM");
      expect(await answer).toBe("x".repeat(16));
      expect(await running.status()).toBe(3);
    },
  );

  test("lets answers of node:http2 on a port of the program's own end", async () => {
    const port = freePort();
    const { it, running } = await started(
      `require("node:http").createServer().listen(3000);
      require("node:http2").createServer((request, response) => {
        console.error("begun");
        setTimeout(() => response.end("Hello"), 500);
      }).listen(${port}, "127.0.0.1", () => console.error("listens"));`,
      {},
      { name: "3000" },
    );
    await running.says(/listens/);
    const { connect } = await import("node:http2");
    const session = connect(`http://127.0.0.1:${port}`);
    const request = session.request({ ":path": "/" }).setEncoding("latin1");
    await running.says(/begun/);
    const stopped = it.stop();
    let body = "";
    for await (const chunk of request) body += String(chunk);
    expect(body).toBe("Hello");
    expect((await stopped).status).toBe(0);
    session.destroy();
  });

  test("leaves the requests of node:http and their bodies as the program finds them before", async () => {
    const handlers = Object.entries(READS).map(([name, body]) => {
      const kind = body.startsWith("throw") ? "" : "async ";
      return `${JSON.stringify(name)}: ${kind}(request, response) => { ${body} }`;
    });
    const { it, running } = await started(
      `process.on("uncaughtException", (error) => console.error(error.message));
      const handlers = { ${handlers.join()} };
      const server = require("node:http").createServer((request, response) => {
        ${HOLD}
        return handlers[decodeURI(request.url.slice(1))](request, response);
      }).listen(3000);
      server.on("checkContinue", (request, response) => {
        response.writeContinue();
        server.emit("request", request, response);
      });`,
    );
    const answer = async (name: string, size: number) => {
      const path = `/${encodeURI(name)}`;
      const connection = await Kept.to(it.to);
      const expects = name === "100 Continue" ? "Expect: 100-continue\r\n" : "";
      connection.send(path, `${expects}Content-Length: ${size}\r\n`, "POST");
      if (expects !== "") {
        await until("100", 10, () => connection.received.startsWith("HTTP/1.1 100 "));
        connection.received = "";
      }
      connection.socket.write(Buffer.alloc(size, "x"));
      const isOver = () => connection.end !== undefined || isWhole(connection.received);
      await until("an answer or an end", 3, isOver).catch(() => undefined);
      const { received } = connection;
      connection.socket.destroy();
      // Bun ends the answer of a handler that throws with an empty chunk.
      const body = received.split("\r\n\r\n")[1]?.replace(/^0$/, "") ?? "";
      return `${received.split("\r\n")[0]} ${body.length} ${body.slice(0, 500)}`;
    };
    const answers = async () => {
      const all: Record<string, string[]> = {};
      const ask = async (name: string) => {
        all[name] = [await answer(name, 5), await answer(name, 200_000)];
      };
      await Promise.all(Object.keys(READS).map(ask));
      return all;
    };
    const before = await answers();
    const held = await holding(it, running);
    expect(await answers()).toEqual(before);
    held.socket.destroy();
    expect(await running.status()).toBe(0);
  });

  test("has each response of node:http say close, whatever its own header says", async () => {
    const handlers = Object.entries(HEADS).map(([name, [begin]]) => {
      return `${JSON.stringify(name)}: (request, response) => { ${begin} }`;
    });
    const { it, running } = await started(
      `const handlers = { ${handlers.join()} };
      require("node:http").createServer((request, response) => {
        ${HOLD}
        response.setHeader("Content-Length", 2);
        handlers[decodeURI(request.url.slice(1))](request, response);
        response.end("ok");
      }).on("checkExpectation", (request, response) => response.end("ok")).listen(3000);`,
    );
    const held = await holding(it, running);
    const said: Record<string, unknown> = {};
    const wanted: Record<string, unknown> = {};
    const ask = async (method: string, name: string, [begin, connection]: readonly string[]) => {
      const kept = await Kept.to(it.to);
      const isPost = method === "POST";
      kept.send(`/${encodeURI(name)}`, isPost ? "Content-Length: 2\r\n" : "", method);
      if (isPost) kept.socket.write("hi");
      const end = await until("the end", 3, () => kept.end).catch(() => "none");
      const { received } = kept;
      const own = received.includes("X-Own: 1");
      const lines = received.match(/^connection: .*/gim);
      said[`${method} ${name}`] = [lines, own, received.split("\r\n\r\n").at(-1), end];
      const isOwn = begin?.includes("X-Own");
      wanted[`${method} ${name}`] = [[`Connection: ${connection}`], isOwn, "ok", "closed"];
    };
    const asks = ["GET", "POST"].flatMap((method) =>
      Object.entries(HEADS).map(([name, head]) => ask(method, name, head)),
    );
    await Promise.all(asks);
    expect(said).toEqual(wanted);
    const expecting = await Kept.to(it.to);
    expect(await expecting.ask("/", "Expect: more\r\n")).toMatchObject({
      body: "ok",
      closes: true,
    });
    held.socket.destroy();
    expect(await running.status()).toBe(0);
  });

  test("leaves upgrades and tunnels of node:http to the program", async () => {
    const { it, running } = await started(
      `const server = require("node:http").createServer((request, response) => {
        ${HOLD}
        if (request.url === "/switched") response.writeHead(101, { Connection: "Upgrade", Upgrade: "x" });
        response.end("served");
      });
      const answers = { upgrade: "101 Switching Protocols", connect: "200 OK" };
      for (const [name, status] of Object.entries(answers))
        server.on(name, (request, socket) => {
          socket.write("HTTP/1.1 " + status + "\\r\\nConnection: Upgrade\\r\\nUpgrade: echo\\r\\n\\r\\n");
          socket.on("data", (data) => socket.write(name + " " + data));
        });
      server.listen(3000);`,
    );
    const echo = async (method: string, target: string) => {
      const kept = await Kept.to(it.to);
      kept.send(target, "Connection: Upgrade\r\nUpgrade: echo\r\n", method);
      await until("the head", 10, () => kept.received.endsWith("\r\n\r\n"));
      kept.socket.write("hi");
      await until("the echo", 10, () => kept.received.endsWith("hi"));
      kept.socket.destroy();
      return kept.received;
    };
    const switched = async () => {
      const kept = await Kept.to(it.to);
      kept.send("/switched");
      await until("the head", 10, () => kept.received.includes("\r\n\r\n"));
      kept.socket.destroy();
      return /^connection: .*$/im.exec(kept.received)?.[0];
    };
    expect(await switched()).toBe("Connection: Upgrade");
    const echoes = async () => [await echo("GET", "/"), await echo("CONNECT", "example:1")];
    const before = await echoes();
    const held = await holding(it, running);
    expect(await echoes()).toEqual(before);
    expect(await switched()).toBe("Connection: Upgrade");
    // The request that is held makes the grace last longer than its second.
    await Bun.sleep(1300);
    const newcomer = await Kept.to(it.to);
    newcomer.send("/");
    await newcomer.ended();
    expect(newcomer.received).toContain("served");
    held.socket.destroy();
    expect(await running.status()).toBe(0);
  });

  describe("answers a request with a body in node:http", () => {
    /**
     * A program that has got SIGTERM, with a request under way: for as long as that, but for five seconds at
     * most, it serves as before. Without it that would be a second, too short for a busy machine.
     */
    async function ending(handler = "") {
      const { it, running } = await started(
        `let calls = 0;
        process.on("exit", () => console.error("calls", calls));
        const server = require("node:http").createServer(async (request, response) => {
          calls++;
          if (request.url === "/held") return void response.write("held");
          if (request.url === "/refused") return void response.writeHead(401).end("refused");
          if (request.url === "/resumed") {
            request.resume();
            return void response.end("refused");
          }
          const hash = new Bun.CryptoHasher("sha1");
          if (request.url === "/iterated") for await (const chunk of request) hash.update(chunk);
          else await new Promise((done) => request.on("data", (chunk) => hash.update(chunk)).on("end", done));
          response.end(hash.digest("hex"));
        }).listen(3000);
        ${handler}`,
      );
      const other = await Kept.to(it.to);
      other.send("/held");
      await until("it is under way", 10, () => other.received.includes("held"));
      running.process.kill("SIGTERM");
      await it.notified("STOPPING=1");
      return { it, running, other };
    }

    // Not beside the others: an answer waits for half a second, and they may keep a client from sending.
    test.serial(
      "that the handler does not read, and ends the connection once the body has come",
      async () => {
        const { it, running, other } = await ending();
        for (const [size, pieces] of [
          [1, 1],
          [1_000_000, 1],
          [1_000_000, 10],
        ] as const) {
          const connection = await posted(it, "/refused", Buffer.alloc(size), pieces);
          expect(await connection.ended()).toBe("closed");
          expect(connection.received).toMatch(/^HTTP\/1.1 401 [^]*connection: close[^]*refused/i);
          connection.socket.destroy();
        }
        // Longer than the answer would have waited for a body.
        await Bun.sleep(600);
        other.socket.destroy();
        expect(await running.status()).toBe(0);
        expect(running.stderr).toContain("calls 4\n");
      },
    );

    test("but not one whose client has gone before its end", async () => {
      const { it, running, other } = await ending();
      const connection = await Kept.to(it.to);
      connection.send("/resumed", "Content-Length: 10\r\n", "POST");
      connection.socket.write("four");
      await Bun.sleep(200);
      connection.socket.destroy();
      // Longer than the request would have waited for its body.
      await Bun.sleep(600);
      other.socket.destroy();
      expect(await running.status()).toBe(0);
      expect(running.stderr).toContain("calls 1\n");
    });

    test("that the handler reads, with all of the body in its order", async () => {
      const { it, running, other } = await ending();
      const body = crypto.getRandomValues(Buffer.alloc(60_000));
      const hash = new Bun.CryptoHasher("sha1").update(body).digest("hex");
      for (const path of ["/heard", "/iterated"])
        for (const pieces of [1, 7]) {
          const connection = await posted(it, path, body, pieces);
          expect(await connection.ended()).toBe("closed");
          expect(connection.received).toMatch(RegExp(`^connection: close[^]*${hash}$`, "im"));
          connection.socket.destroy();
        }
      other.socket.destroy();
      expect(await running.status()).toBe(0);
    });

    test.each(Object.entries({ NODE_HTTP, KEEPING }))(
      "in restarts of %s under load, and loses none",
      async (_, source) => {
        const { it } = await started(source);
        const { lost, statuses } = await it.restarts(3, () => it.start("program.ts"), 5, 3000);
        expect({ lost, statuses }).toEqual({ lost: {}, statuses: [0, 0, 0] });
      },
    );

    test("whose body takes long, and does not reset the client", async () => {
      const drained = `process.on("SIGTERM", async () => process.exit((await drain(server)) ? 4 : 5));`;
      const { it, running, other } = await ending(
        `const { drain } = await import(${MODULE}); ${drained}`,
      );
      const [connection, idle, read] = await Promise.all([
        answeredEarly(it),
        answeredEarly(it, "/resumed"),
        posted(it, "/heard", Buffer.alloc(9), 1, 10),
      ]);
      expect(connection.received).not.toMatch(/^connection: close/im);
      expect(connection.end).toBeUndefined();
      for (const { socket } of [connection, idle, read]) socket.write("1");
      // The handler answers after the end of the body.
      expect(await read.answer()).toMatchObject({ closes: true });
      // The rest of the body has come: the next answer ends the connection.
      expect(await connection.ask("/refused")).toMatchObject({ status: 401, closes: true });
      connection.socket.destroy();
      other.socket.destroy();
      // That the last thing to come was a body is no cut.
      expect(await running.status()).toBe(4);
    });
  });
});
