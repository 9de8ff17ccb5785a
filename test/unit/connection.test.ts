import { describe, expect, test } from "bun:test";
import { once } from "node:events";
import { readlinkSync } from "node:fs";
import { connect } from "node:net";

import { adoptConnection } from "../../src/activation/index.ts";
import { rejection } from "../support/checks.ts";
import { execute } from "../support/daemon.ts";
import { cleansUp } from "../support/started.ts";
import * as sockets from "../support/sockets.ts";
import { AF_INET, AF_INET6, AF_UNIX, SOCK_DGRAM, SOCK_SEQPACKET } from "../support/sockets.ts";
import { EMULATED, until } from "../support/until.ts";

/** Adopts a descriptor with handlers that send at once. Returns the error, once the descriptor is closed. */
async function refused(fd: number): Promise<string> {
  sockets.clearCloseOnExec(fd);
  const open = (socket: Bun.Socket<undefined>) => void socket.write("must not arrive");
  const error = await rejection(adoptConnection(fd, { open, data() {} }));
  await until("the descriptor is closed", 3, () => !sockets.isOpen(fd));
  return error;
}

describe("adoptConnection", () => {
  cleansUp();

  test.each([
    ["IPv4", () => sockets.tcpPair()],
    ["IPv6", () => sockets.tcpPair(AF_INET6)],
    ["AF_UNIX", () => sockets.socketPair()],
  ] as const)("adopts a connection over %s, half-open", async (_, connection) => {
    const [client, fd] = connection();
    let received = "";
    const socket = await adoptConnection(fd, {
      open: (socket) => void socket.write("welcome, "),
      data: (_, data) => void (received += data.toString()),
      // Still open in this direction, for as long as it is wanted.
      end: (socket) => void setImmediate(() => socket.end(`you said ${received}`)),
    });
    expect(socket).toBeDefined();
    let answer = "";
    const answered = Promise.withResolvers<void>();
    const peer = await adoptConnection(client, {
      data: (_, data) => void (answer += data.toString()),
      close: () => answered.resolve(),
    });
    peer?.write("hello");
    peer?.shutdown();
    await answered.promise;
    expect(answer).toBe("welcome, you said hello");
    peer?.end();
  });

  test.each([
    ["opens no library for a connection: that takes a millisecond", {}, false],
    [
      "adopts one that its peer has reset, if no library can be opened",
      { BUN_JSC_useJIT: "0" },
      true,
    ],
  ])("%s", async (_, variables, isReset) => {
    const script = `
      import { acceptedFd, adoptConnection } from "./src/activation/index.ts";
      Bun.FFI.dlopen = () => { process.exitCode = 1; throw new Error("a library was opened"); };
      const open = (socket) => void socket.end("without");
      if (await adoptConnection(acceptedFd(), { open, data() {} })) console.error("adopted");
      if (${isReset}) process.exitCode = 0;`;
    const [client, fd] = sockets.tcpPair();
    if (isReset) sockets.reset(client);
    await using child = execute(process.execPath, [fd], variables, ["-e", script]);
    expect([await child.status(), child.stderr]).toEqual([0, "adopted\n"]);
    if (!isReset) expect(sockets.peek(client)).toBe("without");
    for (const it of isReset ? [fd] : [client, fd]) sockets.close(it);
  });

  test("leaves a FIFO, a file and a device as it is, whether or not children inherit it", async () => {
    const [reads, writes] = sockets.pipe();
    const files = [import.meta.path, "/dev/null"].map((path) => sockets.open(path, 0));
    for (const fd of [reads, writes, ...files]) {
      expect(await adoptConnection(fd, { data() {} })).toBeUndefined();
      sockets.clearCloseOnExec(fd);
      expect(await adoptConnection(fd, { data() {} })).toBeUndefined();
      expect([sockets.closesOnExec(fd), sockets.isNonBlocking(fd)]).toEqual([false, false]);
      sockets.close(fd);
    }
  });

  test("refuses a number that is not open, and an anonymous file, as Bun itself opens", async () => {
    const epoll = sockets.epoll();
    for (const [fd, is] of [
      [987_654, "not open"],
      // The number of the epoll instance with 2^32 more, which libc would cut off.
      ...[2 ** 32 + epoll, -1, 2 ** 53, 0.5, Number.NaN].map((fd) => [fd, "not open"] as const),
      [epoll, "not a socket, because no connection was passed"],
    ] as const)
      expect(await rejection(adoptConnection(fd, { data() {} }))).toMatch(
        RegExp(
          `^78: descriptor ${fd} is ${is}: set ListenStream= and Accept=yes in the socket unit$`,
        ),
      );
    sockets.close(epoll);
  });

  test("refuses standard input that was closed, where Bun opens /dev/null at its start", async () => {
    const opened = sockets.open("/dev/null", 0);
    using _ = sockets.asStdin(opened);
    // As it is passed: a device, which is left as it is.
    sockets.clearCloseOnExec(0);
    expect(await adoptConnection(0, { data() {} })).toBeUndefined();
    // As Bun opens it.
    sockets.setCloseOnExec(0);
    expect(await rejection(adoptConnection(0, { data() {} }))).toMatch(
      /^78: descriptor 0 is not open: set ListenStream= and Accept=yes in the socket unit$/,
    );
    sockets.close(opened);
  });

  test.each([AF_INET, AF_INET6])("refuses a datagram socket of family %i", async (family) => {
    const fd = sockets.bound(family, SOCK_DGRAM);
    expect(await rejection(adoptConnection(fd, { data() {} }))).toMatch(
      /^78: .*is a datagram socket, not a connecti/,
    );
    // Bun has closed it. A standard descriptor is not left free.
    expect(sockets.isOpen(fd)).toBe(false);
    const bound = sockets.bound(family, SOCK_DGRAM);
    using _ = sockets.asStdin(bound);
    expect(await rejection(adoptConnection(0, { data() {} }))).toMatch(
      /^78: descriptor 0 is a datagram/,
    );
    expect(readlinkSync("/proc/self/fd/0")).toBe("/dev/null");
    sockets.close(bound);
  });

  test.each([
    ["datagram", SOCK_DGRAM],
    ["seqpacket", SOCK_SEQPACKET],
  ])("refuses a connected %s socket over AF_UNIX, and sends nothing", async (name, type) => {
    const [one, other] = sockets.socketPair(type);
    const message = `^78: descriptor ${one} is a connected ${name} socket \\(Unix\\), not a connection: `;
    expect(await refused(one)).toMatch(
      RegExp(`${message}set ListenStream= and Accept=yes in the socket unit$`),
    );
    expect(sockets.peek(other)).toBe("");
    sockets.close(other);
  });

  test.each([AF_INET, AF_INET6, AF_UNIX])(
    "refuses a socket of family %i that listens, or has no peer",
    async (family) => {
      const path = family === AF_UNIX ? `@${crypto.randomUUID()}` : undefined;
      const fd = sockets.listening(family, 1, path);
      // One that has received segments.
      const client = sockets.connected(path ?? { family, port: sockets.portOf(fd) }) ?? -1;
      expect(await refused(fd)).toMatch(
        /^78: descriptor \d+ is a listening stream socket \(.*\), not a connection: set/,
      );
      sockets.close(client);
      expect(await refused(sockets.socket(family, sockets.SOCK_STREAM))).toMatch(
        /^78: descriptor \d+ is an unconnected stream socket /,
      );
    },
  );

  test.each([
    ["TCP", () => sockets.tcpPair()],
    ["AF_UNIX", () => sockets.socketPair()],
  ] as const)(
    "passes on the error of a handler, and closes the connection (%s)",
    async (_, pair) => {
      const [other, one] = pair();
      const open = () => {
        throw new Error("of the handler");
      };
      const error = await adoptConnection(one, { open, data() {} }).catch(
        (error: unknown) => error,
      );
      expect(error).toEqual(new Error("of the handler"));
      // The peer need not close its side for that.
      await until("the descriptor is closed", 3, () => !sockets.isOpen(one));
      sockets.close(other);
    },
  );

  test("resets a client over TCP if a handler throws, so that half a reply is not taken for one", async () => {
    const listener = sockets.listening(AF_INET, 1);
    const client = connect({ port: sockets.portOf(listener), host: "127.0.0.1" });
    const end = Promise.withResolvers<unknown>();
    client
      .on("end", () => end.resolve("an end of file"))
      .on("error", end.resolve)
      .resume();
    await once(client, "connect");
    const fd = sockets.accept(listener);
    const open = (socket: Bun.Socket<undefined>) => {
      socket.write("half");
      throw new Error("of the handler");
    };
    await adoptConnection(fd, { open, data() {} }).catch(() => {});
    expect(await end.promise).toMatchObject({ code: "ECONNRESET" });
    sockets.close(listener);
  });

  test("calls handlers as Bun.connect does: open before the promise resolves, inherited ones too", async () => {
    const [client, fd] = sockets.tcpPair(AF_INET6);
    const calls: unknown[] = [];
    class Handlers {
      open(this: unknown, socket: Bun.Socket<undefined>) {
        calls.push(["open", this === socket]);
      }
      data(this: unknown, socket: Bun.Socket<undefined>, data: Buffer) {
        calls.push(["data", this === socket, String(data)]);
        socket.end();
      }
      close(this: unknown, socket: Bun.Socket<undefined>) {
        calls.push(["close", this === socket]);
      }
    }
    await adoptConnection(fd, new Handlers());
    calls.push("resolved");
    const peer = await adoptConnection(client, { data() {} });
    peer?.end("hello");
    await until("it is closed", 3, () => calls.length === 4);
    expect(calls).toEqual([["open", true], "resolved", ["data", true, "hello"], ["close", true]]);
  });

  test.each([
    ["end", "TCP", () => sockets.tcpPair()],
    ["end", "AF_UNIX", () => sockets.socketPair()],
    ["terminate", "TCP", () => sockets.tcpPair()],
    ["terminate", "AF_UNIX", () => sockets.socketPair()],
  ] as const)(
    "adopts a connection that open ends with %s, and nothing sent (%s)",
    async (end, _, pair) => {
      const [client, fd] = pair();
      const calls: string[] = [];
      const open = (socket: Bun.Socket<undefined>) => {
        calls.push("open");
        socket[end]();
      };
      const close = () => void calls.push("close");
      expect(await adoptConnection(fd, { open, data() {}, close })).toBeDefined();
      expect([sockets.isOpen(fd), calls.toSorted()]).toEqual([false, ["close", "open"]]);
      sockets.close(client);
    },
  );

  test("has Bun say the error of a handler that is no function, or that returns one", async () => {
    const [client, fd] = sockets.socketPair();
    for (const name of ["open", "close"]) {
      const wrong = { data() {}, ...JSON.parse(`{ "${name}": 5 }`) };
      expect(await rejection(adoptConnection(fd, wrong))).toMatch(
        RegExp(`^TypeError .*"on${name}"`, "i"),
      );
      expect(sockets.isOpen(fd)).toBe(true);
    }
    const errors: string[] = [];
    const error = (_: unknown, problem: Error) => void errors.push(problem.message);
    const open: () => void = () => new Error("on purpose");
    await adoptConnection(fd, { open, data() {}, error });
    expect(errors).toEqual(["on purpose"]);
    sockets.close(client);
  });

  test("adopts a connection on standard input that open ends at once", async () => {
    const [client, fd] = sockets.socketPair();
    using _ = sockets.asStdin(fd);
    const open = (socket: Bun.Socket<undefined>) => void socket.terminate();
    expect(await adoptConnection(0, { open, data() {} })).toBeDefined();
    for (const it of [client, fd]) sockets.close(it);
  });

  test("does not call open for a socket that is no connection", async () => {
    const open = (socket: Bun.Socket<undefined>) => {
      socket.end();
      expect.unreachable();
    };
    for (const fd of [
      sockets.listening(AF_INET, 1),
      sockets.socket(AF_INET6, sockets.SOCK_STREAM),
      sockets.listening(AF_UNIX, 1, `@${crypto.randomUUID()}`),
    ])
      expect(await rejection(adoptConnection(fd, { open, data() {} }))).toMatch(
        /^78: descriptor \d+ is .*, not a connection: set/,
      );
  });

  // qemu-user returns four bytes of TCP_INFO, which tells a connection that was reset.
  test.skipIf(EMULATED)("adopts a connection that its peer has reset", async () => {
    const [client, fd] = sockets.tcpPair();
    sockets.reset(client);
    expect(await refused(fd)).toBe("no error");
  });

  test("calls close with the error of a connection that its peer resets", async () => {
    const [client, fd] = sockets.tcpPair();
    const closed = Promise.withResolvers<unknown>();
    await adoptConnection(fd, { data() {}, close: (_, error) => closed.resolve(error) });
    sockets.reset(client);
    expect(await closed.promise).toMatchObject({ code: "ECONNRESET" });
  });
});
