/* Sockets that few services are passed: they are described, or refused by what they are. */
import { dlopen } from "bun:ffi";
import { expect, test } from "bun:test";
import { tmpdir } from "node:os";

import {
  adoptConnection,
  describe,
  formatAddress,
  listen,
  formatDescriptor,
  serve,
} from "../../src/activation/index.ts";
import { refusal, thrown } from "../support/checks.ts";
import { skipped } from "../support/needs.ts";
import * as sockets from "../support/sockets.ts";
import { AF_UNIX, SOCK_DGRAM, SOCK_STREAM } from "../support/sockets.ts";

const SOCK_RAW = 3;

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
    connected: family === 16,
    family,
  });
  expect(formatAddress(it)).toBe(`family ${family}`);
  const message = `^descriptor ${fd} is ${formatDescriptor(it).replace(/[()]/g, "\\$&")}, not a `;
  const options = { fd, socket: { data() {} } };
  expect(thrown(() => listen(options))).toEqual(refusal(78, RegExp(`${message}listening`)));
  sockets.clearCloseOnExec(fd);
  const error = await adoptConnection(fd, { data() {} }).catch((error: unknown) => error);
  expect(error).toEqual(
    refusal(
      78,
      RegExp(`${message}connection: set ListenStream= and Accept=yes in the socket unit$`),
    ),
  );
});

const vsock = socket(40, SOCK_STREAM);
if (vsock === undefined) skipped("a listening socket of AF_VSOCK", "this kernel has none");

test.skipIf(vsock === undefined)("a listening socket of AF_VSOCK is refused", () => {
  const fd = vsock ?? -1;
  const { symbols: libc } = dlopen("libc.so.6", {
    bind: { args: ["i32", "buffer", "u32"], returns: "i32" },
    listen: { args: ["i32", "i32"], returns: "i32" },
  });
  // A struct sockaddr_vm: its family, then any port and any CID.
  expect(libc.bind(fd, Uint32Array.of(40, -1, -1, 0), 16)).toBe(0);
  expect(libc.listen(fd, 1)).toBe(0);
  for (const call of [
    () => listen({ fd, socket: { data() {} } }),
    () => serve({ fd, fetch: () => new Response() }),
  ])
    expect(thrown(call)).toEqual(
      refusal(
        78,
        /is a listening stream socket \(family 40\), not a listening stream socket over IP/,
      ),
    );
  sockets.close(fd);
});

test("a path that is not UTF-8 is returned with U+FFFD in place of its bytes", () => {
  const { symbols: libc } = dlopen("libc.so.6", {
    bind: { args: ["i32", "buffer", "u32"], returns: "i32" },
    unlink: { args: ["buffer"], returns: "i32" },
  });
  const fd = sockets.socket(AF_UNIX, SOCK_DGRAM);
  const directory = tmpdir();
  const path = Buffer.concat([
    Buffer.from(`${directory}/${crypto.randomUUID()}-`),
    Buffer.of(0xff),
  ]);
  expect(
    libc.bind(fd, Buffer.concat([Buffer.of(AF_UNIX, 0), path, Buffer.of(0)]), path.length + 3),
  ).toBe(0);
  expect(formatAddress(describe(fd))).toBe(`${path.toString("latin1").slice(0, -1)}\ufffd`);
  expect(libc.unlink(Buffer.concat([path, Buffer.of(0)]))).toBe(0);
  sockets.close(fd);
});
