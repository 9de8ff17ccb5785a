import { expect, test } from "bun:test";

import { describe } from "../../src/activation/receive/describe.ts";
import { udpSocket } from "../../src/activation/adopt/udp.ts";
import { rejection } from "../support/checks.ts";
import { askDatagram } from "../support/daemon.ts";
import { listening } from "../support/listening.ts";
import { AF_INET, AF_INET6, LOOPBACK6, AF_UNIX, bound } from "../support/sockets.ts";
import { close, duplicate, isOpen, portOf, SOCK_DGRAM } from "../support/sockets.ts";

const echo = {
  data: (socket: Bun.udp.Socket<"buffer">, data: Buffer, port: number, address: string) =>
    void socket.send(data, port, address),
};

test.each([
  ["IPv4", AF_INET, "127.0.0.1"],
  ["IPv6", AF_INET6, LOOPBACK6],
] as const)(
  "udpSocket receives on a passed socket over %s, and leaves it with its passer",
  async (family, domain, hostname) => {
    const fd = bound(domain, SOCK_DGRAM);
    const kept = duplicate(fd);
    // The address is ignored: nobody has it here.
    const socket = await udpSocket({ fd, hostname: "192.0.2.1", port: 1, socket: echo });
    expect([socket.port, socket.hostname]).toEqual([portOf(kept), hostname]);
    expect(await askDatagram(socket.port, hostname)).toBe("hello");
    socket.close();
    expect(isOpen(fd)).toBe(false);
    expect(describe(kept)).toMatchObject({ type: "datagram", family });
    close(kept);
  },
);

test("udpSocket is Bun.udpSocket if no socket was passed", async () => {
  const socket = await udpSocket({ fd: undefined, hostname: "127.0.0.1", port: 0, socket: echo });
  expect(await askDatagram(socket.port)).toBe("hello");
  socket.close();
});

test("options may be inherited, as with Bun.udpSocket", async () => {
  class Options {
    hostname = "127.0.0.1";
    get socket() {
      return echo;
    }
  }
  const fd = bound(AF_INET, SOCK_DGRAM);
  for (const options of [new Options(), Object.assign(new Options(), { fd })]) {
    const socket = await udpSocket(options);
    expect(await askDatagram(socket.port)).toBe("hello");
    socket.close();
  }
});

test("udpSocket refuses a descriptor that is no datagram socket over IP, and leaves it open", async () => {
  using tcp = listening("IPv4");
  expect(await rejection(udpSocket({ fd: tcp.fd }))).toMatch(
    /^78: descriptor \d+ is a listening stream socket \(IPv4\), not a datagram socket over IP/,
  );
  close(tcp.fd);
  const unix = bound(AF_UNIX, SOCK_DGRAM, `@socket-service-${crypto.randomUUID()}`);
  expect(await rejection(udpSocket({ fd: unix }))).toMatch(
    /^78: descriptor \d+ is an unconnected datagram socket \(Unix\), not/,
  );
  close(unix);
});

test("udpSocket does not connect a passed socket, and ignores a wrong port", async () => {
  const fd = bound(AF_INET, SOCK_DGRAM);
  const connect = { hostname: "::1", port: 9 };
  expect(await rejection(udpSocket(Object.assign({ fd, connect }, { socket: echo })))).toBe(
    "TypeError: udpSocket cannot connect a passed socket, because systemd holds this socket too: leave connect out",
  );
  const socket = await udpSocket({ fd, hostname: "127.0.0.1", port: Number.NaN, socket: echo });
  expect(await askDatagram(socket.port)).toBe("hello");
  socket.close();
});

test("udpSocket leaves the descriptor as it was if Bun refuses the options", async () => {
  const fd = bound(AF_INET6, SOCK_DGRAM);
  const port = portOf(fd);
  const wrong = JSON.parse(`{ "data": 1 }`);
  expect(await udpSocket({ fd, socket: wrong }).catch((error) => error)).toBeInstanceOf(TypeError);
  expect(describe(fd)).toMatchObject({ type: "datagram", family: "IPv6", port });
  const socket = await udpSocket({ fd, socket: echo });
  expect(await askDatagram(port, LOOPBACK6)).toBe("hello");
  socket.close();
  expect(await rejection(udpSocket({ fd: 987_654 }))).toMatch(/^78: descriptor 987654 is not open/);
});
