/* `drain` in a process of its own: what its clients see, and when it is gone. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";

import { activate, freePort, scratch } from "../support/daemon.ts";
import { lacks } from "../support/needs.ts";

setDefaultTimeout(60_000);

const GRACE = 500;
const PROGRAM = `
import { drain, passedFd, serve } from "socket-service/activation";
const server = serve({
  fd: passedFd(),
  fetch: (request, server) => (server.upgrade(request) ? undefined : new Response("Hello")),
  websocket: { message: (socket, message) => void socket.send(message) },
});
process.on("SIGTERM", async () => process.exit((await drain(server, { grace: ${GRACE} })) ? 0 : 1));
`;

test.skipIf(lacks("systemd-socket-activate")).each(["silent", "talking all the time"])(
  "64 WebSockets, %s, are closed with 1001",
  async (kind) => {
    using directory = scratch();
    mkdirSync(`${directory.path}/node_modules`);
    symlinkSync(resolve(import.meta.dir, "../.."), `${directory.path}/node_modules/socket-service`);
    const path = `${directory.path}/program.ts`;
    writeFileSync(path, PROGRAM);
    const port = freePort();
    await using service = await activate(process.execPath, {
      listen: [`127.0.0.1:${port}`],
      args: [path],
    });
    const sockets = Array.from({ length: 64 }, () => new WebSocket(`ws://127.0.0.1:${port}/`));
    const closed = sockets.map(
      (socket) => new Promise<CloseEvent>((resolve) => socket.addEventListener("close", resolve)),
    );
    await Promise.all(
      sockets.map((socket) => new Promise((resolve) => socket.addEventListener("open", resolve))),
    );
    if (kind !== "silent")
      for (const socket of sockets) {
        socket.addEventListener("message", () => socket.send("and again"));
        for (let i = 0; i < 10; i++) socket.send("hello");
      }
    const begun = performance.now();
    service.process.kill("SIGTERM");
    expect(await service.status()).toBe(0);
    expect(performance.now() - begun).toBeWithin(GRACE, GRACE + 1000);
    expect((await Promise.all(closed)).map(({ code }) => code)).toEqual(sockets.map(() => 1001));
  },
);
