import type { Serve, Server } from "bun";

import { derive, NOWHERE, overlay, type Reported } from "../bun.ts";
import { ActivationError, codeOf, ExitStatus } from "../error.ts";
import { isHot } from "../hot.ts";
import { remedyForCall } from "../linux/libc-errors.ts";
import { SEARCH_LIMIT } from "../linux/libc.ts";
import { keepNotifySocket } from "../notify/notify.ts";
import { describe, formatEndpoint } from "../receive/describe.ts";
import { reportedAddress } from "./address.ts";
import { substitute, unexpectedRuntime } from "./event-loop.ts";
import { release, supersede } from "./handover.ts";
import { listensAt, requireListening } from "./listening.ts";
import { keep, recordSockets, type Served, servedBy } from "./served.ts";

/** The options of `Bun.serve`, and a descriptor. If it is given, it is used instead of the address. */
export type ServeOptions<Data = undefined, Route extends string = string> = {
  readonly fd?: number | undefined;
} & Serve.Options<Data, Route>;

/** How the names of placeholders over AF_UNIX begin. */
export const PLACEHOLDER = "\0bun-serve-";
export const LOOPBACK = "127.0.0.1";
/** The errors if a sandbox allows only AF_UNIX, or no bind(2), or if no port is free. */
const UNAVAILABLE = ["EAFNOSUPPORT", "EPERM", "EACCES", "EADDRINUSE"];

/**
 * Runs `Bun.serve` on a passed socket: `fd` is the number of a listening stream socket over IPv4, IPv6
 * or AF_UNIX. Routes, WebSockets and streams work as in `Bun.serve`, at the same speed. The server
 * reports the address of the passed socket. The length of the socket's queue does not change. `stop()`
 * closes the socket of this process, systemd keeps its own.
 *
 * Limitations:
 *
 * - A passed socket cannot serve HTTP/3.
 * - `serve` makes the socket non-blocking for every process that shares it. It stays so after
 *   `stop()`. systemd sets the flag anew (`NonBlocking=`) for each process that it starts.
 * - Several processes on one socket need `NonBlocking=yes`: otherwise the start of one process can
 *   make another one hang.
 * - For a moment, Bun listens on a free port of the loopback address, or of `hostname` if a route is an
 *   HTML page. If no port is allowed (`RestrictAddressFamilies=AF_UNIX`) or free, `server.requestIP`
 *   returns null.
 * - In development, a server of HTML pages answers a request to a host name only if `hostname` is that
 *   name.
 *
 * Without `fd` it is `Bun.serve`, unchanged.
 *
 * @param options As for `Bun.serve`. If `fd` is given, `port` and `unix` are ignored, and without HTML
 *   pages `hostname` too. `serve` closes that number: the server has the socket under another one. Under `bun --hot`
 *   the number stays open. /dev/null replaces a descriptor from 0 to 2.
 * @returns The server of Bun.
 * @throws {ActivationError} (78) if the descriptor is not such a socket; (71) if a system call fails,
 *   or this Bun does not keep its sockets as expected. Nobody was served then.
 * @throws {TypeError} if `http3` is true.
 * @throws What `Bun.serve` throws. After any error the descriptor is as it was.
 *
 * @example
 * ```ts
 * const fetch = () => new Response("Hello\n");
 * serve({ fd: passedFd(), hostname: "127.0.0.1", port: 4000, fetch });
 * ```
 */
export function serve<Data = undefined, Route extends string = never>(
  options: ServeOptions<Data, Route>,
): Server<Data> {
  const { fd } = options;
  const sockets: Served["sockets"] = new Set();
  if (fd === undefined) {
    const server = Bun.serve(recordSockets(options, sockets));
    return keep(server, { options, sockets, watch: undefined });
  }
  requireListening(fd);
  // Now, while a descriptor is free: clients may take all.
  keepNotifySocket();
  // `reload` would check the address that is ignored.
  const placeless = derive(options, NOWHERE);
  const { server, watch } = serveOn(fd, recordSockets(placeless, sockets), options.hostname);
  return keep(server, { options: placeless, sockets, watch });
}

/** Starts a server on a placeholder, and puts the passed socket in its place: see event-loop.ts. */
function serveOn<Data, Route extends string>(
  passed: number,
  options: ServeOptions<Data, Route>,
  hostname: string | undefined,
) {
  if (options.http3 === true)
    throw new TypeError("serve cannot use HTTP/3 on a passed socket: leave http3 out");
  const socket = describe(passed);
  // Bun recognises a server by its id, by default its address; all placeholders share one.
  const identity = options.id === undefined && isHot() ? { id: `fd-${passed}` } : {};
  const start = (where: object) => Bun.serve(derive(options, { ...identity, ...where }));
  // Bun's development server answers to no other name than that with which it was started.
  const names = hostname !== undefined && hasPages(options.routes) ? [hostname] : [];
  const hosts = "port" in socket ? [...names, LOOPBACK] : [];
  const [server, at] = startOnPlaceholder(hosts, start);
  if (servedBy(server) !== undefined) return { server };
  try {
    const watch = substitute(passed, listenerAt(at));
    const reported = reportedAddress(server, socket);
    const { fetch } = server;
    // Bun would take the placeholder's port.
    const resolve = (to: unknown) =>
      typeof to === "string" && to.startsWith("/") && "port" in socket
        ? new URL(to, server.url).href
        : to;
    overlay(server, {
      ...reported,
      fetch: (to: unknown, ...others: unknown[]): unknown =>
        Reflect.apply(fetch, server, [resolve(to), ...others]),
    });
    release(passed);
    supersede(passed, () => void server.stop(), watch);
    return { server, watch };
  } catch (error) {
    void server.stop(true);
    throw error;
  }
}

/** Starts a server at an address that nobody knows, and returns the server and the address, as text. */
function startOnPlaceholder<T extends Server<unknown>>(
  hosts: readonly string[],
  start: (at: object) => T,
) {
  for (const hostname of hosts)
    try {
      const server: T & Reported = start({ hostname, port: 0 });
      const { address } = server;
      if (typeof address === "object" && address) return [server, formatEndpoint(address)] as const;
    } catch (error) {
      // For a name that is not one of this machine, the errno can be any.
      if (hostname === LOOPBACK && !UNAVAILABLE.includes(codeOf(error))) throw error;
    }
  const unix = `${PLACEHOLDER}${crypto.randomUUID()}`;
  try {
    return [start({ unix }), `@${unix.slice(1)}`] as const;
  } catch (error) {
    const code = codeOf(error);
    if (code !== "EAFNOSUPPORT") throw error;
    // Bun's message has the name of the placeholder.
    const message = `Bun cannot make a socket${remedyForCall("socket", code)}`;
    throw new ActivationError(ExitStatus.systemCall, message, code);
  }
}

/** Whether one of the routes, or one of their methods, is an imported HTML page. */
function hasPages(routes: object = {}): boolean {
  const isPage = (value: unknown) =>
    Object.prototype.toString.call(value) === "[object HTMLBundle]";
  return Object.values(routes).some(
    (route) => isPage(route) || Object.values(route ?? {}).some(isPage),
  );
}

/** The descriptor of the socket that listens at an address. */
function listenerAt(address: string): number {
  for (let fd = 0; fd < SEARCH_LIMIT; fd++) if (listensAt(fd, address)) return fd;
  throw unexpectedRuntime(`does not listen on ${address}`);
}
