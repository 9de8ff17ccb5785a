/* Requests with a body in a drain: none is reset before it has its answer. */
import { describe, expect, test } from "bun:test";
import { join } from "node:path";

import { drain } from "../../src/activation/adopt/drain.ts";
import { scratch } from "../support/daemon.ts";
import { accepted, drainUntil, serving } from "../support/kept.ts";
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
    const it = serving({
      async fetch(request) {
        await read(request);
        return new Response("denied", { status: 401 });
      },
      error: () => new Response("denied", { status: 401 }),
    });
    const drained = drain(it.server, { grace: 1500 });
    for (const size of [1e6, 1e7]) {
      const kept = await it.asking("/", `Content-Length: ${size}\r\n`, "POST");
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

/** Each way to read a body. They return its length. */
const READERS: Record<string, (request: Request) => unknown> = {
  text: async (request) => (await request.text()).length,
  json: async (request) => JSON.stringify(await request.json()).length,
  blob: async (request) => (await request.blob()).size,
  "the text of a clone": async (request) => (await request.clone().text()).length,
  "the text of a new Request": async (request) => (await new Request(request).text()).length,
  "a part after the other": async ({ body }) => {
    let length = 0;
    for await (const part of body ?? []) length += part.length;
    return length;
  },
  "a stream for another server": async ({ body }) => {
    using other = Bun.serve({ port: 0, fetch: async (request) => new Response(request.body) });
    return (await (await fetch(other.url, { method: "POST", body })).text()).length;
  },
};
if (Bun.version !== "1.4.0")
  READERS["a file that it becomes"] = async (request) => {
    using directory = scratch();
    return await Bun.write(join(directory.path, "body"), Object(request));
  };

describe.each(Object.entries(READERS))(
  "a request whose body the handler reads as %s",
  (_, read) => {
    test.each([
      ["comes with its head", 0, 20],
      ["comes after its head", 20, 20],
      ["is long", 20, 2_000_000],
    ])("and whose body %s ends the connection", async (_, pause, size) => {
      const it = serving({ fetch: async (request) => new Response(`read ${await read(request)}`) });
      const end = drainUntil(it.server);
      const kept = await it.client();
      const head = `POST / HTTP/1.1\r\nHost: example\r\nContent-Length: ${size}\r\n\r\n`;
      const body = `"${"x".repeat(size - 2)}"`;
      await kept.write([head + body.slice(0, 10), body.slice(10)], pause);
      expect(await kept.answer()).toEqual({ status: 200, body: `read ${size}`, closes: true });
      expect(await end()).toBe(true);
    });
  },
);

test("a body that drips on after its early answer is no client that was cut off", async () => {
  const it = serving({ fetch: () => new Response("denied", { status: 401 }) });
  const kept = await it.client();
  expect(await kept.ask()).toMatchObject({ status: 401 });
  const drained = drain(it.server, { grace: 700, timeout: 8000 });
  kept.send("/", "Content-Length: 30\r\n", "POST");
  const dripping = (async () => {
    for (let n = 0; n < 15; n++) {
      kept.socket.write("ab");
      await Bun.sleep(100);
    }
  })();
  expect(await kept.answer()).toMatchObject({ status: 401, body: "denied" });
  expect(await drained).toBe(true);
  await dripping;
});

test("a body that came after its early answer, before the call, is no client that was cut off", async () => {
  const it = serving({ fetch: () => new Response("denied", { status: 401 }) });
  const kept = await it.asking("/", "Content-Length: 4\r\n", "POST");
  expect(await kept.answer()).toMatchObject({ status: 401 });
  kept.socket.write("body");
  // What came up to two seconds before the call can be a part of a request.
  await Bun.sleep(2100);
  expect(await drain(it.server, { grace: 100 })).toBe(true);
});

test("a body that is still coming when the server stops gets its early response", async () => {
  const it = serving({ fetch: () => new Response("denied", { status: 401 }) });
  const kept = await it.client();
  await accepted(it);
  const drained = drain(it.server, { grace: 20 });
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
  test.each([
    ["short, and comes in one piece,", "POST", "Content-Length: 10", 0, "x".repeat(10)],
    ["short, and comes after its head,", "PUT", "Content-Length: 60000", 20, "x".repeat(60_000)],
    ["chunked and empty", "POST", "Transfer-Encoding: chunked", 0, "0\r\n\r\n"],
  ])("and that is %s ends the connection", async (_, method, header, pause, body) => {
    const it = serving("thanks");
    const drained = drain(it.server, { grace: 600 });
    const kept = await it.asking("/", `${header}\r\n`, method);
    await Bun.sleep(pause);
    kept.socket.write(body);
    expect(await kept.answer()).toEqual({ status: 200, body: "thanks", closes: true });
    expect(await drained).toBe(true);
  });

  test("and that comes late is answered first, and the connection goes on", async () => {
    const it = serving("thanks");
    const drained = drain(it.server, { grace: 1500 });
    const late = async (header: string, body: string) => {
      const kept = await it.asking("/", `${header}\r\n`, "POST");
      expect(await kept.answer()).toEqual({ status: 200, body: "thanks", closes: false });
      kept.socket.write(body);
      expect(await kept.ask()).toEqual({ status: 200, body: "thanks", closes: true });
    };
    await Promise.all([
      late("Content-Length: 4", "body"),
      late("Transfer-Encoding: chunked", "4\r\nbody\r\n0\r\n\r\n"),
    ]);
    expect(await drained).toBe(true);
  });

  test("is still there for a response that reads it later", async () => {
    const it = serving({
      fetch: (request) =>
        new Response(
          (async function* () {
            await Bun.sleep(20);
            yield `read ${await request.text()}`;
          })(),
        ),
    });
    const drained = drain(it.server, { grace: 600 });
    const kept = await it.asking("/", "Content-Length: 4\r\n", "POST");
    kept.socket.write("body");
    expect(await kept.ended()).toBe("closed");
    expect(kept.received).toContain("read body");
    expect(await drained).toBe(true);
  });
});

test("a client that waits for 100 Continue gets it, and its answer", async () => {
  const it = serving({ fetch: async (request) => new Response(await request.text()) });
  const kept = await it.client();
  await accepted(it);
  const drained = drain(it.server, { grace: 20 });
  kept.send("/", "Expect: 100-continue\r\nContent-Length: 4\r\n", "POST");
  await until("100 Continue", 10, () => kept.received.startsWith("HTTP/1.1 100 "));
  // Phase 3 is over by now.
  await Bun.sleep(100);
  kept.received = "";
  kept.socket.write("body");
  expect(await kept.answer()).toEqual({ status: 200, body: "body", closes: true });
  expect(await drained).toBe(true);
});
