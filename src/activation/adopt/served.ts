/* The servers of `serve`, and the state of each that `drain` needs. */
import type { Server } from "bun";

import { derive, overlay, type Reported } from "../bun.ts";
import { perProcess } from "../hot.ts";
import { describe, formatAddress, formatEndpoint, isListeningStream } from "../receive/describe.ts";
import { openDescriptors } from "./connections.ts";
import { isWatched, watchListener, type Watched } from "./event-loop.ts";

/** State that cannot be read from a server. */
export interface Served {
  /** The options that the program gave last, to `serve` or to `reload`. */
  options: object;
  /** How the event loop watches the passed socket, if there is one. */
  readonly watch: Watched | undefined;
  /** The open WebSockets. */
  sockets: Set<Closable>;
  /** Gives Bun the options as `change` returns them: now, and at each later `reload`. */
  readonly change: (change: (options: object) => object) => void;
  /** Takes the options of another evaluation, under `bun --hot`. A change stays in force. */
  readonly renew: (of: Pick<Served, "options" | "sockets">) => void;
  /** Aborted when the server begins to drain. */
  draining?: AbortController;
}

interface Closable {
  close(code: number): void;
}

const servers = perProcess("servers", () => new WeakMap<object, Served>());

/** Returns what is known of a server; undefined if `serve` did not make it. */
export function servedBy(server: object): Served | undefined {
  return servers.get(server);
}

/** Keeps what is known of a new server. */
export function keep<Data>(
  server: Server<Data>,
  start: Pick<Served, "options" | "watch" | "sockets">,
): Server<Data> {
  const native = server.reload;
  let adapt: ((options: object) => object) | undefined;
  const reload = (options: object) => {
    Reflect.apply(native, server, [recordSockets(adapt?.(options) ?? options, served.sockets)]);
    served.options = options;
    return server;
  };
  const served: Served = {
    ...start,
    change(change) {
      adapt = change;
      reload(served.options);
    },
    renew({ options, sockets }) {
      Object.assign(served, { options, sockets });
      // Bun has the handlers of the new evaluation already.
      if (adapt !== undefined) reload(options);
    },
  };
  servers.set(server, served);
  return overlay(server, { reload });
}

/** Returns how the event loop watches the socket of a server; undefined if the server has stopped. */
export function watchOf(server: Reported & object, { watch = watchOwn(server) }: Served) {
  return watch !== undefined && isWatched(watch) ? watch : undefined;
}

/** The same for a server that opened its own socket. */
function watchOwn({ address }: Reported): Watched | undefined {
  if (address === undefined || address === null) return undefined;
  const at = typeof address === "string" ? address : formatEndpoint(address);
  const isThere = (fd: number) => isListeningStream(fd) && formatAddress(describe(fd)) === at;
  const fd = openDescriptors().find(isThere);
  return fd === undefined ? undefined : watchListener(fd);
}

/** The same options, whose open WebSockets are in a set. */
export function recordSockets<Options extends object>(
  options: Options,
  sockets: Set<Closable>,
): Options {
  const { websocket }: { websocket?: { open?: Function; close?: Function } | null } = options;
  // Build tools write null, which Bun accepts. For other values, the error of Bun is better than ours.
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
