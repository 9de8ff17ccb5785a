import type { Serve, Server } from "bun";

import { openDescriptors } from "./connections.ts";
import {
  describe,
  type Descriptor,
  endpoint,
  inetEndpoint,
  isListeningStream,
} from "../receive/describe.ts";
import { codeOf } from "../error.ts";
import {
  adopt as adoptListener,
  substitute,
  unexpectedRuntime,
  type Watched,
} from "./event-loop.ts";
import { isHot, kept, supersede } from "../hot.ts";
import * as libc from "../linux/libc.ts";
import { overlay, requireListening } from "./listen.ts";
import { derive, type Reported, requireBun } from "../bun.ts";
import { release } from "./standard.ts";

/** The options of `Bun.serve`, with a descriptor that wins over the address if there is one. */
export type ServeOptions<Data = undefined, Route extends string = string> = {
  readonly fd?: number | undefined;
} & Serve.Options<Data, Route>;

/** What `drain` has to know of a server. */
export interface Served {
  /** As the program gave them last, here or to `reload`. */
  options: object;
  /** How the event loop watches the passed socket, if there is one. */
  readonly watch: Watched | undefined;
  /** The open WebSockets. */
  readonly sockets: Set<Closable>;
  /** Gives the options to Bun anew, and those of each `reload` from then on, as `change` returns them. */
  readonly change: (change: (options: object) => object) => void;
  /** Aborted when the server begins to drain. */
  draining?: AbortController;
  drained?: Promise<boolean>;
}

const LOOPBACK = "127.0.0.1";
/** A sandbox allows no address family but AF_UNIX, or no bind(2), or no port is free. */
const UNAVAILABLE = ["EAFNOSUPPORT", "EPERM", "EACCES", "EADDRINUSE"];

interface Closable {
  close(code: number): void;
}

/**
 * `Bun.serve` with an `fd` that works: the number of a listening stream socket over IPv4, IPv6 or
 * AF_UNIX. Routes, WebSocket, streaming, `stop()` and all are Bun's own, at their own speed, and
 * the server reports the address of the passed socket as Bun would. The socket keeps its backlog,
 * and stays open in systemd when `stop()` closes our copy. With no `fd` it is `Bun.serve`, unchanged.
 *
 * Limitations: no HTTP/3, which needs a UDP socket. The socket is non-blocking from then on, for
 * all who share it, after `stop()` too: systemd sets the flag anew for each process that it starts.
 * A socket that is passed to several at once needs `NonBlocking=yes`, or the start of one blocks another.
 * Bun listens on a placeholder, which then gives way: for a socket over IP, a free port of the
 * loopback. If none is allowed (`RestrictAddressFamilies=AF_UNIX`) or free, `server.requestIP` returns
 * null. In development, a server of HTML pages answers a name of its host only if that is `hostname`.
 *
 * @param options As for `Bun.serve`. If `fd` is given, `hostname`, `port` and `unix` are ignored, and
 *   the number is closed: the server has the socket under another (under `bun --hot` it stays open).
 *   /dev/null replaces a descriptor from 0 to 2.
 * @throws {ActivationError} (78) if the descriptor is anything else; (71) if a system call fails, or
 *   this Bun does not keep its sockets as expected. Nobody was served then.
 * @throws {TypeError} if `http3` is asked for.
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
  requireBun();
  const sockets = new Set<Closable>();
  const recording = recordSockets(options, sockets);
  const { fd } = options;
  const [server, watch] = fd === undefined ? [Bun.serve(recording)] : adopt(fd, recording);
  const known = kept.served.get(server);
  if (known === undefined) return track(server, { options, watch, sockets });
  // Under `bun --hot` an earlier evaluation made it, and Bun has reloaded it.
  for (const socket of known.sockets) sockets.add(socket);
  Object.assign(known, { options, sockets });
  return server;
}

function adopt<Data, Route extends string>(passed: number, options: ServeOptions<Data, Route>) {
  requireListening(passed);
  if (options.http3 === true)
    throw new TypeError("HTTP/3 needs a UDP socket, which cannot be passed: leave http3 out");
  const address = describe(passed);
  // By its id Bun knows a server again: by default its address, here the same for all.
  const identity = options.id === undefined && isHot() ? { id: `fd-${passed}` } : {};
  const none = { fd: undefined, hostname: undefined, port: undefined, unix: undefined };
  const start = (where: object) => Bun.serve(derive(options, { ...none, ...identity, ...where }));
  const [server, at] = placeholder("port" in address, options, start);
  if (kept.served.has(server)) return [server, undefined] as const;
  try {
    const listener = descriptorAt(at);
    if (listener === undefined) throw unexpectedRuntime(`does not listen on ${at}`);
    const watch = substitute(passed, listener);
    if (!isHot()) release(passed);
    overlay(server, reported(server, address));
    supersede(passed, () => void server.stop());
    return [server, watch] as const;
  } catch (error) {
    void server.stop(true);
    throw error;
  }
}

/** Starts a server where nobody comes, and returns that place too, as `endpoint` has it. */
function placeholder<T extends Server<unknown>>(
  isInternet: boolean,
  { hostname, routes }: { hostname?: string | undefined; routes?: object },
  start: (at: object) => T,
) {
  const hosts = isInternet ? [LOOPBACK] : [];
  // Bun's development server answers to no other name than that with which it was started.
  if (isInternet && hostname !== undefined && hasPages(routes)) hosts.unshift(hostname);
  for (const host of hosts)
    try {
      const server: T & Reported = start({ hostname: host, port: 0 });
      if (host === LOOPBACK) return [server, `${host}:${server.port}`] as const;
      // Bun keeps this, so `reported` has to replace it.
      const { address } = server;
      if (typeof address === "object" && address) return [server, inetEndpoint(address)] as const;
    } catch (error) {
      // Any errno may be that of a name which is not one of this machine.
      if (host === LOOPBACK && !UNAVAILABLE.includes(codeOf(error))) throw error;
    }
  const name = `bun-serve-${crypto.randomUUID()}`;
  return [start({ unix: `\0${name}` }), `@${name}`] as const;
}

/** Whether one of the routes, or one of their methods, is an imported HTML page. */
function hasPages(routes: object = {}): boolean {
  const isPage = (value: unknown) =>
    Object.prototype.toString.call(value) === "[object HTMLBundle]";
  return Object.values(routes).some(
    (route) => isPage(route) || Object.values(route ?? {}).some(isPage),
  );
}

/** The descriptor of the socket that listens at `address`, if there is one. */
function descriptorAt(address: string): number | undefined {
  for (let fd = 0; fd < libc.SEARCH_LIMIT; fd++)
    if (isListeningStream(fd) && endpoint(describe(fd)) === address) return fd;
  return undefined;
}

/** How the event loop watches a server that opened its own socket; undefined if it has stopped. */
export function watchOwn({ address }: Reported): Watched | undefined {
  if (address === undefined || address === null) return undefined;
  const at = typeof address === "string" ? address : inetEndpoint(address);
  const isThere = (fd: number) => isListeningStream(fd) && endpoint(describe(fd)) === at;
  const fd = openDescriptors().find(isThere);
  return fd === undefined ? undefined : adoptListener(fd);
}

/** What a server on this socket reports, where it is not what it reports with the placeholder. */
function reported({ protocol, address: bound }: Reported, it: Descriptor): object {
  if (!("port" in it)) return { url: unixURL(endpoint(it)), address: endpoint(it) };
  const { address, port, family } = it;
  // As Bun reports its own default, which is all addresses.
  const hostname = address === "::" || address === "0.0.0.0" ? "localhost" : address;
  // A URL has no place for the interface of an address of one link.
  const host = hostname.includes(":") ? `[${hostname.replace(/%.*/, "")}]` : hostname;
  const url = new URL(`${protocol}://${host}:${port}/`);
  return typeof bound === "object" && bound?.address === address && bound.port === port
    ? { hostname, url }
    : { hostname, url, port, address: { address, family, port } };
}

/** As Bun writes them: unix:///run/example.socket, abstract://example/. */
function unixURL(path: string): URL {
  if (path.startsWith("@")) return new URL(`abstract://${encodeURIComponent(path.slice(1))}/`);
  if (path.startsWith("/"))
    return new URL(`unix://${encodeURI(path).replace(/[?#]/g, encodeURIComponent)}`);
  return new URL(`unix://${path.split("/").map(encodeURIComponent).join("/")}`);
}

/** Keeps what `drain` has to know, and what cannot be read from a server. */
function track<Data>(server: Server<Data>, start: Pick<Served, "options" | "watch" | "sockets">) {
  const native = server.reload;
  let adapt = (options: object) => options;
  const reload = (options: object) => {
    Reflect.apply(native, server, [recordSockets(adapt(options), served.sockets)]);
    served.options = options;
    return server;
  };
  const served: Served = {
    ...start,
    change(change) {
      adapt = change;
      reload(served.options);
    },
  };
  kept.served.set(server, served);
  return overlay(server, { reload });
}

/** The same options, whose open WebSockets are in a set. */
function recordSockets<Options extends object>(options: Options, sockets: Set<Closable>): Options {
  const { websocket }: { websocket?: { open?: Function; close?: Function } | null } = options;
  // Build tools write null, which Bun takes. What it does not take, it refuses better than we would.
  if (typeof websocket !== "object" || websocket === null) return options;
  const { open, close } = websocket;
  const handlers = {
    open(socket: Closable): unknown {
      sockets.add(socket);
      return open?.(socket);
    },
    close(socket: Closable, ...why: unknown[]): unknown {
      sockets.delete(socket);
      return close?.(socket, ...why);
    },
  };
  return derive(options, { websocket: derive(websocket, handlers) });
}
