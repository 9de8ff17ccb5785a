/* The servers of `serve`, and the state of each that `drain` needs. */
import type { Server } from "bun";

import { derive, isHandler, overlay, type Reported } from "../bun.ts";
import { perProcess } from "../hot.ts";
import { formatEndpoint } from "../receive/describe.ts";
import { type Answers, reloaded } from "./answers.ts";
import { openDescriptors } from "./connections.ts";
import { isWatched, unexpectedRuntime, watchListener, type Watched } from "./event-loop.ts";
import { listensAt } from "./listening.ts";

/** State that cannot be read from a server. */
export interface Served {
  /** The options that Bun uses: `reload` keeps some of the former ones. */
  options: Answers;
  /** How the event loop watches the passed socket, if there is one. */
  readonly watch: Watched | undefined;
  /** The open WebSockets. */
  sockets: Set<Closable>;
  /** Called for each request, once `isNoticing`. */
  readonly onUse: Set<() => void>;
  isNoticing?: boolean;
  /** Whether a connection can be a session of HTTP/2. Bun says GOAWAY only when the server stops. */
  readonly isHttp2: boolean;
  /** Gives Bun the options as `change` returns them: now, and at each later `reload`. Changes add up. */
  readonly change: (change: (options: Answers) => Answers) => void;
  /** Takes the options of another evaluation, under `bun --hot`. The changes stay in force. */
  readonly renew: (start: Start) => void;
}

type Start = Pick<Served, "options" | "watch" | "sockets">;

interface Closable {
  close(code: number): void;
}

const servers = perProcess("servers", () => new WeakMap<object, Served>());

/** Returns what is known of a server; undefined if `serve` did not make it. */
export function servedBy(server: object): Served | undefined {
  return servers.get(server);
}

/** Keeps what is known of a server. Under `bun --hot`, Bun returns that of an earlier evaluation. */
export function keep<Data>(server: Server<Data>, start: Start): Server<Data> {
  const known = servers.get(server);
  if (known !== undefined) {
    known.renew(start);
    return server;
  }
  const native = server.reload;
  const changes: ((options: Answers) => Answers)[] = [];
  const reload = (given: Answers) => {
    const options = reloaded(served.options, given);
    const changed = changes.reduce((before, change) => change(before), options);
    Reflect.apply(native, server, [recordSockets(changed, served.sockets)]);
    served.options = options;
    return server;
  };
  const served: Served = {
    ...start,
    isHttp2: Boolean(Reflect.get(start.options, "http2")),
    onUse: new Set(),
    change(change) {
      changes.push(change);
      reload(served.options);
    },
    renew({ options, sockets }) {
      for (const socket of served.sockets) sockets.add(socket);
      served.sockets = sockets;
      // Bun has the handlers of the new evaluation already.
      if (changes.length > 0) reload(options);
      else served.options = reloaded(served.options, options);
    },
  };
  servers.set(server, served);
  return overlay(server, { reload });
}

/**
 * Returns how the event loop watches the socket of a server; undefined if the server has stopped.
 *
 * @throws {TypeError} if another server of this process has the same address (`reusePort`).
 */
export function watchOf(server: Reported & object, served: Served): Watched | undefined {
  const watch = served.watch ?? watchOwn(server);
  return watch !== undefined && isWatched(watch) ? watch : undefined;
}

/** The same for a server that opened its own socket. */
export function watchOwn({ address }: Reported): Watched | undefined {
  if (address === undefined || address === null) return undefined;
  const at = typeof address === "string" ? address.replace("\0", "@") : formatEndpoint(address);
  const [fd, ...others] = openDescriptors().filter((one) => listensAt(one, at));
  if (fd === undefined) throw unexpectedRuntime(`does not listen on ${at}`);
  if (others.length > 0)
    throw new TypeError(
      `more than one server of this process listens on ${at}, so their clients cannot be told apart: give each one its own address`,
    );
  return watchListener(fd);
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
  if (!isHandler(open) || !isHandler(close)) return options;
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
