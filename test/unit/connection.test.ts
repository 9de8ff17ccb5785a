import { describe, expect, test } from "bun:test";

import { adoptConnection } from "../../src/activation/connection.ts";
import { closesOnExec } from "../../src/activation/libc.ts";
import * as sockets from "../support/sockets.ts";
import {
  AF_INET,
  AF_INET6,
  AF_UNIX,
  SOCK_DGRAM,
  SOCK_SEQPACKET,
  SOCK_STREAM,
} from "../support/sockets.ts";
import { eventually } from "../support/until.ts";
import { refusal } from "../support/listening.ts";

/** What adopting a descriptor throws, with handlers that send at once. */
async function refused(fd: number): Promise<unknown> {
  sockets.clearCloseOnExec(fd);
  const handlers = {
    open: (socket: Bun.Socket<undefined>) => void socket.write("must not arrive"),
    data() {},
  };
  const error = await adoptConnection(fd, handlers).catch((error: unknown) => error);
  // What was no connection is closed.
  if (error instanceof Error) await eventually(() => closesOnExec(fd) === undefined);
  return error;
}

describe("adoptConnection", () => {
  test.each([AF_INET, AF_INET6])("adopts a connection of family %i, half-open", async (family) => {
    const listener = sockets.listening(family, 1);
    const client = sockets.connected({ family, port: sockets.portOf(listener) }) ?? -1;
    const fd = sockets.accept(listener);
    let received = "";
    await adoptConnection(fd, {
      data: (_, data) => void (received += data.toString()),
      // Still open in this direction.
      end: (socket) => void socket.end(`you said ${received}`),
    });
    const answer = Promise.withResolvers<string>();
    const peer = await adoptConnection(client, {
      data: (_, data) => answer.resolve(data.toString()),
      close: () => answer.resolve("closed"),
    });
    peer?.write("hello");
    peer?.shutdown();
    expect(await answer.promise).toBe("you said hello");
    peer?.end();
    sockets.close(listener);
  });

  test("adopts a connection over AF_UNIX", async () => {
    const [one, other] = sockets.socketPair();
    const received = Promise.withResolvers<string>();
    const socket = await adoptConnection(one, {
      data: (socket, data) => {
        received.resolve(data.toString());
        socket.end();
      },
    });
    const peer = await adoptConnection(other, { data() {}, end: (socket) => void socket.end() });
    peer?.write("over a path");
    expect(await received.promise).toBe("over a path");
    expect(socket).toBeDefined();
  });

  test("leaves what is no socket as it is", async () => {
    const [reads, writes] = sockets.pipe();
    sockets.clearCloseOnExec(writes);
    expect(await adoptConnection(writes, { data() {} })).toBeUndefined();
    expect(closesOnExec(writes)).toBeDefined();
    sockets.close(reads);
    sockets.close(writes);
  });

  test("refuses a number that is not open, or that the runtime opened itself", async () => {
    expect(await adoptConnection(987, { data() {} }).catch((error: unknown) => error)).toEqual(
      refusal(78, /^descriptor 987 is not open: pass a connection on it$/),
    );
    const [reads, writes] = sockets.pipe();
    expect(await adoptConnection(reads, { data() {} }).catch((error: unknown) => error)).toEqual(
      refusal(78, /^descriptor \d+ is not open/),
    );
    sockets.close(reads);
    sockets.close(writes);
  });

  test.each([AF_INET, AF_INET6])("refuses a datagram socket of family %i", async (family) => {
    expect(await refused(sockets.bound(family, SOCK_DGRAM))).toEqual(
      refusal(78, /^descriptor \d+ is a datagram socket, not a connection: pass one$/),
    );
  });

  test.each([SOCK_DGRAM, SOCK_SEQPACKET])(
    "refuses a connected socket over AF_UNIX of type %i, and sends nothing",
    async (type) => {
      const [one, other] = sockets.socketPair(type);
      expect(await refused(one)).toEqual(refusal(78, /not a connection: pass one \(Accept=yes\)$/));
      sockets.close(other);
    },
  );

  test.each([AF_INET, AF_INET6, AF_UNIX])(
    "refuses a listening socket of family %i",
    async (family) => {
      const path = family === AF_UNIX ? `@socket-service-${crypto.randomUUID()}` : undefined;
      expect(await refused(sockets.listening(family, 1, path))).toEqual(
        refusal(
          78,
          /^descriptor \d+ is a listening stream socket \(.*\), not a connection: pass one/,
        ),
      );
    },
  );

  test.each([AF_INET, AF_INET6, AF_UNIX])(
    "refuses one of family %i that has no peer",
    async (family) => {
      expect(await refused(sockets.socket(family, SOCK_STREAM))).toEqual(
        refusal(78, /^descriptor \d+ is an unconnected stream socket /),
      );
    },
  );

  test("passes on what a handler throws", async () => {
    const [one, other] = sockets.socketPair();
    const open = () => {
      throw new Error("of the handler");
    };
    const error = await adoptConnection(one, { open, data() {} }).catch((error: unknown) => error);
    expect(error).toEqual(new Error("of the handler"));
    sockets.close(other);
  });

  test("takes a connection that its peer has reset for one", async () => {
    const listener = sockets.listening(AF_INET, 1);
    const client = sockets.connected({ family: AF_INET, port: sockets.portOf(listener) }) ?? -1;
    const fd = sockets.accept(listener);
    sockets.resetOnClose(client);
    sockets.close(client);
    expect(await refused(fd)).not.toBeInstanceOf(Error);
    sockets.close(listener);
  });
});
