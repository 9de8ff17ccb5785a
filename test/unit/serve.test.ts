import { afterEach, describe, expect, spyOn, test } from "bun:test";
import { request } from "node:http";
import { readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { serve } from "../../src/activation/serve.ts";
import { closesOnExec, duplicate } from "../../src/activation/libc.ts";
import * as sockets from "../support/sockets.ts";
import { AF_UNIX, backlogOf, close, portOf, socketPair } from "../support/sockets.ts";
import { eventually } from "../support/until.ts";
import {
  certificate,
  client,
  FAMILIES,
  listening,
  openDescriptors,
  refusal,
  text,
  thrown,
} from "../support/listening.ts";

const servers: Bun.Server<undefined>[] = [];
afterEach(async () => {
  for (const server of servers.splice(0)) await server.stop(true);
});

function started<S extends Bun.Server<undefined>>(server: S): S {
  servers.push(server);
  return server;
}

/** One HTTP/1.1 exchange over a connection of its own. */
async function exchange(to: Parameters<typeof client>[0], target = "/"): Promise<string> {
  const socket = await client(to);
  socket.write(`GET ${target} HTTP/1.1\r\nHost: example\r\nConnection: close\r\n\r\n`);
  return await text(socket);
}

/** The inodes of the sockets that this process has open and that listen. */
function listeners(): Set<string> {
  const own = new Set<string>();
  for (const fd of readdirSync("/proc/self/fd")) {
    // The directory itself is closed by now.
    const link =
      thrown(() => readlinkSync(`/proc/self/fd/${fd}`)) ?? readlinkSync(`/proc/self/fd/${fd}`);
    const inode = /^socket:\[(\d+)\]$/.exec(String(link))?.[1];
    if (inode !== undefined) own.add(inode);
  }
  const listening = new Set<string>();
  for (const table of ["tcp", "tcp6", "unix"])
    for (const line of readFileSync(`/proc/self/net/${table}`, "utf8").split("\n")) {
      const columns = line.trim().split(/\s+/);
      const [isListening, inode] =
        table === "unix"
          ? [columns[3] === "00010000", columns[6]]
          : [columns[3] === "0A", columns[9]];
      if (isListening && inode !== undefined && own.has(inode)) listening.add(inode);
    }
  return listening;
}

describe.each(FAMILIES)("serve on a listening socket over %s", (family) => {
  test("answers, from a route and from fetch", async () => {
    using it = listening(family);
    started(
      serve(it.fd, {
        routes: { "/route/:id": (request) => new Response(`route ${request.params.id}`) },
        fetch: (request) => new Response(request.url),
      }),
    );
    expect(await exchange(it.to, "/route/7")).toEndWith("\r\n\r\nroute 7");
    expect(await exchange(it.to, "/a?b")).toEndWith("\r\n\r\nhttp://example/a?b");
  });

  test("answers a client that was queued before", async () => {
    using it = listening(family);
    const early = await client(it.to);
    early.write("GET / HTTP/1.1\r\nHost: example\r\nConnection: close\r\n\r\n");
    started(serve(it.fd, { fetch: () => new Response("late") }));
    expect(await text(early)).toEndWith("late");
  });

  test("keeps one connection for many requests", async () => {
    using it = listening(family);
    started(serve(it.fd, { fetch: (request) => new Response(new URL(request.url).pathname) }));
    const socket = await client(it.to);
    let received = "";
    socket.on("data", (data) => (received += data.toString()));
    for (let n = 0; n < 20; n++) {
      socket.write(`GET /n${n} HTTP/1.1\r\nHost: example\r\n\r\n`);
      await eventually(() => received.endsWith(`/n${n}`));
    }
    socket.destroy();
  });

  test("streams a body in and a body out", async () => {
    using it = listening(family);
    started(
      serve(it.fd, {
        fetch: ({ body }) =>
          new Response(body?.pipeThrough(new TransformStream()) ?? null, { status: 201 }),
      }),
    );
    const at = "path" in it.to ? { socketPath: it.to.path } : it.to;
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const outgoing = request({ ...at, method: "POST" }, (response) => {
      let received = "";
      response.setEncoding("utf8");
      response.on("data", (chunk) => {
        received += chunk;
        // The second half is sent only when the first came back.
        if (received === "one,") outgoing.end("two");
      });
      response.on("end", () => resolve(`${response.statusCode} ${received}`));
    });
    outgoing.on("error", reject);
    outgoing.write("one,");
    expect(await promise).toBe("201 one,two");
  });

  test("upgrades to WebSocket", async () => {
    using it = listening(family);
    const server = serve(it.fd, {
      websocket: { message: (socket, message) => void socket.send(`echo ${message}`) },
      fetch: (request, server) =>
        server.upgrade(request) ? undefined : new Response("", { status: 400 }),
    });
    const socket = await client(it.to);
    let received = "";
    socket.setEncoding("latin1").on("data", (data) => (received += String(data)));
    socket.write(
      "GET / HTTP/1.1\r\nHost: example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    await eventually(() => received.includes("\r\n\r\n"));
    expect(received).toStartWith("HTTP/1.1 101 ");
    expect(received).toContain("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    // A masked text frame, "hi", with a mask of zeros.
    socket.write(Uint8Array.of(0x81, 0x82, 0, 0, 0, 0, 0x68, 0x69));
    await eventually(() => received.endsWith("\x81\x07echo hi"));
    socket.destroy();
    await server.stop(true);
  });

  test("tells the address of the passed socket, and closes its number", async () => {
    using it = listening(family);
    const before = openDescriptors();
    const server = started(serve(it.fd, { fetch: () => new Response() }));
    expect(openDescriptors()).toBe(before);
    if ("port" in it.to) {
      const { host, port } = it.to;
      expect(server.port).toBe(port);
      expect(server.hostname).toBe(host);
      expect(server.url.href).toBe(`http://${family === "IPv6" ? "[::1]" : host}:${port}/`);
      expect(server).toHaveProperty("address", { address: host, family, port });
    } else {
      expect(server.port).toBeUndefined();
      expect(server.hostname).toBeUndefined();
      expect(server.url.href).toBe(
        family === "Unix" ? `unix://${it.to.path}` : `abstract://${it.to.path.slice(1)}/`,
      );
      expect(server).toHaveProperty("address", it.to.path.replace("\0", "@"));
    }
  });

  test("leaves nothing else listening, nothing open, and the socket with its passer", async () => {
    using it = listening(family);
    const before = openDescriptors();
    const listened = listeners();
    expect(listened.size).toBeGreaterThan(0);
    const server = serve(it.fd, { fetch: () => new Response("first") });
    expect(listeners()).toEqual(listened);
    expect(await exchange(it.to)).toEndWith("first");
    await server.stop();
    await eventually(() => openDescriptors() === before - 1);
    // The passer still listens: a client is queued, and the next server has it.
    const queued = exchange(it.to);
    started(serve(duplicate(it.kept), { fetch: () => new Response("second") }));
    expect(await queued).toEndWith("second");
  });

  test("drains: a request under way is answered after stop()", async () => {
    using it = listening(family);
    const release = Promise.withResolvers<void>();
    const arrived = Promise.withResolvers<void>();
    const server = serve(it.fd, {
      fetch: async () => {
        arrived.resolve();
        await release.promise;
        return new Response("drained");
      },
    });
    const answer = exchange(it.to);
    await arrived.promise;
    const stopped = server.stop();
    expect(server.pendingRequests).toBe(1);
    release.resolve();
    expect(await answer).toEndWith("drained");
    await stopped;
  });
});

test("serve serves over TLS", async () => {
  using it = listening("IPv6");
  const server = started(serve(it.fd, { fetch: () => new Response("safe"), tls: certificate() }));
  expect(server.url.protocol).toBe("https:");
  const response = await fetch(server.url, { tls: { rejectUnauthorized: false } });
  expect(await response.text()).toBe("safe");
});

test.each([1, 37, 511, 4096])("serve keeps a backlog of %i", (backlog) => {
  using it = listening("IPv4", backlog);
  started(serve(it.fd, { fetch: () => new Response() }));
  expect(backlogOf(it.kept)).toBe(backlog);
});

test("serve tells who asks over IP, and nobody where only AF_UNIX is allowed", async () => {
  const options = {
    fetch: (request: Request, server: Bun.Server<undefined>) =>
      Response.json(server.requestIP(request)?.address ?? null),
  };
  using ipv6 = listening("IPv6");
  started(serve(ipv6.fd, options));
  expect(await exchange(ipv6.to)).toEndWith(`"::1"`);

  const native = Bun.serve;
  using sandboxed = spyOn(Bun, "serve");
  sandboxed.mockImplementation(((options: Bun.Serve.Options<undefined>) => {
    if (!("unix" in options)) throw new Error("EAFNOSUPPORT");
    return native(options);
  }) as typeof Bun.serve);
  using ipv4 = listening("IPv4");
  const server = started(serve(ipv4.fd, options));
  expect(server.port).toBe(portOf(ipv4.kept));
  expect(await exchange(ipv4.to)).toEndWith("null");
});

test("serve listens on an address where no socket was passed", async () => {
  const server = started(serve({ port: 0 }, { fetch: () => new Response("mine") }));
  expect(server.hostname).toBe("127.0.0.1");
  expect(await (await fetch(server.url)).text()).toBe("mine");
  const path = `\0socket-service-${crypto.randomUUID()}`;
  started(serve({ unix: path }, { fetch: () => new Response("mine") }));
  expect(await exchange({ path })).toEndWith("mine");
});

test("serve refuses what is no listening stream socket, and leaves it open", () => {
  const [fd, other] = socketPair();
  expect(thrown(() => serve(fd, { fetch: () => new Response() }))).toEqual(
    refusal(
      78,
      /^descriptor \d+ is a connected stream socket \(Unix\), not a listening .*pass one/,
    ),
  );
  close(fd);
  close(other);
  expect(thrown(() => serve(987654, { fetch: () => new Response() }))).toEqual(
    refusal(78, /^descriptor 987654 is not open/),
  );
});

test("serve tells a path with every character that means something in a URL", () => {
  const path = join(tmpdir(), `socket-service ?#%@ü-${crypto.randomUUID()}`);
  const fd = sockets.listening(AF_UNIX, 1, path);
  const server = started(serve(fd, { fetch: () => new Response() }));
  expect(decodeURIComponent(server.url.pathname)).toBe(path);
  expect(server.url.search + server.url.hash).toBe("");
  rmSync(path);
});

test("serve gives a server that reloads", async () => {
  using it = listening("IPv4");
  const server = started(serve(it.fd, { fetch: () => new Response("old") }));
  expect(await exchange(it.to)).toEndWith("old");
  server.reload({ routes: { "/": new Response("new") } });
  expect(await exchange(it.to)).toEndWith("new");
  expect(server.port).toBe(portOf(it.kept));
});

test("serve passes on what Bun.serve refuses, and leaves the socket as it was", async () => {
  using it = listening("IPv4");
  const before = openDescriptors();
  const tls = { key: "no key", cert: "no certificate" };
  expect(thrown(() => serve(it.fd, { fetch: () => new Response(), tls }))).toBeInstanceOf(Error);
  expect(openDescriptors()).toBe(before);
  started(serve(it.fd, { fetch: () => new Response("still") }));
  expect(await exchange(it.to)).toEndWith("still");
});

test("serve refuses a runtime that listens elsewhere, before the first request", async () => {
  using it = listening("IPv4");
  const before = openDescriptors();
  const native = Bun.serve;
  using other = spyOn(Bun, "serve");
  // A server that has closed its socket already, and still tells its port.
  other.mockImplementation(((options: Bun.Serve.Options<undefined>) => {
    const server = native(options);
    const { port } = server;
    void server.stop(true);
    return Object.defineProperty(server, "port", { value: port });
  }) as typeof Bun.serve);
  expect(thrown(() => serve(it.fd, { fetch: () => new Response() }))).toEqual(
    refusal(71, /^Bun 1\.\S+ does not listen on 127\.0\.0\.1:\d+ as expected: use the Bun/),
  );
  other.mockRestore();
  await eventually(() => openDescriptors() === before);
  expect(closesOnExec(it.fd)).toBeDefined();
  started(serve(it.fd, { fetch: () => new Response("still") }));
  expect(await exchange(it.to)).toEndWith("still");
});
