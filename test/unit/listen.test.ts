import { describe, expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { connect } from "node:tls";

import { describe as describeFd } from "../../src/activation/receive/describe.ts";
import * as libc from "../../src/activation/linux/libc.ts";
import { listen } from "../../src/activation/index.ts";
import { descriptors, nothingLeft, refusal, thrown } from "../support/checks.ts";
import { execute } from "../support/daemon.ts";
import { CERTIFICATE, client, FAMILIES, listening, text } from "../support/listening.ts";
import * as sockets from "../support/sockets.ts";
import { AF_INET, backlogOf, close, SOCK_STREAM } from "../support/sockets.ts";
import { cleansUp, started } from "../support/started.ts";
import { EMULATED } from "../support/until.ts";

// Some tests search through all numbers that a descriptor may have.
setDefaultTimeout(30_000);

cleansUp();

const greet = (greeting: string) => ({
  socket: { open: (socket: Bun.Socket<undefined>) => void socket.end(greeting), data() {} },
});

test.each(FAMILIES)("listen accepts over %s, and stop leaves the socket open", async (family) => {
  using it = listening(family);
  const early = await client(it.to);
  const open = descriptors();
  const listener = listen({ fd: it.fd, ...greet("first") });
  // On the same number, and nothing else.
  expect(descriptors()).toEqual(open);
  expect(await text(early)).toBe("first");
  expect(await text(await client(it.to))).toBe("first");
  listener.stop();
  expect(sockets.isOpen(it.fd)).toBe(false);
  const queued = await client(it.to);
  started(listen({ fd: sockets.duplicate(it.kept), ...greet("second") }));
  expect(await text(queued)).toBe("second");
});

test("listen accepts on descriptor 3, as systemd passes it", async () => {
  using it = listening("IPv4");
  const script = `
    import { listen, passedFd } from "./src/activation/index.ts";
    const open = (socket) => void socket.end("passed");
    listen({ fd: passedFd(), socket: { open, data() {} } });`;
  await using _ = execute(process.execPath, [it.fd], {}, ["-e", script]);
  close(it.fd);
  expect(await text(await client(it.to))).toBe("passed");
});

test("listen accepts over TLS", async () => {
  using it = listening("IPv4");
  started(listen({ fd: it.fd, ...greet("over TLS"), tls: CERTIFICATE }));
  const socket = connect({ ...it.to, rejectUnauthorized: false });
  expect(await text(socket)).toBe("over TLS");
});

test("listen makes a socket that blocks non-blocking: Bun accepts until it would block", () => {
  const fd = sockets.listening(AF_INET, 1);
  expect(sockets.isNonBlocking(fd)).toBe(false);
  started(listen({ fd, ...greet("") }));
  expect(sockets.isNonBlocking(fd)).toBe(true);
});

// qemu-user returns four bytes of TCP_INFO.
test.skipIf(EMULATED).each([1, 37, 511, 4096])("listen keeps a backlog of %i", (backlog) => {
  using it = listening("IPv4", backlog);
  started(listen({ fd: it.fd, ...greet("") }));
  expect(backlogOf(it.kept)).toBe(backlog);
});

test("listen is Bun.listen if no socket was passed", async () => {
  const address = { hostname: "127.0.0.1", port: 0 };
  const { port } = started(listen({ fd: undefined, ...address, ...greet("mine") }));
  expect(await text(await client({ port: Number(port), host: "127.0.0.1" }))).toBe("mine");
  const path = `\0${crypto.randomUUID()}`;
  started(listen({ unix: path, ...greet("mine") }));
  expect(await text(await client({ path }))).toBe("mine");
});

test.each([
  ["hostname and port", () => ({ hostname: "192.0.2.1", port: 1 })],
  ["unix", () => ({ unix: "/nonexistent/socket" })],
] as const)("listen ignores %s beside a descriptor", async (_, address) => {
  for (const family of ["IPv6", "Unix"] as const)
    for (const limit of [{}, { maxConnections: 5 }]) {
      using it = listening(family);
      const listener = started(listen({ ...address(), ...limit, fd: it.fd, ...greet("passed") }));
      expect(await text(await client(it.to))).toBe("passed");
      const { host, port, path } = { host: undefined, port: undefined, path: undefined, ...it.to };
      expect(listener).toMatchObject({
        hostname: host,
        port,
        unix: path,
      });
    }
});

test("options may be inherited, as with Bun.listen", async () => {
  class Application {
    hostname = "127.0.0.1";
    port = 0;
    get socket() {
      return greet("inherited").socket;
    }
  }
  const own = started(listen(new Application()));
  const to = { host: "127.0.0.1", port: Number(Reflect.get(own, "port")) };
  expect(await text(await client(to))).toBe("inherited");
  using it = listening("IPv4");
  started(listen(Object.assign(new Application(), { fd: it.fd })));
  expect(await text(await client(it.to))).toBe("inherited");
});

test("a listener reports its address as one of Bun.listen does", () => {
  using tcp = listening("IPv4");
  const ours = started(listen({ fd: tcp.fd, ...greet("") }));
  const bun = started(Bun.listen({ hostname: "127.0.0.1", port: 0, ...greet("") }));
  expect(ours).toMatchObject({
    hostname: "127.0.0.1",
    port: sockets.portOf(tcp.kept),
    unix: undefined,
  });
  expect(Object.getOwnPropertyNames(ours)).toEqual(Object.getOwnPropertyNames(bun));
  expect(bun).toHaveProperty("unix", undefined);
  // Nobody changes them.
  for (const listener of [ours, bun])
    for (const name of ["hostname", "port", "unix"])
      expect(thrown(() => Object.assign(listener, { [name]: "changed" }))).toBeInstanceOf(
        TypeError,
      );
  for (const family of ["Unix", "abstract Unix"] as const) {
    using unix = listening(family);
    const { unix: path } = started(listen({ fd: unix.fd, ...greet("") }));
    expect(unix.to).toMatchObject({ path });
  }
});

test("listen ignores an address beside a descriptor, also a wrong one", async () => {
  using it = listening("IPv4");
  const { socket } = greet("passed");
  const wrong = { hostname: "192.0.2.1", port: Number.NaN, ...JSON.parse(`{ "unix": 5 }`) };
  started(listen({ fd: it.fd, ...wrong, socket }));
  expect(await text(await client(it.to))).toBe("passed");
});

test.each(["listen", "serve"])("unref on the result of %s lets the program end", async (name) => {
  using it = listening("IPv4");
  const script = `
    import { ${name} } from "./src/activation/index.ts";
    const options = { listen: { socket: { data() {} } }, serve: { fetch: () => new Response() } };
    ${name}({ fd: 3, ...options["${name}"] }).unref();`;
  await using child = execute(process.execPath, [it.fd], {}, ["-e", script]);
  close(it.fd);
  expect([await child.status(), child.stderr]).toEqual([0, ""]);
});

describe("listen leaves the descriptor as it was", () => {
  test("that is no listening stream socket", () => {
    const socket = sockets.bound(AF_INET, SOCK_STREAM);
    const [reads, writes] = sockets.pipe();
    const name = `@${crypto.randomUUID()}`;
    const packets = sockets.listening(sockets.AF_UNIX, 1, name, sockets.SOCK_SEQPACKET);
    for (const [fd, what] of [
      [packets, "a listening seqpacket socket \\(Unix\\)"],
      [socket, "an unconnected stream socket \\(IPv4\\)"],
      [reads, "a fifo"],
    ] as const) {
      expect(refusal(() => listen({ fd, ...greet("") }))).toMatch(
        RegExp(
          `^78: descriptor ${fd} is ${what}, not a listening stream socket over IP or AF_UNIX: set `,
        ),
      );
      expect(sockets.isNonBlocking(fd)).toBe(false);
    }
    expect(refusal(() => listen({ fd: 987_654, ...greet("") }))).toMatch(
      /^78: .*987654 is not open/,
    );
    [socket, reads, writes, packets].forEach(close);
  });

  // qemu-user returns four bytes of TCP_INFO.
  test.skipIf(EMULATED)("if Bun.listen refuses the options", async () => {
    using it = listening("IPv4");
    sockets.setBlocking(it.fd);
    const open = descriptors();
    const tls = { key: "no key", cert: "no certificate" };
    expect(thrown(() => listen({ fd: it.fd, ...greet(""), tls }))).toBeInstanceOf(Error);
    await nothingLeft(open);
    expect(describeFd(it.fd)).toMatchObject({ listening: true, family: "IPv4" });
    expect(backlogOf(it.fd)).toBe(37);
    expect(sockets.isNonBlocking(it.fd)).toBe(false);
    started(listen({ fd: it.fd, ...greet("still") }));
    expect(await text(await client(it.to))).toBe("still");
  });

  // qemu-user returns four bytes of TCP_INFO.
  test.skipIf(EMULATED)("if this Bun listens elsewhere, and ends that", async () => {
    using it = listening("IPv4");
    const open = descriptors();
    const elsewhere = Bun.listen({ hostname: "127.0.0.1", port: 0, ...greet("") });
    const { port } = elsewhere;
    {
      using native = spyOn(Bun, "listen");
      native.mockImplementationOnce((() => elsewhere) as unknown as typeof Bun.listen);
      expect(refusal(() => listen({ fd: it.fd, ...greet("") }))).toMatch(
        /^71: .*does not watch desc/,
      );
    }
    expect(await client({ port, host: "127.0.0.1" }).catch(() => "refused")).toBe("refused");
    await nothingLeft(open);
    expect(backlogOf(it.fd)).toBe(37);
    started(listen({ fd: it.fd, ...greet("still") }));
    expect(await text(await client(it.to))).toBe("still");
  });
});

test("an error of maxConnections on an address of its own leaves nobody listening", async () => {
  const open = descriptors();
  using find = spyOn(libc, "readProc").mockImplementation(() => undefined);
  using native = spyOn(Bun, "listen");
  const options = { hostname: "127.0.0.1", port: 0, maxConnections: 5, ...greet("") };
  expect(refusal(() => listen(options))).toMatch(/^71: .*does not watch descriptor/);
  find.mockRestore();
  expect(native).toHaveBeenCalledTimes(1);
  await nothingLeft(open);
});

test("listen refuses a kernel that reports the event loop in another form", async () => {
  using it = listening("IPv4");
  {
    const { readProc } = libc;
    using kernel = spyOn(libc, "readProc");
    kernel.mockImplementation((path) => readProc(path)?.replaceAll(" data: ", " what: "));
    expect(refusal(() => listen({ fd: it.fd, ...greet("") }))).toMatch(
      /^71: .*does not watch descriptor/,
    );
  }
  started(listen({ fd: it.fd, ...greet("still") }));
  expect(await text(await client(it.to))).toBe("still");
});
