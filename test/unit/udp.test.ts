import { expect, test } from "bun:test";

import { describe } from "../../src/activation/describe.ts";
import { udpSocket } from "../../src/activation/udp.ts";
import { refusal } from "../support/checks.ts";
import { listening } from "../support/listening.ts";
import {
  AF_INET,
  AF_UNIX,
  bound,
  close,
  duplicate,
  portOf,
  SOCK_DGRAM,
} from "../support/sockets.ts";

const echo = {
  data: (socket: Bun.udp.Socket<"buffer">, data: Buffer, port: number, address: string) =>
    void socket.send(data, port, address),
};

/** What comes back from a port when it is sent something. */
async function ask(port: number): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>();
  const client = await Bun.udpSocket({
    connect: { hostname: "127.0.0.1", port },
    socket: { data: (_, data) => resolve(data.toString()) },
  });
  client.send("hello");
  const answer = await promise;
  client.close();
  return answer;
}

test("udpSocket receives on a passed socket, and leaves it with its passer", async () => {
  const fd = bound(AF_INET, SOCK_DGRAM);
  const kept = duplicate(fd);
  const socket = await udpSocket({ fd, port: 1, socket: echo });
  expect(socket.port).toBe(portOf(kept));
  expect(await ask(socket.port)).toBe("hello");
  socket.close();
  expect(describe(kept)).toMatchObject({ type: "datagram", family: "IPv4" });
  close(kept);
});

test("udpSocket is Bun.udpSocket if no socket was passed", async () => {
  const socket = await udpSocket({ fd: undefined, hostname: "127.0.0.1", port: 0, socket: echo });
  expect(await ask(socket.port)).toBe("hello");
  socket.close();
});

test("udpSocket refuses what is no datagram socket over IP, and leaves it open", async () => {
  using tcp = listening("IPv4");
  expect(await udpSocket({ fd: tcp.fd }).catch((error) => error)).toEqual(
    refusal(
      78,
      /^descriptor \d+ is a listening stream socket \(IPv4\), not a datagram socket over IP/,
    ),
  );
  close(tcp.fd);
  const unix = bound(AF_UNIX, SOCK_DGRAM, `@socket-service-${crypto.randomUUID()}`);
  expect(await udpSocket({ fd: unix }).catch((error) => error)).toEqual(
    refusal(78, /^descriptor \d+ is an unconnected datagram socket \(Unix\), not/),
  );
  close(unix);
});
