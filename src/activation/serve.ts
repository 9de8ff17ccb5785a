import type { Serve, Server } from "bun";

import { describe, type Descriptor, endpoint, isListeningStream } from "./describe.ts";
import * as libc from "./libc.ts";
import { LISTEN_FDS_START } from "./listen-fds.ts";
import { substitute, unexpectedRuntime } from "./event-loop.ts";
import { type Address, LOOPBACK, requireListening } from "./listen.ts";
import { keepNotifySocket } from "./notify.ts";

/** What `Bun.serve` takes, but for the address: that comes with the socket. */
export type ServeOptions<WebSocketData, Route extends string> = Omit<
  Serve.UnixServeOptions<WebSocketData>,
  // HTTP/3 runs over UDP, on a socket of its own.
  "unix" | "http3"
> &
  Bun.__internal.XOR<
    Serve.FetchOrRoutes<WebSocketData, Route>,
    Serve.FetchOrRoutesWithWebSocket<WebSocketData, Route>
  >;

/**
 * `Bun.serve` on a passed listening socket: routes, WebSocket, streaming, `stop()` and all, at its
 * own speed. The socket keeps its backlog and stays open in systemd when `stop()` closes our copy;
 * `url`, `hostname`, `port` and `address` of the server tell its address.
 *
 * Bun has no option for it: it listens on a throw-away socket, which gives way to the passed one
 * before the event loop runs. The throw-away is on a free port of the loopback for a socket over
 * IP, so that `server.requestIP` works; where that is not allowed (`RestrictAddressFamilies=AF_UNIX`)
 * it has an abstract name, and `server.requestIP` gives null.
 *
 * Limitations: no HTTP/3. A server that was started with `bun --hot` is not kept on a reload.
 *
 * @param where The number of a listening stream socket over IPv4, IPv6 or AF_UNIX, which is closed:
 *   the server has it under another number; or an address, which is bound as `Bun.serve` does it.
 * @throws {ActivationError} (78) when the descriptor is anything else; (71) when a system call
 *   fails, or this Bun does not keep its sockets as expected. Nobody was served then.
 * @throws What `Bun.serve` throws. After any error the descriptor is as it was.
 *
 * @example
 * ```ts
 * serve(passedFd() ?? { port: 4000 }, { fetch: () => new Response("Hello\n") });
 * ```
 */
export function serve<WebSocketData = undefined, Route extends string = string>(
  where: number | Address,
  options: ServeOptions<WebSocketData, Route>,
): Server<WebSocketData> {
  if (typeof where !== "number")
    return "unix" in where
      ? Bun.serve({ ...options, unix: where.unix })
      : Bun.serve({ ...options, hostname: where.hostname ?? LOOPBACK, port: where.port });
  requireListening(where);
  // Before clients have taken all descriptors.
  keepNotifySocket();
  const passed = describe(where);
  const { server, at } = throwAway(options, "port" in passed);
  try {
    substitute(where, descriptorAt(at));
    report(server, passed);
  } catch (error) {
    void server.stop(true);
    throw error;
  }
  libc.close(where);
  return server;
}

/** A server that listens where nobody comes, and where that is, as `endpoint` tells it. */
function throwAway<WebSocketData, Route extends string>(
  options: ServeOptions<WebSocketData, Route>,
  isInternet: boolean,
): { server: Server<WebSocketData>; at: string } {
  if (isInternet)
    try {
      const server = Bun.serve({ ...options, hostname: LOOPBACK, port: 0 });
      return { server, at: `${LOOPBACK}:${server.port}` };
    } catch {
      // Not allowed here; or else the options are wrong, and fail once more.
    }
  const name = `bun-serve-${crypto.randomUUID()}`;
  return { server: Bun.serve({ ...options, unix: `\0${name}` }), at: `@${name}` };
}

/** The descriptor of the socket that listens at `address`. */
function descriptorAt(address: string): number {
  for (let fd = LISTEN_FDS_START; fd < libc.SEARCH_LIMIT; fd++)
    if (isListeningStream(fd) && endpoint(describe(fd)) === address) return fd;
  throw unexpectedRuntime(`does not listen on ${address}`);
}

/** Makes a server tell the address of its socket, and not that of its throw-away. */
function report(server: Server<unknown>, it: Descriptor): void {
  if ("port" in it) {
    const { address, port, family } = it;
    // A URL has no place for the interface of an address of one link.
    const host = family === "IPv6" ? `[${address.replace(/%.*/, "")}]` : address;
    const url = new URL(`${server.protocol}://${host}:${port}/`);
    define(server, { url, hostname: address, port, address: { address, family, port } });
  } else {
    const path = endpoint(it);
    // As Bun writes them: unix:///run/example.socket, abstract://example/.
    const url = path.startsWith("@")
      ? new URL(`abstract://${encodeURIComponent(path.slice(1))}/`)
      : new URL(`unix://${encodeURI(path).replace(/[?#]/g, encodeURIComponent)}`);
    define(server, { url, hostname: undefined, port: undefined, address: path });
  }
}

function define(server: Server<unknown>, values: Readonly<Record<string, unknown>>): void {
  for (const [name, value] of Object.entries(values))
    Object.defineProperty(server, name, { value });
}
