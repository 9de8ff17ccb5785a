/* Newcomers are served in a drain: clients that connect shortly before it, or during its grace. */
import { describe, expect, test } from "bun:test";
import { once } from "node:events";
import { connect as connectTLS } from "node:tls";

import { connectionsAt } from "../../src/activation/adopt/connections.ts";
import { drain } from "../../src/activation/adopt/drain.ts";
import { serve } from "../../src/activation/adopt/serve.ts";
import { servedBy, watchOf } from "../../src/activation/adopt/served.ts";
import { socketName, talk } from "../../src/activation/linux/libc.ts";
import { far } from "../support/far.ts";
import { accepted, holding, Kept, serving, underWay } from "../support/kept.ts";
import { CERTIFICATE, client } from "../support/listening.ts";
import * as sockets from "../support/sockets.ts";
import { atEnd, cleansUp } from "../support/started.ts";
import { shortest, until } from "../support/until.ts";

cleansUp();

/** A client that was accepted last is answered, even if its first request comes 100 ms later. */
async function expectLateAnswer(server: Bun.Server<undefined>, connect: () => Promise<Kept>) {
  const late = await connect();
  const other = await connect();
  // Bun accepts in the order of the queue: with this answer it has accepted both.
  await other.ask();
  const drained = drain(server, { grace: 0 });
  await Bun.sleep(100);
  expect(await late.ask()).toEqual({ status: 200, body: "answered", closes: true });
  expect(await drained).toBe(true);
}

test("a client that was accepted last is answered, even if its first request comes 100 ms later", async () => {
  const it = serving("answered");
  await expectLateAnswer(it.server, it.client);
});

test("a socket on all addresses has clients of both families, and on each address", async () => {
  for (const host of ["127.0.0.1", "127.8.9.10", sockets.LOOPBACK6]) {
    const fd = sockets.listeningOnAll();
    const to = { host, port: sockets.portOf(fd) };
    const server = serve({ fd, fetch: () => new Response("answered") });
    await expectLateAnswer(server, () => Kept.to(to));
  }
});

describe("newcomers are served until a request from before the call is answered", () => {
  /** Expects that after a longer time than the grace, if `meanwhile` makes a request during the drain. */
  async function expectService(
    answers: { fetch: (request: Request, server: Bun.Server<undefined>) => Promise<Response> },
    release: PromiseWithResolvers<void>,
    meanwhile: (it: ReturnType<typeof serving>) => Promise<unknown>,
  ) {
    const it = serving(answers);
    const old = await it.asking("/slow");
    await underWay(it.server);
    const drained = drain(it.server, { grace: 50, timeout: 20_000 });
    await meanwhile(it);
    await Bun.sleep(300);
    expect(await it.ask()).toMatchObject({ body: "served", closes: true });
    release.resolve();
    expect(await old.answer()).toMatchObject({ body: "served" });
    expect(await drained).toBe(true);
  }

  test("though a client gave up whose handler goes on", async () => {
    const { release, fetch } = holding("served");
    const hanging = async (request: Request) =>
      request.url.endsWith("/hung") ? await new Promise<never>(() => {}) : await fetch(request);
    await expectService({ fetch: hanging }, release, async (it) => {
      const gone = await it.asking("/hung");
      await underWay(it.server, 2);
      gone.socket.destroy();
      await underWay(it.server);
    });
  });

  test("though a handler calls server.fetch", async () => {
    const { release, fetch } = holding("served");
    const part = Promise.withResolvers<void>();
    const batching = async (request: Request, server: Bun.Server<undefined>) => {
      if (request.url.endsWith("/batch")) return await server.fetch("http://example/part");
      if (request.url.endsWith("/part")) await part.promise;
      return await fetch(request);
    };
    await expectService({ fetch: batching }, release, async (it) => {
      const batch = await it.asking("/batch");
      await underWay(it.server, 2);
      await Bun.sleep(50);
      part.resolve();
      expect(await batch.answer()).toMatchObject({ body: "served" });
    });
  });
});

test("streams from after the call do not prolong the grace", async () => {
  async function* stream() {
    yield "a";
    await Bun.sleep(300);
    yield "b";
  }
  const it = serving({ fetch: () => new Response(stream()) });
  let isOver = false;
  const worker = async (_: unknown, n: number) => {
    // At any time one of them is being sent.
    await Bun.sleep(n * 75);
    while (!isOver) {
      const kept = await it.asking();
      await until("its end", 10, () => isOver || kept.received.endsWith("b\r\n0\r\n\r\n"));
      kept.socket.destroy();
    }
  };
  const workers = Array.from({ length: 4 }, worker);
  await underWay(it.server, 4);
  const begun = performance.now();
  const drained = drain(it.server, { grace: 100, timeout: 20_000 });
  const served = servedBy(it.server) ?? expect.unreachable();
  await until("it accepts no more", 15, () => watchOf(it.server, served) === undefined);
  expect(performance.now() - begun).toBeLessThan(5000);
  isOver = true;
  await Promise.all(workers);
  await drained;
});

test("grace ends after half of timeout, also if a request from before the call ends shortly before", async () => {
  const { release, fetch } = holding("answered");
  const it = serving({ fetch });
  const slow = await it.asking("/slow");
  await underWay(it.server);
  const begun = performance.now();
  const drained = drain(it.server, { grace: 1000, timeout: 3000 });
  await Bun.sleep(1300);
  release.resolve();
  expect(await slow.answer()).toMatchObject({ body: "answered" });
  const served = servedBy(it.server) ?? expect.unreachable();
  await until("it accepts no more", 3, () => watchOf(it.server, served) === undefined);
  expect(performance.now() - begun).toBeWithin(1490, 2200);
  expect(await drained).toBe(true);
});

test.each([
  [250, 0, 300, "IPv4"],
  [500, 250, 270, "IPv4"],
  [600, 350, 270, "Unix"],
] as const)(
  "with a grace of %i ms, a client that connects after %i ms has %i ms for its first request, over %s",
  async (grace, connects, asks, family) => {
    const it = serving("in time", family);
    const drained = drain(it.server, { grace });
    await Bun.sleep(connects);
    const kept = await it.client();
    await Bun.sleep(asks);
    expect(await kept.ask()).toEqual({ status: 200, body: "in time", closes: true });
    expect(await drained).toBe(true);
  },
);

test("a client that connects after grace is the next process's, whenever its request comes", async () => {
  const it = serving("first");
  // With one that brings nothing, the end takes its time.
  await it.client();
  await it.ask();
  const drained = drain(it.server, { grace: 0 });
  await Bun.sleep(300);
  const newcomer = await it.client();
  expect(await drained).toBe(true);
  it.next("second");
  expect((await newcomer.ask()).body).toBe("second");
});

test("a slow request that came after the call neither prolongs the grace, nor takes the time of a newcomer", async () => {
  const release = { before: Promise.withResolvers<void>(), after: Promise.withResolvers<void>() };
  const routes = {
    "/before": () => release.before.promise.then(() => new Response("before")),
    "/after": () => release.after.promise.then(() => new Response("after")),
  };
  const it = serving({ routes, fetch: () => new Response("answered") });
  const before = await it.asking("/before");
  await underWay(it.server);
  const drained = drain(it.server, { grace: 0 });
  const after = await it.asking("/after");
  await underWay(it.server, 2);
  // Longer than a connection may take for its first request.
  await Bun.sleep(550);
  const newcomer = await it.client();
  await it.ask();
  release.before.resolve();
  expect(await before.answer()).toMatchObject({ body: "before" });
  const served = servedBy(it.server) ?? expect.unreachable();
  await until("it accepts no more", 2, () => watchOf(it.server, served) === undefined);
  release.after.resolve();
  expect(await after.answer()).toMatchObject({ body: "after" });
  await Bun.sleep(100);
  expect(await newcomer.ask()).toMatchObject({ body: "answered" });
  expect(await drained).toBe(true);
});

test("a newcomer is accepted after grace, for a moment, while the request of another is coming", async () => {
  let answers = 0;
  // A busy machine may miss the 200 milliseconds.
  for (let round = 0; round < 10 && answers === 0; round++) {
    const { release, fetch } = holding("answered");
    const it = serving({ fetch });
    const other = await it.client();
    const before = await it.asking("/slow");
    await underWay(it.server);
    const drained = drain(it.server, { grace: 0 });
    other.socket.write("GET / HT");
    release.resolve();
    expect(await before.answer()).toMatchObject({ body: "answered" });
    await Bun.sleep(60);
    const newcomer = await it.asking();
    await Bun.sleep(60);
    other.socket.write("TP/1.1\r\nHost: example\r\n\r\n");
    expect(await other.answer()).toMatchObject({ body: "answered" });
    expect(await drained).toBe(true);
    if (newcomer.received !== "") answers++;
    newcomer.socket.destroy();
  }
  expect(answers).toBe(1);
});

test.each([20, 70, 170, 700])(
  "a TLS handshake under way is finished, with a round trip of %i ms",
  async (roundTrip) => {
    const it = serving({ tls: CERTIFICATE, fetch: () => new Response("safe") });
    using distance = await far(it.to, roundTrip);
    const kept = new Kept(connectTLS({ port: distance.port, rejectUnauthorized: false }));
    kept.send("/");
    await accepted(it);
    const drained = drain(it.server, { grace: 1 });
    expect(await kept.answer()).toEqual({ status: 200, body: "safe", closes: true });
    expect(await drained).toBe(true);
  },
);

test("a handshake or a second request over TLS that never ends is cut off after two seconds, and the result is false", async () => {
  const its = [1, 2].map(() => serving({ tls: CERTIFICATE, fetch: () => new Response("never") }));
  const [first = expect.unreachable(), second = expect.unreachable()] = its;
  const slow = await client(first.to);
  // The head of a record of 512 bytes, and then one byte of it after the other.
  slow.write(Uint8Array.of(22, 3, 1, 2, 0, 1));
  const kept = second.tlsClient();
  await kept.ask();
  kept.socket.write("GET / HTTP/1.1\r\nX: ");
  const drip = setInterval(() => [slow, kept.socket].map((socket) => socket.write("0")), 100);
  atEnd(() => clearInterval(drip));
  await accepted(first);
  const begun = performance.now();
  const drained = its.map(({ server }) => drain(server, { grace: 1 }));
  expect(await Promise.all(drained)).toEqual([false, false]);
  expect(performance.now() - begun).toBeWithin(1900, 4000);
  slow.destroy();
});

test("a client over TLS that was answered and stays is not waited for", async () => {
  const took = await shortest(1200, async () => {
    const it = serving({ tls: CERTIFICATE, fetch: () => new Response("answered") });
    await it.tlsClient().ask();
    const begun = performance.now();
    expect(await drain(it.server, { grace: 0 })).toBe(true);
    return performance.now() - begun;
  });
  expect(took).toBeLessThan(1200);
});

test("a client that was the last to send in its TLS handshake, and asks nothing, is not cut off", async () => {
  const it = serving({ tls: CERTIFICATE, fetch: () => new Response("never") });
  using distance = await far(it.to, 100);
  // In a session of TLS 1.2 that is resumed, the client has the last word.
  let session: Buffer | undefined;
  const connect = async () => {
    const options = { port: distance.port, rejectUnauthorized: false, session };
    const socket = connectTLS({ ...options, maxVersion: "TLSv1.2" });
    atEnd(() => socket.destroy());
    await once(socket, "secureConnect");
    return socket;
  };
  const first = await connect();
  session = await until("the session", 10, () => first.getSession());
  first.destroy();
  expect((await connect()).isSessionReused()).toBe(true);
  await until("it is silent", 10, () => {
    const [fd, ...others] = connectionsAt(socketName(it.kept));
    const { heard = 0, said = 0 } = (fd !== undefined && talk(fd)) || {};
    return others.length === 0 && heard > 600 && heard < said;
  });
  expect(await drain(it.server, { grace: 1 })).toBe(true);
});

test("a client that asks nothing after its TLS handshake is not waited for", async () => {
  const it = serving({ tls: CERTIFICATE, fetch: () => new Response("never") });
  it.tlsClient();
  await until("it is silent", 10, () => {
    const [fd] = connectionsAt(socketName(it.kept));
    const { received = 0, heard = 0 } = (fd !== undefined && talk(fd)) || {};
    return received > 1 && heard > 600;
  });
  const begun = performance.now();
  expect(await drain(it.server, { grace: 1 })).toBe(true);
  expect(performance.now() - begun).toBeLessThan(1500);
});
