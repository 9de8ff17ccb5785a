import { expect, test } from "bun:test";

import * as layout from "../../src/activation/linux/layout.ts";

test("a sun_path is a path, or a NUL and an abstract name", () => {
  expect(layout.sunPath("/run/ü")).toEqual(new TextEncoder().encode("/run/ü"));
  expect(layout.sunPath("@name")).toEqual(new TextEncoder().encode("\0name"));
});

test("a sockaddr_un is a path, an abstract name after @, or nothing", () => {
  const path = (text: string) => layout.unixPath(Uint8Array.of(1, 0, ...Buffer.from(text)));
  expect(["/run/a\0rest", "/run/a", "\0a\0b", ""].map(path)).toEqual([
    "/run/a",
    "/run/a",
    "@a\0b",
    "",
  ]);
});

test("a sockaddr_in and a sockaddr_in6 hold an address and a port", () => {
  const read = (hex: string) => {
    // At an offset, as the middle of a larger buffer is.
    const bytes = Uint8Array.fromHex(`ffff${hex}`).subarray(2);
    return [layout.inetAddress(bytes), layout.inetPort(bytes)];
  };
  expect(read("02000bb87f0000010000000000000000")).toEqual(["127.0.0.1", 3000]);
  const IPV6 = "0a000bb800000000";
  expect(read(`${IPV6}000000000000000000000000000000010${"0".repeat(7)}`)).toEqual(["::1", 3000]);
  expect(read(`${IPV6}fe800000000000000000000000000001${"02000000"}`)).toEqual(["fe80::1%2", 3000]);
  expect(read(`${IPV6}00000000000000000000ffff7f000001${"0".repeat(8)}`)).toEqual([
    "::ffff:127.0.0.1",
    3000,
  ]);
  const MANY = 0x04030201;
  expect(read(`${IPV6}fe800000000000000000000000000001${"01020304"}`)).toEqual([
    `fe80::1%${MANY}`,
    3000,
  ]);
});

test("struct epoll_event is packed on x86-64 and nowhere else", () => {
  const data = [0x55667788, 0x11223344] as const;
  const hex = (arch: "x64" | "arm64") =>
    new Uint8Array(layout.epollEvent(1, data, arch).buffer).toHex();
  expect(hex("x64")).toBe("01000080" + "8877665544332211");
  expect(hex("arm64")).toBe("01000080" + "00000000" + "8877665544332211");
});

test("close-on-exec is the flag 02000000 of fdinfo", () => {
  const read = (flags: string) => layout.hasCloseOnExec(`pos:\t0\nflags:\t${flags}\nmnt_id:\t1\n`);
  expect(["02", "02000002", "0100000", "02104000"].map(read)).toEqual([false, true, false, true]);
});

test("ancillary data is one cmsghdr for descriptors and one for credentials, each aligned", () => {
  const sender = [258, 1, 2] as const;
  const rights = "1400000000000000" + "01000000" + "01000000" + "03000000" + "00000000";
  const ids =
    "1c00000000000000" + "01000000" + "02000000" + "020100000100000002000000" + "00000000";
  expect(layout.controlMessages([]).length).toBe(0);
  expect(layout.controlMessages([3]).toHex()).toBe(rights);
  expect(layout.controlMessages([], sender).toHex()).toBe(ids);
  expect(layout.controlMessages([3], sender).toHex()).toBe(rights + ids);
});

test("a datagram is a msghdr that points to the name, the payload and the ancillary data", () => {
  const control = layout.controlMessages([3]);
  const bytes = layout.datagram(
    layout.sunPath("/a"),
    Buffer.from("READY=1"),
    control,
    () => 0x1000,
  );
  const { buffer } = bytes;
  const [name, nameLength, iovec, parts, controlAt, controlLength] = new BigUint64Array(
    buffer,
    0,
    6,
  );
  const [payload, length] = new BigUint64Array(buffer, Number(iovec) - 0x1000, 2);
  const at = (address = 0n, size = 0n) => {
    const start = Number(address) - 0x1000;
    return Buffer.from(bytes.subarray(start, start + Number(size))).toString("latin1");
  };
  expect([at(name, nameLength), parts]).toEqual(["\x01\0/a", 1n]);
  expect(at(payload, length)).toBe("READY=1");
  expect(at(controlAt, controlLength)).toBe(Buffer.from(control).toString("latin1"));
});
