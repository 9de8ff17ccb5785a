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
   * The test closes it, or its adopter does. It is non-blocking: a mistake fails one test, and no other
   * hangs in accept(2).
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
    : { port: sockets.portOf(fd), host: family === "IPv4" ? "127.0.0.1" : sockets.LOOPBACK6 };
  return {
    fd,
    kept,
    to,
    [Symbol.dispose]: () => {
      sockets.close(kept);
      // An abstract name is no file: a working directory that is read-only would refuse its removal.
      if (family === "Unix") rmSync(path, { force: true });
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

/** Reads a connection to its end of file. */
export async function text(socket: Socket): Promise<string> {
  let received = "";
  for await (const chunk of socket) received += String(chunk);
  return received;
}

/** One HTTP/1.1 exchange over a connection of its own. */
export async function exchange(to: Listening["to"], target = "/"): Promise<string> {
  const socket = await client(to);
  socket.write(`GET ${target} HTTP/1.1\r\nHost: example\r\nConnection: close\r\n\r\n`);
  return await text(socket);
}

/** A certificate for localhost until 2120, and its key, which protects nothing but these tests. */
export const CERTIFICATE = {
  key: `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgu6d6LEOJuoDhMgHj
fbtYJjWYEp3NY5aMjWSS/l+iN+ehRANCAAS11SxlrxUk0rhrzWTfeG1rP/0tzwKp
JSFhOCJI5fZuB6XqL9bCKrET8qUyhGRxzE9xyJC7rUL/uxYeuZoevEEB
-----END PRIVATE KEY-----
`,
  cert: `-----BEGIN CERTIFICATE-----
MIIBgDCCASWgAwIBAgIUO8joJHXpnj/2UWLn1e+qOImDVPswCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAx
MDAwMDAwWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAS11SxlrxUk0rhrzWTfeG1rP/0tzwKpJSFhOCJI5fZuB6XqL9bCKrET
8qUyhGRxzE9xyJC7rUL/uxYeuZoevEEBo1MwUTAdBgNVHQ4EFgQU5Ek/xmlGCJZn
lT/rJI/FQwsRwfkwHwYDVR0jBBgwFoAU5Ek/xmlGCJZnlT/rJI/FQwsRwfkwDwYD
VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEAp0baGhoeqzcj5E6SGfox
CAnoNte3kSYgp4ZvwwG1caECIQDpY2oe9l10klgKcSlTp9RWjYin+1yN3S8AvFn4
fx4CbA==
-----END CERTIFICATE-----
`,
};
