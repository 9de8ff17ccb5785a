/* Listening sockets of every family that can be adopted, and how a client reaches each. */
import { randomUUID } from "node:crypto";
import { rmSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import * as sockets from "./sockets.ts";
import { AF_INET, AF_INET6, AF_UNIX } from "./sockets.ts";

export const FAMILIES = ["IPv4", "IPv6", "Unix", "abstract Unix"] as const;

/** A name that no other test and no other run has, for a file in the directory of temporary ones. */
export function freshPath(): string {
  return join(tmpdir(), `socket-service-${randomUUID()}`);
}

export interface Listening extends Disposable {
  /**
   * Closed by the test, or by whoever adopts it. Non-blocking, so that a mistake there fails the test
   * of that alone, and does not leave every other one in accept(2).
   */
  readonly fd: number;
  /** A second descriptor of the socket, as the service manager keeps one. */
  readonly kept: number;
  readonly to: { readonly port: number; readonly host: string } | { readonly path: string };
}

export function listening(family: (typeof FAMILIES)[number], backlog = 37): Listening {
  const path = family === "Unix" ? freshPath() : `@${randomUUID()}`;
  const fd =
    family === "IPv4" || family === "IPv6"
      ? sockets.listening(family === "IPv4" ? AF_INET : AF_INET6, backlog)
      : sockets.listening(AF_UNIX, backlog, path);
  sockets.setNonBlocking(fd);
  const kept = sockets.duplicate(fd);
  const to = family.endsWith("Unix")
    ? { path: path.replace("@", "\0") }
    : { port: sockets.portOf(fd), host: family === "IPv4" ? "127.0.0.1" : "::1" };
  return {
    fd,
    kept,
    to,
    [Symbol.dispose]: () => {
      sockets.close(kept);
      rmSync(path, { force: true });
    },
  };
}

/** A client of a listening socket, connected. */
export async function client(to: Listening["to"]): Promise<Socket> {
  const socket = connect({ ...to, allowHalfOpen: true });
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  socket.once("connect", resolve).once("error", reject);
  await promise;
  return socket;
}

/** All that comes from a connection until its end of file. */
export async function text(socket: Socket): Promise<string> {
  let received = "";
  for await (const chunk of socket) received += String(chunk);
  return received;
}

/** A certificate for localhost, made for these tests, and its key. */
export function certificate(): { key: string; cert: string } {
  const request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
  const made = Bun.spawnSync(
    ["openssl", ...request, "-nodes", "-subj", "/CN=localhost", "-keyout", "-", "-out", "-"],
    { stderr: "ignore" },
  ).stdout.toString();
  const [key = "", cert = ""] = made.split(/(?=-----BEGIN CERTIFICATE)/);
  return { key, cert };
}
