import { expect, spyOn, test } from "bun:test";
import fs from "node:fs";

import { Connections, openDescriptors } from "../../src/activation/adopt/connections.ts";
import * as libc from "../../src/activation/linux/libc.ts";
import { client, FAMILIES, listening } from "../support/listening.ts";
import { accept, close } from "../support/sockets.ts";
import { EMULATED, until } from "../support/until.ts";

const { descriptorLimit, socketName } = libc;

test.each(FAMILIES)("a connection over %s is open from accept to close", async (family) => {
  using it = listening(family);
  const watch = { fd: it.fd, epoll: -1, events: 0, data: [0, 0] } as const;
  const address = socketName(it.fd);
  const connections = new Connections({ ...watch, identity: "", address });
  const peer = await client(it.to);
  expect(connections.isEmpty()).toBe(true);
  const accepted = accept(it.fd);
  expect(connections.isEmpty()).toBe(false);
  close(accepted);
  expect(connections.isEmpty()).toBe(true);
  peer.destroy();
  close(it.fd);
});

// qemu-user returns four bytes of TCP_INFO.
test.skipIf(EMULATED)(
  "with no descriptor free to ask Bun, a connection may send more that has sent since the last look",
  async () => {
    using read = spyOn(libc, "readProc");
    read.mockImplementation(() => {
      throw new Error("too many open files");
    });
    using it = listening("IPv4");
    const watch = { fd: it.fd, epoll: -1, events: 0, data: [0, 0] } as const;
    const connections = new Connections({ ...watch, identity: "", address: socketName(it.fd) });
    const peer = await client(it.to);
    const accepted = accept(it.fd);
    const sending = () => connections.count(({ isSending }) => isSending);
    expect([sending(), sending()]).toEqual([1, 0]);
    fs.writeSync(accepted, "more");
    expect(sending()).toBe(1);
    await until("all is received", 10, () => sending() === 0);
    for (const fd of [accepted, it.fd]) close(fd);
    peer.destroy();
  },
);

test("if no descriptor is free to list them, all up to the limit may be open", () => {
  expect(openDescriptors()).toEqual(expect.arrayContaining([0, 1, 2]));
  using list = spyOn(fs, "readdirSync");
  list.mockImplementation(() => {
    throw Object.assign(new Error("too many open files"), { code: "EMFILE" });
  });
  expect(openDescriptors()).toHaveLength(descriptorLimit());
});
