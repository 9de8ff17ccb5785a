import { describe, expect, spyOn, test } from "bun:test";
import fs, { constants, rmSync } from "node:fs";

import { describe as describeFd, formatAddress } from "../../src/activation/receive/describe.ts";
import { formatDescriptor } from "../../src/activation/receive/describe.ts";
import { refusal } from "../support/checks.ts";
import { freshPath } from "../support/listening.ts";
import * as sockets from "../support/sockets.ts";
import { AF_INET, AF_INET6, AF_UNIX } from "../support/sockets.ts";
import { SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM } from "../support/sockets.ts";

/** Describes a descriptor, formats it in both ways, and closes it. */
function told(fd: number): [unknown, string, string] {
  const it = describeFd(fd);
  sockets.close(fd);
  return [it, formatDescriptor(it), formatAddress(it)];
}

describe("describe returns", () => {
  test("a listening socket over IPv4, and the two ends of a connection to it", () => {
    const fd = sockets.listening(AF_INET, 1);
    const port = sockets.portOf(fd);
    const client = sockets.connected({ family: AF_INET, port }) ?? -1;
    const accepted = sockets.accept(fd);
    const socket = { kind: "socket", type: "stream", family: "IPv4", address: "127.0.0.1" };
    const connected = { ...socket, listening: false, connected: true };
    expect<unknown>(describeFd(client)).toEqual({ ...connected, port: expect.any(Number) });
    expect(told(accepted)).toEqual([
      { ...connected, port },
      "a connected stream socket (IPv4)",
      `127.0.0.1:${port}`,
    ]);
    sockets.close(client);
    expect(told(fd)).toEqual([
      { ...socket, listening: true, connected: false, port },
      "a listening stream socket (IPv4)",
      `127.0.0.1:${port}`,
    ]);
  });

  test("a connection that its peer has reset, as not connected", () => {
    const [client, accepted] = sockets.tcpPair();
    sockets.reset(client);
    expect(told(accepted)[0]).toMatchObject({ listening: false, connected: false });
  });

  test("a datagram socket over IPv6", () => {
    const fd = sockets.bound(AF_INET6, SOCK_DGRAM);
    const port = sockets.portOf(fd);
    const address = { family: "IPv6", address: sockets.LOOPBACK6, port };
    expect(told(fd)).toEqual([
      { kind: "socket", type: "datagram", listening: false, connected: false, ...address },
      "an unconnected datagram socket (IPv6)",
      `[${sockets.LOOPBACK6}]:${port}`,
    ]);
  });

  test("an address of one link, with the number of its interface", () => {
    const [it, , where] = told(sockets.bound(AF_INET6, SOCK_DGRAM, "link"));
    expect(it).toMatchObject({ family: "IPv6", address: "fe80::1%1" });
    // As systemd writes it.
    expect(where).toMatch(/^\[fe80::1\]:[1-9][0-9]*%1$/);
  });

  test("a connected socket over AF_UNIX that is not bound", () => {
    const [one, other] = sockets.socketPair(SOCK_SEQPACKET);
    const it = { kind: "socket", type: "seqpacket", listening: false, connected: true };
    expect(told(one)).toEqual([
      { ...it, family: "Unix", path: "" },
      "a connected seqpacket socket (Unix)",
      "",
    ]);
    sockets.close(other);
  });

  test("a path and an abstract name, with a NUL in it too", () => {
    const path = freshPath();
    // The longest that there is has 108 bytes, with no NUL after them.
    for (const at of [path, `@${path}`, `@${path}\0b`, path.padEnd(108, "x")]) {
      expect(told(sockets.bound(AF_UNIX, SOCK_STREAM, at))[2]).toBe(at);
      rmSync(at.replaceAll("\0", ""), { force: true });
    }
  });

  test("a socket of another family by its number", () => {
    const AF_NETLINK = 16;
    expect(told(sockets.socket(AF_NETLINK, 3))).toEqual([
      expect.objectContaining({ kind: "socket", type: "other", family: AF_NETLINK }),
      expect.stringMatching(/^an? (un)?connected other socket \(family 16\)$/),
      "family 16",
    ]);
  });

  test("the kind of a descriptor that is no socket", () => {
    const [reads, writes] = sockets.pipe();
    expect(told(reads)).toEqual([{ kind: "fifo" }, "a fifo", ""]);
    expect(told(writes)[0]).toEqual({ kind: "fifo" });
    expect(told(fs.openSync("/dev/null", "r"))[0]).toEqual({ kind: "character device" });
    expect(told(fs.openSync("/", "r"))[1]).toBe("a directory");
    expect(told(fs.openSync(import.meta.path, "r"))[1]).toBe("a regular file");
    expect(told(sockets.epoll())).toEqual([{ kind: "other" }, "an anonymous file", ""]);
    // Not every machine has one.
    const blockDevice = Object.assign(fs.fstatSync(0), { mode: constants.S_IFBLK });
    using _ = spyOn(fs, "fstatSync").mockReturnValue(blockDevice);
    expect(told(sockets.epoll())).toEqual([{ kind: "block device" }, "a block device", ""]);
  });
});

test("describe refuses a number that is not open", () => {
  for (const fd of [987_654, -1])
    expect(refusal(() => describeFd(fd))).toMatch(
      RegExp(`^78: descriptor ${fd} is not open: give the number of an open descriptor$`),
    );
});
