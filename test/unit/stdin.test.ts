/* passedFd and a socket that is standard input: StandardInput=socket with Accept=no, inetd's wait. */
import { describe, expect, test } from "bun:test";
import { openSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import "../support/checks.ts";
import { activate, askDatagram, freePort, scratch } from "../support/daemon.ts";
import { freshPath } from "../support/listening.ts";
import { lacks } from "../support/needs.ts";
import * as sockets from "../support/sockets.ts";
import { AF_INET, AF_INET6, AF_UNIX } from "../support/sockets.ts";
import { SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM } from "../support/sockets.ts";

const MODULE = JSON.stringify(join(import.meta.dir, "../../src/activation/index.ts"));
const TWICE = "print(passedFd(), passedFd());";

/** Returns the output of a program: its standard input is `fd`, and it is passed others from 3 on. */
async function printed(
  fd: number,
  source = TWICE,
  variables: Record<string, string> = {},
  more: readonly number[] = [],
): Promise<unknown> {
  const program = `
    import { acceptedFd, listenFds, passedFd, requireListenFds } from ${MODULE};
    const print = (...values) => console.log(JSON.stringify(values));
    const failed = (call) => { try { return call() } catch (error) { return error.message } };
    ${source}`;
  const become = '[ "$LISTEN_PID" = self ] && export LISTEN_PID=$$; exec "$@"';
  const child = Bun.spawn(["/bin/sh", "-c", become, "sh", process.execPath, "-e", program], {
    env: variables,
    stdio: [fd, "pipe", "pipe", ...more],
  });
  const output = await child.stdout.text();
  expect([await child.exited, await child.stderr.text()]).toEqual([0, ""]);
  return JSON.parse(output);
}

const PASSED: Record<string, (path: string) => number> = {
  "a listening socket over IPv4": () => sockets.listening(AF_INET, 5),
  "a listening socket over IPv6": () => sockets.listening(AF_INET6, 5),
  "a listening Unix socket": (path) => sockets.listening(AF_UNIX, 5, path),
  "a listening abstract Unix socket": (path) => sockets.listening(AF_UNIX, 5, `@${path}`),
  // No call adopts it: serve and listen say so.
  "a listening seqpacket socket": (path) => sockets.listening(AF_UNIX, 5, path, SOCK_SEQPACKET),
  "a bound datagram socket over IPv4": () => sockets.bound(AF_INET, SOCK_DGRAM),
  "a bound datagram socket over IPv6": () => sockets.bound(AF_INET6, SOCK_DGRAM),
  "a bound Unix datagram socket": (path) => sockets.bound(AF_UNIX, SOCK_DGRAM, path),
};

const NOT_PASSED: Record<string, (path: string) => number> = {
  "a file": () => openSync(import.meta.path, "r"),
  "/dev/null": () => openSync("/dev/null", "r"),
  "a terminal": () => openSync("/dev/ptmx", "r+"),
  "a pipe": () => sockets.pipe()[0],
  "the end of a stream socketpair": () => sockets.socketPair()[0],
  "the end of a datagram socketpair": () => sockets.socketPair(SOCK_DGRAM)[0],
  "a connection": () => sockets.tcpPair()[1],
  "a connection that has been reset": () => {
    const [client, accepted] = sockets.tcpPair(AF_INET6);
    sockets.reset(client);
    return accepted;
  },
  "a Unix connection": (path) => {
    const listening = sockets.listening(AF_UNIX, 5, path);
    sockets.connected(path);
    return sockets.accept(listening);
  },
  "a connected datagram socket": () => {
    const port = sockets.portOf(sockets.bound(AF_INET, SOCK_DGRAM));
    return sockets.connected({ family: AF_INET, port }, SOCK_DGRAM) ?? -1;
  },
  "a socket that neither listens nor is bound": () => sockets.socket(AF_INET, SOCK_DGRAM),
  "a bound stream socket that does not listen": () => sockets.bound(AF_INET, SOCK_STREAM),
};

describe("passedFd", () => {
  test.concurrent.each(Object.entries(PASSED))("returns 0 once if stdin is %s", async (_, make) => {
    const path = freshPath();
    const fd = make(path);
    expect(await printed(fd)).toEqual([0, null]);
    sockets.close(fd);
    rmSync(path, { force: true });
  });

  test.concurrent.each(Object.entries(NOT_PASSED))(
    "returns undefined if stdin is %s",
    async (_, make) => {
      const path = freshPath();
      const fd = make(path);
      expect(await printed(fd)).toEqual([null, null]);
      sockets.close(fd);
      rmSync(path, { force: true });
    },
  );

  test("returns the passed descriptor, and standard input neither then nor later", async () => {
    const [stdin, passed] = [sockets.listening(AF_INET, 5), sockets.listening(AF_INET, 5)];
    const variables = { LISTEN_PID: "self", LISTEN_FDS: "1" };
    expect(await printed(stdin, TWICE, variables, [passed])).toEqual([3, null]);
    const [, listed] = [stdin, "print(listenFds().length, passedFd());"];
    expect(await printed(stdin, listed, variables, [passed])).toEqual([1, null]);
  });

  test("returns standard input if the variables are for another process", async () => {
    const variables = { LISTEN_PID: "2147483647", LISTEN_FDS: "1" };
    expect(await printed(sockets.listening(AF_INET, 5), TWICE, variables)).toEqual([0, null]);
  });

  test("returns undefined without FFI, and in a Worker", async () => {
    const listening = sockets.listening(AF_INET, 5);
    expect(await printed(listening, TWICE, { BUN_JSC_useJIT: "0" })).toEqual([null, null]);
    const worker = `
      const source = 'import { passedFd } from ${MODULE}; postMessage(passedFd() ?? null);';
      const worker = new Worker(URL.createObjectURL(new Blob([source])));
      worker.onmessage = ({ data }) => { print(data, passedFd()); process.exit(); };`;
    expect(await printed(listening, worker)).toEqual([null, 0]);
  });
});

test("requireListenFds and acceptedFd say that the socket is standard input", async () => {
  const calls = "print(failed(requireListenFds), failed(acceptedFd));";
  const says = (needed: string) =>
    `no ${needed} was passed, because LISTEN_PID is not set: remove StandardInput=socket, which passes the ${needed} as standard input instead of descriptor 3`;
  for (const stdin of [sockets.listening(AF_INET, 5), sockets.tcpPair()[1]])
    expect(await printed(stdin, calls)).toEqual([says("socket"), says("connection")]);
  const by = (needed: string) =>
    expect.stringMatching(
      RegExp(`^no ${needed} was passed, because LISTEN_PID is not set: start the program from `),
    );
  for (const stdin of [sockets.socketPair()[0], openSync("/dev/null", "r")])
    expect(await printed(stdin, calls)).toEqual([by("socket"), by("connection")]);
});

describe.skipIf(lacks("systemd-socket-activate"))("under systemd-socket-activate --inetd", () => {
  test("listen serves on standard input, and under bun --hot the next client gets the new code", async () => {
    using directory = scratch();
    const path = join(directory.path, "program.ts");
    const source = (line: string) => `
      import { listen, passedFd } from ${MODULE};
      listen({ fd: passedFd(), hostname: "127.0.0.1", port: 1, socket: { open: (socket) => void socket.end("${line}"), data() {} } });
      console.error("evaluated ${line}");`;
    writeFileSync(path, source("one"));
    const options = { flags: ["--inetd"], args: ["--hot", path] };
    await using service = await activate(process.execPath, options);
    expect(await service.ask()).toBe("one");
    writeFileSync(path, source("two"));
    await service.says(/evaluated two/);
    expect(await service.ask()).toBe("two");
  });

  test("udpSocket answers on standard input", async () => {
    const program = `
      import { passedFd, udpSocket } from ${MODULE};
      await udpSocket({ fd: passedFd(), socket: { data: (socket, data, port, address) => void socket.send(data, port, address) } });`;
    const port = freePort(SOCK_DGRAM);
    const options = { flags: ["--inetd", "--datagram"], listen: [`127.0.0.1:${port}`] };
    await using _ = await activate(process.execPath, { ...options, args: ["-e", program] });
    expect(await askDatagram(port)).toBe("hello");
  });
});
