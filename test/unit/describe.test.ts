import { describe, expect, test } from "bun:test";
import { constants, readdirSync, readlinkSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { describe as describeFd, endpoint, phrase } from "../../src/activation/describe.ts";
import { duplicate } from "../../src/activation/libc.ts";
import * as sockets from "../support/sockets.ts";
import {
  AF_INET,
  AF_INET6,
  AF_UNIX,
  SOCK_DGRAM,
  SOCK_SEQPACKET,
  SOCK_STREAM,
} from "../support/sockets.ts";
import { listening, refusal, thrown } from "../support/listening.ts";

/** The epoll instance of this process. */
function eventLoop(): number {
  const fds = readdirSync("/proc/self/fd").map(Number);
  // The directory itself is closed by now.
  const isEpoll = (fd: number) => readlinkSync(`/proc/self/fd/${fd}`).includes("eventpoll");
  return (
    fds.find(
      (fd) => thrown(() => readlinkSync(`/proc/self/fd/${fd}`)) === undefined && isEpoll(fd),
    ) ?? -1
  );
}

/** What a descriptor is, and how it is called; it is closed then. */
function told(fd: number): [unknown, string, string] {
  const it = describeFd(fd);
  sockets.close(fd);
  return [it, phrase(it), endpoint(it)];
}

describe("describe tells", () => {
  test("a listening socket over IPv4", () => {
    const fd = sockets.listening(AF_INET, 1);
    const port = sockets.portOf(fd);
    expect(told(fd)).toEqual([
      {
        kind: "socket",
        type: "stream",
        listening: true,
        connected: false,
        family: "IPv4",
        address: "127.0.0.1",
        port,
      },
      "a listening stream socket (IPv4)",
      `127.0.0.1:${port}`,
    ]);
  });

  test("a datagram socket over IPv6", () => {
    const fd = sockets.bound(AF_INET6, SOCK_DGRAM);
    const port = sockets.portOf(fd);
    const address = { family: "IPv6", address: "::1", port };
    expect(told(fd)).toEqual([
      { kind: "socket", type: "datagram", listening: false, connected: false, ...address },
      "an unconnected datagram socket (IPv6)",
      `[::1]:${port}`,
    ]);
  });

  test("both ends of a connection over AF_UNIX, and one that has lost its peer", () => {
    const [one, other] = sockets.socketPair(SOCK_SEQPACKET);
    expect(told(one)).toEqual([
      {
        kind: "socket",
        type: "seqpacket",
        listening: false,
        connected: true,
        family: "Unix",
        path: "",
      },
      "a connected seqpacket socket (Unix)",
      "",
    ]);
    sockets.close(other);
  });

  test("a path and an abstract name, with a NUL in it too", () => {
    using path = listening("Unix");
    using name = listening("abstract Unix");
    if (!("path" in path.to) || !("path" in name.to)) throw new Error("these are over AF_UNIX");
    expect(told(path.fd)[2]).toBe(path.to.path);
    expect(told(name.fd)[2]).toBe(name.to.path.replace("\0", "@"));
    expect(told(sockets.bound(AF_UNIX, SOCK_STREAM, "@a\0b"))[2]).toBe("@a\0b");
  });

  test("the longest path that fits, 108 bytes with no NUL after them", () => {
    const path = join(tmpdir(), crypto.randomUUID()).padEnd(108, "x");
    const fd = sockets.bound(AF_UNIX, SOCK_STREAM, path);
    expect(told(fd)[2]).toBe(path);
    rmSync(path);
  });

  test("a socket of another family by its number", () => {
    const AF_NETLINK = 16;
    const [it, words, where] = told(sockets.socket(AF_NETLINK, 3));
    expect(it).toMatchObject({ kind: "socket", type: "other", family: AF_NETLINK });
    expect(words).toContain("other socket (family 16)");
    expect(where).toBe("family 16");
  });

  test("what is no socket", () => {
    const [reads, writes] = sockets.pipe();
    expect(told(reads)).toEqual([{ kind: "fifo" }, "a fifo", ""]);
    expect(told(writes)[0]).toEqual({ kind: "fifo" });
    expect(told(sockets.open("/dev/null", 0))[0]).toEqual({ kind: "character device" });
    expect(told(sockets.open("/", constants.O_DIRECTORY))[1]).toBe("a directory");
    expect(told(sockets.open(import.meta.path, 0))[1]).toBe("a regular file");
    expect(told(duplicate(eventLoop()))).toEqual([{ kind: "other" }, "an anonymous file", ""]);
  });

  test("a number that is not open", () => {
    expect(thrown(() => describeFd(987654))).toEqual(
      refusal(78, /^descriptor 987654 is not open:/),
    );
    expect(thrown(() => describeFd(-1))).toEqual(refusal(78, /^descriptor -1 is not open:/));
  });
});
