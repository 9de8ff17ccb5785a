/* Requests with a body in a drain: none is reset before it has its answer. */
import { describe, expect, test } from "bun:test";

import { drain } from "../../src/activation/adopt/drain.ts";
import { serve } from "../../src/activation/adopt/serve.ts";
import { Kept } from "../support/kept.ts";
import { listening } from "../support/listening.ts";
import { cleansUp } from "../support/started.ts";
import { until } from "../support/until.ts";

cleansUp();

test.each([
  ["not at all", () => {}],
  ["and fails", () => Promise.reject(new Error("too large"))],
  ["up to its first part", async ({ body }: Request) => void (await body?.getReader().read())],
  ["and cancels it", async ({ body }: Request) => await body?.cancel()],
])(
  "the early response to a body of 1 or 10 MB arrives if the handler reads it %s",
  async (_, read) => {
    using it = listening("IPv4");
    const server = serve({
      fd: it.fd,
      async fetch(request) {
        await read(request);
        return new Response("denied", { status: 401 });
      },
      error: () => new Response("denied", { status: 401 }),
    });
    const drained = drain(server, { grace: 300 });
    for (const size of [1e6, 1e7]) {
      const kept = await Kept.to(it.to);
      kept.send("/", `Content-Length: ${size}\r\n`, "POST");
      for (let sent = 0; sent < size; sent += 1e5) {
        kept.socket.write(Buffer.alloc(1e5));
        await Bun.sleep(0);
      }
      expect(await kept.answer()).toMatchObject({ status: 401, body: "denied" });
      kept.socket.end();
    }
    expect(await drained).toBe(true);
  },
);

test("a body that is still coming when the server stops gets its early response", async () => {
  using it = listening("IPv4");
  const server = serve({ fd: it.fd, fetch: () => new Response("denied", { status: 401 }) });
  const kept = await Kept.to(it.to);
  const drained = drain(server, { grace: 20 });
  kept.send("/", "Content-Length: 10000000\r\n", "POST");
  for (let sent = 0; sent < 100; sent++) {
    kept.socket.write(Buffer.alloc(1e5));
    await Bun.sleep(10);
  }
  expect(kept.received).toStartWith("HTTP/1.1 401");
  expect(kept.end ?? "").not.toMatch(/ECONNRESET|EPIPE/);
  expect(await drained).toBe(true);
});

describe("a request with a body that the handler does not read", () => {
  const ignoring = () => {
    const it = listening("IPv4");
    const server = serve({ fd: it.fd, fetch: () => new Response("thanks") });
    return { ...it, server, [Symbol.dispose]: () => it[Symbol.dispose]() };
  };

  test.each([
    ["in one piece", ["POST", 10], 0],
    ["after its head", ["PUT", 60_000], 20],
  ] as const)(
    "and that is short ends the connection, if it comes %s",
    async (_, [method, size], pause) => {
      using it = ignoring();
      const drained = drain(it.server, { grace: 200 });
      const kept = await Kept.to(it.to);
      kept.send("/", `Content-Length: ${size}\r\n`, method);
      await Bun.sleep(pause);
      kept.socket.write("x".repeat(size));
      expect(await kept.answer()).toEqual({ status: 200, body: "thanks", closes: true });
      expect(await drained).toBe(true);
    },
  );

  test("and that is chunked and empty ends the connection", async () => {
    using it = ignoring();
    const drained = drain(it.server, { grace: 200 });
    const kept = await Kept.to(it.to);
    kept.send("/", "Transfer-Encoding: chunked\r\n", "POST");
    kept.socket.write("0\r\n\r\n");
    expect(await kept.answer()).toEqual({ status: 200, body: "thanks", closes: true });
    expect(await drained).toBe(true);
  });

  test("and that comes late is answered first, and the connection goes on", async () => {
    using it = ignoring();
    const drained = drain(it.server, { grace: 1500 });
    const kept = await Kept.to(it.to);
    kept.send("/", "Content-Length: 4\r\n", "POST");
    expect(await kept.answer()).toEqual({ status: 200, body: "thanks", closes: false });
    kept.socket.write("body");
    expect(await kept.ask("/")).toEqual({ status: 200, body: "thanks", closes: true });
    expect(await drained).toBe(true);
  });

  test("is still there for a response that reads it later", async () => {
    using it = listening("IPv4");
    const server = serve({
      fd: it.fd,
      fetch: (request) =>
        new Response(
          (async function* () {
            await Bun.sleep(20);
            yield `read ${await request.text()}`;
          })(),
        ),
    });
    const drained = drain(server, { grace: 200 });
    const kept = await Kept.to(it.to);
    kept.send("/", "Content-Length: 4\r\n", "POST");
    kept.socket.write("body");
    expect(await kept.ended()).toBe("closed");
    expect(kept.received).toContain("read body");
    expect(await drained).toBe(true);
  });
});

test("a client that waits for 100 Continue gets it, and its answer", async () => {
  using it = listening("IPv4");
  const server = serve({
    fd: it.fd,
    fetch: async (request) => new Response(await request.text()),
  });
  const drained = drain(server, { grace: 20 });
  const kept = await Kept.to(it.to);
  kept.send("/", "Expect: 100-continue\r\nContent-Length: 4\r\n", "POST");
  await until("100 Continue", 10, () => kept.received.startsWith("HTTP/1.1 100 "));
  // Phase 3 is over by now.
  await Bun.sleep(100);
  kept.received = "";
  kept.socket.write("body");
  expect(await kept.answer()).toEqual({ status: 200, body: "body", closes: true });
  expect(await drained).toBe(true);
});
