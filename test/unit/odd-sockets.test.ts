/* Sockets that few services are passed are described, and refused by their kind. */
import { dlopen } from "bun:ffi";
import { expect, test } from "bun:test";
import { tmpdir } from "node:os";

import { adoptConnection, describe, formatAddress } from "../../src/activation/index.ts";
import { listen, formatDescriptor, serve } from "../../src/activation/index.ts";
import { refusal, rejection } from "../support/checks.ts";
import { skipped } from "../support/needs.ts";
import * as sockets from "../support/sockets.ts";
import { AF_UNIX, SOCK_DGRAM, SOCK_STREAM } from "../support/sockets.ts";

const SOCK_RAW = 3;

const { symbols: libc } = dlopen("libc.so.6", {
  bind: { args: ["i32", "buffer", "u32"], returns: "i32" },
  listen: { args: ["i32", "i32"], returns: "i32" },
  unlink: { args: ["buffer"], returns: "i32" },
});

/** A socket of a family that not every kernel has, or lets everybody have. */
function socket(family: number, type: number): number | undefined {
  try {
    return sockets.socket(family, type);
  } catch {
    return undefined;
  }
}

test.each([
  ["AF_NETLINK", 16, SOCK_RAW],
  ["AF_PACKET", 17, SOCK_RAW],
  // It has another error for TCP_INFO than the others.
  ["AF_VSOCK", 40, SOCK_STREAM],
  // It has no getsockname(2).
  ["AF_XDP", 44, SOCK_RAW],
])("a socket of %s is described by the number of its family", async (_, family, type) => {
  const fd = socket(family, type);
  if (fd === undefined) return;
  const it = describe(fd);
  expect(it).toEqual({
    kind: "socket",
    type: type === SOCK_STREAM ? "stream" : "other",
    listening: false,
    connected: false,
    family,
  });
  expect(formatAddress(it)).toBe(`family ${family}`);
  const message = `^78: descriptor ${fd} is ${formatDescriptor(it).replace(/[()]/g, "\\$&")}, not a `;
  const options = { fd, socket: { data() {} } };
  expect(refusal(() => listen(options))).toMatch(RegExp(`${message}listening`));
  sockets.clearCloseOnExec(fd);
  expect(await rejection(adoptConnection(fd, { data() {} }))).toMatch(
    RegExp(`${message}connection: set ListenStream= and Accept=yes in the socket unit$`),
  );
});

const vsock = socket(40, SOCK_STREAM);
if (vsock === undefined) skipped("a listening socket of AF_VSOCK", "this kernel has none");

test.skipIf(vsock === undefined)("a listening socket of AF_VSOCK is refused", () => {
  const fd = vsock ?? -1;
  // A struct sockaddr_vm: its family, then any port and any CID.
  expect(libc.bind(fd, Uint32Array.of(40, -1, -1, 0), 16)).toBe(0);
  expect(libc.listen(fd, 1)).toBe(0);
  for (const call of [
    () => listen({ fd, socket: { data() {} } }),
    () => serve({ fd, fetch: () => new Response() }),
  ])
    expect(refusal(call)).toMatch(
      /^78: .*is a listening stream socket \(family 40\), not a listening stream socket over IP/,
    );
  sockets.close(fd);
});

test("a path that is not UTF-8 is returned with U+FFFD in place of its bytes", () => {
  const fd = sockets.socket(AF_UNIX, SOCK_DGRAM);
  const before = Buffer.from(`${tmpdir()}/${crypto.randomUUID()}-`);
  const path = Buffer.concat([before, Buffer.of(0xff)]);
  const address = Buffer.concat([Buffer.of(AF_UNIX, 0), path, Buffer.of(0)]);
  expect(libc.bind(fd, address, address.length)).toBe(0);
  expect(formatAddress(describe(fd))).toBe(`${path.toString("latin1").slice(0, -1)}\ufffd`);
  expect(libc.unlink(Buffer.concat([path, Buffer.of(0)]))).toBe(0);
  sockets.close(fd);
});
