/* The module relies on Bun itself: its version, and its calls. */
import { afterEach, describe, expect, test } from "bun:test";
import { createSocket } from "node:dgram";
import { createServer as createHttpServer } from "node:http";
import { createServer } from "node:net";

import { requireBun } from "../../src/activation/bun.ts";
import { refusal } from "../support/checks.ts";
import { listening } from "../support/listening.ts";

test("Bun 1.4.0 and newer will do, and an older one is refused", () => {
  for (const version of ["1.4.0", "1.4.5", "1.5.0", "1.10.0", "2.0.0", "10.0.0"])
    requireBun(version);
  for (const version of ["0.8.1", "1.0.0", "1.0.36", "1.3.14"])
    expect(refusal(() => requireBun(version))).toMatch(/^71: Bun \S+ is too old for /);
});

test("Bun.serve ignores fd", async () => {
  using socket = listening("IPv4");
  const options = { fd: socket.fd, port: 0, fetch: () => new Response() };
  const server = Bun.serve(options);
  const { port } = server;
  await server.stop(true);
  const passed = "port" in socket.to ? socket.to.port : undefined;
  if (port === passed)
    throw new Error(
      `Bun ${Bun.version} takes fd in Bun.serve itself. Find out with the tests of serve whether it keeps ` +
        "the backlog of the socket, reports its address, and serves over AF_UNIX. If so, have serve() hand " +
        "fd to Bun.serve from that version on, and once package.json asks for it (engines), delete the " +
        "placeholder. If not, serve() goes on as it is: it never lets Bun see fd. Tell in this test why.",
    );
  expect(port).toBeGreaterThan(0);
});

describe("the preload relies on Bun's node: modules, by their calls of Bun:", () => {
  const { serve, listen, udpSocket } = Bun;
  afterEach(() => void Object.assign(Bun, { serve, listen, udpSocket }));

  /** Records the options of the calls of one of them. */
  function recorded(name: "serve" | "listen" | "udpSocket") {
    const native: Function = Bun[name];
    const calls: Record<string, unknown>[] = [];
    const record = (options: Record<string, unknown>) => {
      calls.push(options);
      return Reflect.apply(native, Bun, [options]);
    };
    Object.assign(Bun, { [name]: record });
    return calls;
  }

  test("http.Server.listen calls Bun.serve, at once, whose handler gets bits, a body or none, the server", async () => {
    const calls = recorded("serve");
    const server = createHttpServer(
      (request, response) => request.resume() && response.end("Hello"),
    );
    server.listen(0, "127.0.0.1");
    const [options = {}] = calls;
    expect(options).toMatchObject({ port: 0, hostname: "127.0.0.1" });
    const { onNodeHTTPRequest: answer } = options;
    if (typeof answer !== "function") expect.unreachable("onNodeHTTPRequest is a function");
    const found: unknown[] = [];
    const inside = Object.getOwnPropertySymbols(server).map((symbol) =>
      Reflect.get(server, symbol),
    );
    const native = inside.find((it) => typeof it?.reload === "function");
    const wrapped = (...args: unknown[]) => {
      const [, , , bits, , hasBody, , , socket] = args;
      found.push([typeof bits, hasBody, Object(socket).server === server]);
      args[3] = Number(bits) | 1;
      return Reflect.apply(answer, native, args);
    };
    native?.reload({ ...options, onNodeHTTPRequest: wrapped });
    const response = await fetch(native?.url ?? "");
    expect(response.headers.get("connection")).toBe("close");
    await fetch(native?.url ?? "", { method: "POST", body: "body" });
    expect(found).toEqual([
      ["number", false, true],
      ["number", true, true],
    ]);
    server.close();
  });

  test("net.Server.listen calls Bun.listen with itself as data, and dgram Bun.udpSocket", async () => {
    const [listens, sockets] = [recorded("listen"), recorded("udpSocket")];
    const server = createServer(() => {}).listen(0);
    expect(listens).toMatchObject([{ data: server, port: 0 }]);
    await new Promise<void>((resolve) => void server.close(() => resolve()));
    const socket = createSocket("udp4");
    await new Promise<void>((resolve) => void socket.bind(0, "127.0.0.1", resolve));
    expect(sockets).toMatchObject([{ hostname: "127.0.0.1", port: 0 }]);
    socket.close();
  });
});
