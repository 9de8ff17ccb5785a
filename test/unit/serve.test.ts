import { describe, expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { once } from "node:events";
import { rmSync } from "node:fs";
import { lookup } from "node:dns/promises";
import { hostname, networkInterfaces, tmpdir } from "node:os";
import { resolve } from "node:path";

import { drain, listen, serve, whenIdle } from "../../src/activation/index.ts";
import { replace } from "../../src/activation/linux/libc.ts";
import { descriptors, nothingLeft, onServe, refusal, thrown } from "../support/checks.ts";
import { freePort } from "../support/daemon.ts";
import { CERTIFICATE, client, exchange, FAMILIES } from "../support/listening.ts";
import { freshPath, listening, text } from "../support/listening.ts";
import { served, upgrade } from "../support/kept.ts";
import { lacksIPv6 } from "../support/needs.ts";
import * as sockets from "../support/sockets.ts";
import { backlogOf, close, portOf } from "../support/sockets.ts";
import { cleansUp, started } from "../support/started.ts";
import { until } from "../support/until.ts";

// Some tests search through all numbers that a descriptor may have.
setDefaultTimeout(30_000);

const SRC = resolve(import.meta.dir, "../../src/activation");

cleansUp();

const LOOPBACK_ADDRESSES = lacksIPv6() ? ["127.0.0.1"] : ["127.0.0.1", "::1"];

const answer = (text: string) => ({ fetch: () => new Response(text) });

describe.each(FAMILIES)("serve on a listening socket over %s", (family) => {
  test("answers a client that was queued before and one that comes later, from a route and from fetch", async () => {
    using it = listening(family);
    const early = await client(it.to);
    early.write("GET /route/7 HTTP/1.1\r\nHost: example\r\nConnection: close\r\n\r\n");
    started(
      serve({
        fd: it.fd,
        routes: { "/route/:id": (request) => new Response(`route ${request.params.id}`) },
        fetch: (request) => new Response(request.url),
      }),
    );
    expect(await text(early)).toEndWith("\r\n\r\nroute 7");
    expect(await exchange(it.to, "/a?b")).toEndWith("\r\n\r\nhttp://example/a?b");
  });

  test("reports the address of the passed socket", () => {
    const { server, ...it } = served("", family);
    if ("port" in it.to) {
      const { host, port } = it.to;
      expect([server.hostname, server.port]).toEqual([host, port]);
      expect(server.url.href).toBe(
        `${new URL(`http://${family === "IPv6" ? `[${host}]` : host}:${port}`)}`,
      );
      expect(server).toHaveProperty("address", { address: host, family, port });
    } else {
      const { path } = it.to;
      const url = family === "Unix" ? `unix://${path}` : `abstract://${path.slice(1)}/`;
      expect([server.hostname, server.port]).toEqual([undefined, undefined]);
      expect(server.url.href).toBe(url);
      expect(server).toHaveProperty("address", path);
    }
  });

  test("has no other socket, and stop leaves the passed one with its passer", async () => {
    using it = listening(family);
    const open = descriptors();
    const server = serve({ fd: it.fd, ...answer("first") });
    // The same sockets, as often as before and none that listens beside: nothing else was opened.
    expect(descriptors()).toEqual(open);
    expect(sockets.isOpen(it.fd)).toBe(false);
    expect(await exchange(it.to)).toEndWith("first");
    await server.stop();
    // The passer still listens: a client is queued, and the next server has it.
    const queued = exchange(it.to);
    started(serve({ fd: sockets.duplicate(it.kept), ...answer("second") }));
    expect(await queued).toEndWith("second");
  });
});

/** A WebSocket to a server, open. */
async function webSocket(server: { readonly url: URL }): Promise<WebSocket> {
  const socket = new WebSocket(server.url);
  await once(socket, "open");
  return socket;
}

/** The data of the next message of a WebSocket. */
async function message(socket: WebSocket): Promise<unknown> {
  const [{ data }] = await once(socket, "message");
  return data;
}

test("serve upgrades to WebSockets: their handlers get Bun's arguments, also inherited ones", async () => {
  using it = listening("IPv6");
  const calls: unknown[] = [];
  const closed = Promise.withResolvers<void>();
  class Handlers {
    maxPayloadLength = 5;
    open(this: unknown, socket: Bun.ServerWebSocket<undefined>, ...others: unknown[]) {
      calls.push(["open", this, typeof socket.send, others]);
      socket.send("welcome");
    }
    message(socket: Bun.ServerWebSocket<undefined>, message: string | Buffer) {
      socket.send(`echo ${message}`);
    }
    close(this: unknown, _: Bun.ServerWebSocket<undefined>, ...others: unknown[]) {
      calls.push(["close", this, others]);
      closed.resolve();
    }
  }
  const server = started(serve({ fd: it.fd, websocket: new Handlers(), fetch: upgrade }));
  const socket = await webSocket(server);
  expect(await message(socket)).toBe("welcome");
  socket.send("hi");
  expect(await message(socket)).toBe("echo hi");
  socket.send("longer than five");
  // Bun's own limit, which is one of the options. Bun 1.4.0 says 1006.
  const [{ code }] = await once(socket, "close");
  expect(code).toBeOneOf([1009, 1006]);
  await closed.promise;
  expect(calls).toEqual([
    ["open", undefined, "function", []],
    ["close", undefined, [1006, expect.any(String)]],
  ]);

  calls.length = 0;
  const second = await webSocket(server);
  second.close(3001, "bye");
  await until("the second is closed", 10, () => calls.length === 2);
  expect(calls[1]).toEqual(["close", undefined, [3001, "bye"]]);
});

test.each(["serve", "reload"])(
  "a WebSocket of %s that has closed leaves nothing in memory",
  async (how) => {
    using it = listening("IPv4");
    const opened: WeakRef<object>[] = [];
    const options = {
      fetch: upgrade,
      websocket: { open: (socket: object) => void opened.push(new WeakRef(socket)), message() {} },
    };
    const none = { ...options, websocket: { message() {} } };
    const server = started(serve({ fd: it.fd, ...(how === "serve" ? options : none) }));
    if (how === "reload") expect(server.reload(options)).toBe(server);
    for (let n = 0; n < 20; n++) {
      const socket = await webSocket(server);
      socket.close();
      await once(socket, "close");
    }
    expect(opened.length).toBe(20);
    await until("they are collected", 10, () => {
      Bun.gc(true);
      // A few may be found on the stack.
      return opened.filter((socket) => socket.deref() !== undefined).length < 4;
    });
  },
);

test("serve answers a request under way after stop()", async () => {
  using it = listening("IPv4");
  const release = Promise.withResolvers<void>();
  const arrived = Promise.withResolvers<void>();
  const server = serve({
    fd: it.fd,
    fetch: async () => {
      arrived.resolve();
      await release.promise;
      return new Response("drained");
    },
  });
  const answered = exchange(it.to);
  await arrived.promise;
  const stopped = server.stop();
  expect(server.pendingRequests).toBe(1);
  release.resolve();
  expect(await answered).toEndWith("drained");
  await stopped;
});

test("serve serves over TLS", async () => {
  using it = listening("IPv6");
  const server = started(serve({ fd: it.fd, ...answer("safe"), tls: CERTIFICATE }));
  expect(server.url.protocol).toBe("https:");
  const response = await fetch(server.url, { tls: { rejectUnauthorized: false } });
  expect(await response.text()).toBe("safe");
});

test("serve makes a socket that blocks non-blocking, and no child inherits it", () => {
  const before = descriptors();
  const fd = sockets.listening(sockets.AF_INET, 1);
  const kept = sockets.duplicate(fd);
  sockets.clearCloseOnExec(fd);
  expect(sockets.isNonBlocking(kept)).toBe(false);
  started(serve({ fd, ...answer("") }));
  expect(sockets.isNonBlocking(kept)).toBe(true);
  close(kept);
  // The tests may have some of their own, such as a stdout that is a socket.
  const inherited = [...descriptors().keys()].filter((name) => name.endsWith("inherit"));
  expect(inherited.filter((name) => !before.has(name))).toEqual([]);
});

test.each([1, 37, 511, 4096])("serve keeps a backlog of %i", (backlog) => {
  using it = listening("IPv4", backlog);
  started(serve({ fd: it.fd, ...answer("") }));
  expect(backlogOf(it.kept)).toBe(backlog);
});

test("requestIP is the client over IP, and null over AF_UNIX or where only AF_UNIX is allowed", async () => {
  const options = {
    fetch: (request: Request, server: Bun.Server<undefined>) =>
      Response.json(server.requestIP(request)?.address ?? null),
  };
  const ip = served(options, "IPv6");
  expect(await exchange(ip.to)).toEndWith(`"${sockets.LOOPBACK6}"`);
  const unix = served(options, "Unix");
  expect(await exchange(unix.to)).toEndWith("null");

  for (const code of ["EAFNOSUPPORT", "EPERM", "EACCES", "EADDRINUSE"]) {
    using _ = onServe(({ unix }) => {
      if (unix === undefined) throw Object.assign(new Error(), { code });
    });
    const { server, ...ipv4 } = served(options);
    expect(server.port).toBe(portOf(ipv4.kept));
    expect(await exchange(ipv4.to)).toEndWith("null");
  }
});

test("where no socket is allowed, serve says what to allow, and leaves the descriptor alone", () => {
  using it = listening("Unix");
  using _ = onServe(() => {
    throw Object.assign(new Error("listen '\0bun-serve-"), { code: "EAFNOSUPPORT" });
  });
  expect(thrown(() => serve({ fd: it.fd, ...answer("") }))).toMatchObject({
    status: 71,
    code: "EAFNOSUPPORT",
    message: "Bun cannot make a socket: allow AF_UNIX (RestrictAddressFamilies=)",
  });
  // It is as open as before.
  close(it.fd);
});

/** The machine's own name and address, where it has them: Debian has 127.0.1.1, many a container none. */
async function ownName(): Promise<{ name: string; address: string }> {
  const found = await lookup(hostname(), 4).catch(() => undefined);
  const addresses = Object.values(networkInterfaces()).flatMap((all) => all ?? []);
  const isOurs = addresses.some(({ address }) => address === found?.address);
  if (found === undefined || !(isOurs || found.address.startsWith("127.")))
    return { name: "127.0.0.1", address: "127.0.0.1" };
  return { name: hostname(), address: found.address };
}

test("a development server answers to its own name, to localhost and to addresses, as Bun's does", async () => {
  const page = freshPath();
  await Bun.write(`${page}.html`, "<!doctype html><title>page</title>");
  const { default: html } = await import(`${page}.html`);
  const own = await ownName();
  const statuses = async ({ port }: { readonly port?: number | undefined }, at = "127.0.0.1") => {
    const names = [own.name, "localhost", "127.0.0.1", "127.0.0.9", "elsewhere.example"];
    const ask = async (name: string) => {
      const headers = { Host: `${name}:${port}`, Connection: "close" };
      return (await fetch(`http://${at}:${port}/`, { headers })).status;
    };
    return await Promise.all(names.map(ask));
  };
  for (const routes of [{ "/": html }, { "/": { GET: html } }]) {
    const options = { development: true, routes, hostname: own.name };
    const bun = await statuses(started(Bun.serve({ ...options, port: 0 })), own.address);
    expect(bun).toEqual([200, 200, 200, 200, 403]);
    using it = listening("IPv4");
    const ours = started(serve({ ...options, fd: it.fd }));
    expect(await statuses(ours)).toEqual(bun);
    expect(Reflect.get(ours, "address")).toMatchObject({ port: portOf(it.kept) });
    // A name that is not one of this machine is ignored, as without pages.
    using other = listening("IPv4");
    const foreign = started(serve({ ...options, fd: other.fd, hostname: "elsewhere.invalid" }));
    const first = own.name === "127.0.0.1" ? 200 : 403;
    expect(await statuses(foreign)).toEqual([first, 200, 200, 200, 403]);
  }
  rmSync(`${page}.html`);
});

test("serve looks up an address over IP once, and none for a Unix socket", async () => {
  for (const [family, asked] of [
    ["Unix", 0],
    ["IPv6", 1],
  ] as const) {
    using it = listening(family);
    let failed = 0;
    using _ = onServe(({ unix }) => {
      if (unix !== undefined) return;
      failed++;
      throw Object.assign(new Error(), { code: "EADDRINUSE" });
    });
    started(serve({ fd: it.fd, ...answer("all the same") }));
    expect(await exchange(it.to)).toEndWith("all the same");
    expect(failed).toBe(asked);
  }
});

test("serve finds its descriptors where the first three are free", async () => {
  using it = listening("IPv4");
  const program = `
    import { closeSync } from "node:fs";
    import { serve } from "${SRC}/adopt/serve.ts";
    import { close } from "${SRC}/linux/libc.ts";
    for (const fd of [0, 1]) close(fd);
    serve({ fd: 3, fetch: () => new Response("low") });`;
  const child = Bun.spawn([process.execPath, "-e", program], {
    stdio: ["pipe", "pipe", "inherit", it.fd],
  });
  expect(await exchange(it.to)).toEndWith("low");
  child.kill();
  await child.exited;
  close(it.fd);
});

test("serve works while another thread opens and closes descriptors", async () => {
  const source = `
    const { closeSync, openSync } = require("node:fs");
    postMessage("begun");
    for (;;) for (const fd of Array.from({ length: 20 }, () => openSync("/dev/null", "r"))) closeSync(fd);`;
  const worker = new Worker(URL.createObjectURL(new Blob([source])), { smol: true });
  const begun = Promise.withResolvers<void>();
  worker.onmessage = () => begun.resolve();
  await begun.promise;
  for (let i = 0; i < 300; i++) {
    using it = listening("abstract Unix");
    await serve({ fd: it.fd, fetch: () => new Response() }).stop();
  }
  worker.terminate();
});

test.each([
  ["hostname", () => ({ hostname: "192.0.2.1" })],
  ["port", () => ({ port: 1 })],
  ["hostname and port", () => ({ hostname: "192.0.2.1", port: 1 })],
  ["unix", () => ({ unix: "/nonexistent/socket" })],
] as const)("serve ignores %s beside a descriptor", async (_, address) => {
  for (const family of ["IPv6", "Unix"] as const) {
    using it = listening(family);
    const server = started(serve({ ...address(), fd: it.fd, ...answer("passed") }));
    expect(await exchange(it.to)).toEndWith("passed");
    expect(server.port).toBe("port" in it.to ? it.to.port : undefined);
  }
});

test("serve leaves the id that the program gives its server, and gives none itself", async () => {
  for (const id of [undefined, "mine"]) {
    using it = listening("IPv4");
    const server = started(serve({ fd: it.fd, ...(id && { id }), ...answer("") }));
    const bun = started(
      Bun.serve({ port: 0, hostname: "127.0.0.1", ...(id && { id }), ...answer("") }),
    );
    expect(server.id.replace(/\d+$/, "PORT")).toBe(bun.id.replace(/\d+$/, "PORT"));
  }
});

test("a second server on the same descriptor number leaves the first one alone", async () => {
  using it = listening("IPv4");
  using other = listening("IPv6");
  using third = listening("Unix");
  started(serve({ fd: it.fd, ...answer("first") }));
  // As the kernel hands out numbers: the first server closed it.
  replace(other.fd, it.fd);
  started(serve({ fd: it.fd, ...answer("second") }));
  replace(third.fd, it.fd);
  const greeter = listen({
    fd: it.fd,
    socket: { open: (socket) => void socket.end("third"), data() {} },
  });
  [other.fd, third.fd].forEach(close);
  expect(await exchange(it.to)).toEndWith("first");
  expect(await exchange(other.to)).toEndWith("second");
  expect(await text(await client(third.to))).toBe("third");
  greeter.stop();
});

test("serve is Bun.serve if no socket was passed, with its own default address", async () => {
  for (const hostname of [undefined, ...LOOPBACK_ADDRESSES]) {
    const at = { fd: undefined, port: 0, ...(hostname && { hostname }) };
    const server = started(serve({ ...at, ...answer("mine") }));
    expect(server.hostname).toBe(hostname ?? "localhost");
    expect(await (await fetch(server.url)).text()).toBe("mine");
  }
  const path = `\0${crypto.randomUUID()}`;
  started(serve({ unix: path, ...answer("mine") }));
  expect(await exchange({ path })).toEndWith("mine");
});

test("the URL of a path or a name has every character of it that means something in a URL", () => {
  const path = `${freshPath()} ?#%@ü`;
  const server = started(serve({ fd: sockets.listening(sockets.AF_UNIX, 1, path), ...answer("") }));
  expect(decodeURIComponent(server.url.pathname)).toBe(path);
  expect(server.url.search + server.url.hash).toBe("");
  rmSync(path);
});

test("the URL of an abstract name, too", () => {
  const name = `${crypto.randomUUID()} /?#%@ü`;
  const fd = sockets.listening(sockets.AF_UNIX, 1, `@${name}`);
  const server = started(serve({ fd, ...answer("") }));
  expect(decodeURIComponent(server.url.host)).toBe(name);
  expect(server.url.pathname + server.url.search + server.url.hash).toBe("/");
  expect(server).toHaveProperty("address", `\0${name}`);
});

test("the URL of an address of one link has no interface in it", () => {
  const fd = sockets.listening(sockets.AF_INET6, 1, "link");
  const port = portOf(fd);
  const server = started(serve({ fd, ...answer("") }));
  expect([server.url.href, server.hostname]).toEqual([`http://[fe80::1]:${port}/`, "fe80::1%1"]);
});

test("a listener has the interface in its address of one link", () => {
  const fd = sockets.listening(sockets.AF_INET6, 1, "link");
  const port = portOf(fd);
  expect(started(listen({ fd, socket: { data() {} } }))).toMatchObject({
    hostname: "fe80::1%1",
    port,
  });
});

test.each(["as it is", "watched by whenIdle", "that drains"])(
  "a reload without routes keeps those that Bun keeps, in a server %s",
  async (state) => {
    const options = () => ({
      routes: {
        "/fixed": new Response("a fixed route"),
        "/function": () => new Response("a function"),
        "/methods": { GET: new Response("a fixed method"), POST: () => new Response("a function") },
      },
      static: { "/static": new Response("a static route") },
      ...answer("one"),
    });
    const replies = async (server: Bun.Server<undefined>) => {
      const { url } = server.reload(answer("two"));
      const ask = async (path: string, method = "GET") =>
        (await fetch(new URL(path, url), { method, keepalive: false })).text();
      const paths = ["fixed", "function", "methods", "static", "other"];
      return await Promise.all([...paths.map((path) => ask(path)), ask("methods", "POST")]);
    };
    using it = listening("IPv4");
    const server = started(serve({ fd: it.fd, ...options() }));
    if (state === "watched by whenIdle") void whenIdle(server, { timeout: 60_000 });
    if (state === "that drains") void drain(server, { grace: 60_000, timeout: 120_000 });
    expect(await replies(server)).toEqual(
      await replies(started(Bun.serve({ hostname: "127.0.0.1", port: 0, ...options() }))),
    );
  },
);

test("serve reports a relative path that looks like an address", () => {
  // The checkout may be read-only.
  const before = process.cwd();
  process.chdir(tmpdir());
  const path = `a:b?@-${crypto.randomUUID()}`;
  const fd = sockets.listening(sockets.AF_UNIX, 1, path);
  rmSync(path);
  process.chdir(before);
  const server = started(serve({ fd, fetch: () => new Response() }));
  expect(decodeURIComponent(server.url.host)).toBe(path);
  expect(server).toHaveProperty("address", path);
});

test("options may have getters with private fields", async () => {
  using it = listening("IPv4");
  class Options {
    readonly #text = "private";
    constructor(readonly fd: number) {}
    get fetch() {
      const text = this.#text;
      return () => new Response(text);
    }
  }
  started(serve(new Options(it.fd)));
  expect(await exchange(it.to)).toEndWith("private");
});

test("serve starts Bun.serve on the loopback, whatever hostname it is given", () => {
  using it = listening("IPv4");
  using start = spyOn(Bun, "serve");
  started(serve({ fd: it.fd, hostname: "0.0.0.0", ...answer("") }));
  const places = start.mock.calls.map(([{ hostname, port }]) => ({ hostname, port }));
  expect(places).toEqual([{ hostname: "127.0.0.1", port: 0 }]);
});

test("server.fetch of a path has the address of the passed socket", async () => {
  using it = listening("IPv4");
  const server = started(serve({ fd: it.fd, fetch: ({ url }) => new Response(url) }));
  expect(await (await server.fetch("/a")).text()).toBe(`${server.url}a`);
  expect(await (await server.fetch("http://example/b")).text()).toBe("http://example/b");
  const request = new Request("http://example/c");
  expect(await (await server.fetch(request)).text()).toBe("http://example/c");
  // Over an abstract name, it is that of Bun.
  using named = listening("abstract Unix");
  const fetch = ({ url }: Request) => new Response(url);
  const own = started(Bun.serve({ unix: `\0${crypto.randomUUID()}`, fetch }));
  const passed = started(serve({ fd: named.fd, fetch }));
  expect(await (await passed.fetch("/a")).text()).toBe(await (await own.fetch("/a")).text());
});

test.each(["open", "close"])(
  "Bun says the error of a WebSocket's %s that is no function",
  (name) => {
    using it = listening("IPv4");
    const websocket = JSON.parse(`{ "${name}": 5 }`);
    const options = { fetch: () => undefined, websocket: { ...websocket, message() {} } };
    const bun = refusal(() => Bun.serve({ port: 0, ...options }));
    expect(bun).toContain(name);
    expect(refusal(() => serve({ fd: it.fd, ...options }))).toBe(bun);
    sockets.close(it.fd);
  },
);

test("serve refuses HTTP/3, and sockets of other families", () => {
  using it = listening("IPv4");
  const options = { fd: it.fd, tls: CERTIFICATE, fetch: () => new Response() };
  expect(thrown(() => serve({ ...options, http3: true }))).toEqual(
    TypeError("serve cannot use HTTP/3 on a passed socket: leave http3 out"),
  );
  close(it.fd);
  // AF_VSOCK listens as others do; AF_XDP has no getsockname(2).
  for (const [family, type] of [
    [40, sockets.SOCK_STREAM],
    [44, 3],
  ] as const) {
    let fd: number;
    try {
      fd = sockets.socket(family, type);
    } catch {
      // This kernel has no such family.
      continue;
    }
    expect(refusal(() => serve({ fd, fetch: () => new Response() }))).toMatch(
      RegExp(`^78: .*socket \\(family ${family}\\), not a listening stream socket over IP`),
    );
    close(fd);
  }
});

/** Returns all properties of a server that a program sees, with its port as a word. */
function seen(it: object, port?: number) {
  const values = [];
  for (const name in it) {
    const value: unknown = Reflect.get(it, name);
    if (typeof value === "function") values.push([name, "function"]);
    else {
      const error = refusal(() => Object.assign(it, { [name]: value }));
      values.push([name, Bun.inspect(value), error]);
    }
  }
  const names = Object.getOwnPropertyNames(it);
  const shown = { names, text: String(it), json: JSON.stringify(it) };
  const text = JSON.stringify({ ...shown, spread: { ...it }, values: values.sort() });
  return JSON.parse(port === undefined ? text : text.replaceAll(String(port), "PORT"));
}

/** A listening socket on an address, as Bun makes it. */
function listeningOn(hostname: string): number {
  const listener = Bun.listen({ hostname, port: 0, socket: { data() {} } });
  const fd = sockets.duplicate(Number(Reflect.get(listener, "fd")));
  listener.stop();
  return fd;
}

test.each([undefined, ...LOOPBACK_ADDRESSES])(
  "a server on %s is seen as one of Bun's own",
  async (hostname) => {
    const options = { fetch: () => new Response("seen") };
    // Without a hostname Bun listens on all addresses.
    // With port 0, Bun's own would report 0 after the end.
    const bun = started(Bun.serve({ ...options, ...(hostname && { hostname }), port: freePort() }));
    const ours = started(serve({ ...options, fd: listeningOn(hostname ?? "::") }));
    const [port, other] = [ours.port, bun.port];
    expect(seen(ours, port)).toEqual(seen(bun, other));
    expect(ours.url.hostname).toBe(bun.url.hostname);
    expect(await (await fetch(ours.url)).text()).toBe("seen");
    for (const server of [bun, ours]) await server.stop();
    expect(seen(ours, port)).toEqual(seen(bun, other));
  },
);

test("a server on all addresses of IPv4 alone is seen as on localhost", () => {
  const ours = started(serve({ fd: listeningOn("0.0.0.0"), fetch: () => new Response() }));
  expect([ours.hostname, ours.url.hostname]).toEqual(["localhost", "localhost"]);
  expect(ours).toHaveProperty("address.address", "0.0.0.0");
});

test("a server on a path is seen as one of Bun's own", async () => {
  const [path, other] = [freshPath(), freshPath()];
  const options = { fetch: () => new Response("seen") };
  const bun = started(Bun.serve({ ...options, unix: path }));
  const ours = started(serve({ ...options, fd: sockets.listening(sockets.AF_UNIX, 1, other) }));
  const named = JSON.parse(JSON.stringify(seen(ours)).replaceAll(other, path));
  expect(named).toEqual(seen(bun));
  for (const file of [path, other]) rmSync(file, { force: true });
});

test("options may be inherited, as with Bun.serve", async () => {
  class Application {
    port = 0;
    get fetch() {
      return () => new Response("inherited");
    }
  }
  const own = started(serve(new Application()));
  expect(await (await fetch(own.url)).text()).toBe("inherited");
  using it = listening("IPv4");
  started(serve(Object.assign(new Application(), { fd: it.fd })));
  expect(await exchange(it.to)).toEndWith("inherited");
});

describe("serve leaves the descriptor as it was", () => {
  test("that is no listening stream socket", () => {
    const [fd, other] = sockets.socketPair();
    expect(refusal(() => serve({ fd, ...answer("") }))).toMatch(
      /^78: descriptor \d+ is a connected stream socket \(Unix\), not a listening .*: set /,
    );
    expect(refusal(() => serve({ fd: 987_654, ...answer("") }))).toMatch(
      /^78: .*987654 is not open/,
    );
    [fd, other].forEach(close);
  });

  test.each(FAMILIES)("if Bun.serve refuses the options, over %s", async (family) => {
    using it = listening(family);
    sockets.setBlocking(it.fd);
    const open = descriptors();
    const tls = { key: "no key", cert: "no certificate" };
    {
      using native = spyOn(Bun, "serve");
      expect(thrown(() => serve({ fd: it.fd, ...answer(""), tls }))).toBeInstanceOf(Error);
      // It is no reason to try another address.
      expect(native).toHaveBeenCalledTimes(1);
    }
    expect(descriptors()).toEqual(open);
    expect(sockets.isNonBlocking(it.fd)).toBe(false);
    started(serve({ fd: it.fd, ...answer("still") }));
    expect(await exchange(it.to)).toEndWith("still");
  });

  test.each([
    ["does not listen where it says", "does not listen on 127\\.0\\.0\\.1:1", () => 1],
    ["does not watch where it listens", "does not watch descriptor \\d+ with epoll", portOf],
  ] as const)("if this Bun %s, and ends the server", async (_, message, port) => {
    using it = listening("IPv4");
    using other = listening("IPv4");
    const open = descriptors();
    const native = Bun.serve;
    let server: Bun.Server<undefined> | undefined;
    {
      using mocked = spyOn(Bun, "serve");
      mocked.mockImplementation(((options: Bun.Serve.Options<undefined>) => {
        server = native(options);
        const address = { address: "127.0.0.1", family: "IPv4", port: port(other.fd) };
        return Object.defineProperty(server, "address", { value: address });
      }) as typeof Bun.serve);
      expect(refusal(() => serve({ fd: it.fd, ...answer("") }))).toMatch(
        RegExp(
          `^71: Bun \\S+ ${message} as expected: use a Bun version with which this module was tested$`,
        ),
      );
    }
    expect(server).toBeDefined();
    await nothingLeft(open);
    started(serve({ fd: it.fd, ...answer("still") }));
    expect(await exchange(it.to)).toEndWith("still");
    close(other.fd);
  });
});
