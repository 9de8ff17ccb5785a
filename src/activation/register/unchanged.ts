import type { Server } from "bun";
import type { EventEmitter } from "node:events";

import { becomeQuiet, drain } from "../adopt/drain.ts";
import { isWatched, pause, substitute } from "../adopt/event-loop.ts";
import { Idle } from "../adopt/idle.ts";
import { listen, type ListenOptions } from "../adopt/listen.ts";
import { keepWatch, watchOfListener } from "../adopt/listening.ts";
import { serve, type ServeOptions } from "../adopt/serve.ts";
import { udpSocket, type UdpSocketOptions } from "../adopt/udp.ts";
import { derive, overlay, runtime } from "../bun.ts";
import { messageOf, misconfigured, quote } from "../error.ts";
import { isHot } from "../hot.ts";
import { log, LogLevel } from "../journal/log.ts";
import * as libc from "../linux/libc.ts";
import { notify } from "../notify/notify.ts";
import { startWatchdog } from "../notify/watchdog.ts";
import { describe, formatDescriptor } from "../receive/describe.ts";
import { listenFds } from "../receive/listen-fds.ts";
import {
  type Claim,
  type Claimable,
  Claims,
  isClaimable,
  listClaimable,
  nameWanted,
  type Wanted,
} from "./claims.ts";
import { holdSigterm } from "./sigterm.ts";

/** Where a call of `Bun.serve`, `Bun.listen` or `Bun.udpSocket` is to listen. */
interface Place {
  readonly fd?: unknown;
  readonly port?: unknown;
  readonly hostname?: unknown;
  readonly unix?: unknown;
}

/** A session of `node:http2`. */
interface Session extends EventEmitter {
  close(): void;
}
/** How long the answers of sessions may take, and how often to look, in milliseconds. */
const SESSIONS_TIMEOUT = 5000;
const LOOK = 5;

interface Probe {
  readonly server: EventEmitter;
  readonly event: string;
}
type BunListener = ReturnType<typeof runtime.listen>;

const LOOPBACK = "127.0.0.1";
/** The port of `Bun.serve` if none is set. */
const DEFAULT_PORT = 3000;

/** When to warn of a socket that no call has claimed, in milliseconds from the start. */
const PATIENCE = 10_000;

/** Puts the servers that this program opens from now on onto the passed sockets. */
export function register(): void {
  const sockets: Claimable[] = [];
  for (const { fd, name } of listenFds()) {
    const socket = describe(fd);
    if (isClaimable(socket)) sockets.push({ fd, name, socket });
    else if ("family" in socket)
      warn(
        `descriptor ${fd} is ${formatDescriptor(socket)}, which no server can use: set ListenStream= and Accept=no in the socket unit`,
      );
  }
  const claims = new Claims(sockets, warn);
  // With no socket passed, nobody would start the program again.
  const timeout = sockets.length > 0 ? idleTimeout() : undefined;
  Object.assign(Bun, new Unchanged(claims, timeout).replacements);
  const remind = () => claims.left.length > 0 && warn(unclaimed(claims.left));
  if (sockets.length > 0) setTimeout(remind, PATIENCE).unref();
}

class Unchanged {
  readonly #native = { serve: Bun.serve, listen: Bun.listen, udpSocket: Bun.udpSocket };
  readonly #claims: Claims;
  /** True while the module's own functions call the replaced ones. */
  #isInside = false;
  #isReady = false;
  #isQuiet = false;
  readonly #servers = new Set<Server<unknown>>();
  readonly #listeners = new Set<object>();
  /** The open sessions of `node:http2`. */
  readonly #sessions = new Set<Session>();
  readonly #idle = new Idle();
  readonly #idleTimeout: number | undefined;
  readonly #end: () => void;

  /** @param idleTimeout In milliseconds; undefined for ever. */
  constructor(claims: Claims, idleTimeout: number | undefined) {
    this.#claims = claims;
    this.#idleTimeout = idleTimeout;
    this.#end = holdSigterm(
      () => this.#becomeQuiet(),
      () => void this.#exit(),
    );
  }

  readonly replacements = {
    serve: (options: ServeOptions, ...others: unknown[]): object => {
      const native = () => call<object>(this.#native.serve, options, ...others);
      const wanted = this.#wanted(options, defaultPort);
      if (wanted === undefined) return native();
      const claim = this.#claim(wanted);
      const make = (fd?: number) => {
        const server = this.#inside(() => serve(derive(options, { fd })));
        this.#track(server, this.#servers);
        return server;
      };
      if (claim === undefined) return this.#opened(make(), wanted);
      return this.#adopted(claim, this.#adopt(claim, make), ["stop", Symbol.dispose]);
    },

    listen: (options: ListenOptions, ...others: unknown[]): object => {
      const native = () => call<object>(this.#native.listen, options, ...others);
      const wanted = this.#wanted(options);
      if (wanted === undefined) return native();
      const claim = this.#claim(wanted);
      const probe = probing(options);
      if (probe !== undefined) {
        if (claim !== undefined) return this.#placeholder(claim, options, probe);
        onceHandled(probe, () => void this.#opened(probe, wanted));
        return native();
      }
      if (claim === undefined) return this.#opened(native(), wanted);
      const counted = this.#noticing(options, "open");
      const make = (fd: number) => this.#inside(() => listen({ ...counted, fd }));
      const listener = this.#adopt(claim, make);
      const { data }: { data?: unknown } = options;
      if (isEmitter(data)) data.on("session", this.#noteSession);
      this.#track(listener, this.#listeners);
      return this.#adopted(claim, listener, ["stop", Symbol.dispose]);
    },

    udpSocket: async (options: UdpSocketOptions, ...others: unknown[]): Promise<object> => {
      const native = () => call<Promise<object>>(this.#native.udpSocket, options, ...others);
      const wanted =
        "connect" in options ? undefined : this.#wanted(options, undefined, "datagram");
      if (wanted === undefined) return await native();
      const claim = this.#claim(wanted);
      if (claim === undefined) return this.#opened(await native(), wanted);
      const fd = duplicate(claim);
      try {
        const socket = await udpSocket({ ...this.#noticing(options, "data"), fd });
        return this.#adopted(claim, socket, ["close", Symbol.dispose]);
      } catch (error) {
        this.#giveUp(claim, fd);
        throw error;
      }
    },
  };

  /** Returns what a call asks for; undefined if it needs no passed socket, for example with any free port. */
  #wanted(
    { fd, port, hostname, unix }: Place,
    byDefault?: () => number,
    type: Wanted["type"] = "stream",
  ): Wanted | undefined {
    if (this.#isInside || typeof fd === "number") return undefined;
    if (typeof unix === "string" && unix !== "") return { type, at: unix.replace(/^\0/, "@") };
    const at = port === undefined || port === null ? byDefault?.() : Number(port);
    const host = typeof hostname === "string" ? hostname : undefined;
    return at !== undefined && at > 0 ? { type, at, hostname: host } : undefined;
  }

  #claim(wanted: Wanted): Claim | undefined {
    return (isHot() ? this.#claims.again(wanted) : undefined) ?? this.#claims.claim(wanted);
  }

  #inside<T>(make: () => T): T {
    this.#isInside = true;
    try {
      return make();
    } finally {
      this.#isInside = false;
    }
  }

  #adopt<T>(claim: Claim, make: (fd: number) => T): T {
    const fd = duplicate(claim);
    try {
      return make(fd);
    } catch (error) {
      this.#giveUp(claim, fd);
      throw error;
    }
  }

  #giveUp(claim: Claim, fd: number): void {
    if (fd !== claim.fd) libc.close(fd);
    this.#claims.release(claim);
  }

  /** Returns the same options, but one of the handlers notes that a client is there. */
  #noticing<T extends { readonly socket?: object }>(options: T, name: "open" | "data"): T {
    if (this.#idleTimeout === undefined) return options;
    const handler: unknown = Reflect.get(options.socket ?? {}, name);
    const notice = (...args: unknown[]): unknown => {
      this.#idle.mark();
      return typeof handler === "function" ? Reflect.apply(handler, undefined, args) : undefined;
    };
    return { ...options, socket: { ...options.socket, [name]: notice } };
  }

  /** Notes a server or listener, which SIGTERM and the idle time end. */
  #track<T extends object>(it: T, all: Set<T>): void {
    if (this.#idleTimeout !== undefined && !all.has(it)) this.#idle.add(it);
    all.add(it);
  }

  async #becomeQuiet(): Promise<void> {
    this.#isReady = true;
    notify({ stopping: true });
    for (const listener of this.#listeners) {
      const watch = watchOfListener(listener);
      if (watch && isWatched(watch)) pause(watch);
    }
    await Promise.all([...Array.from(this.#servers, becomeQuiet), this.#closeSessions()]).catch(
      warn,
    );
    this.#isQuiet = true;
  }

  readonly #noteSession = (session: Session): void => {
    this.#sessions.add(session);
    session.once("close", () => this.#sessions.delete(session));
  };

  /** Sends GOAWAY, and waits for the answers under way. */
  async #closeSessions(): Promise<void> {
    for (const session of this.#sessions) session.close();
    const end = performance.now() + SESSIONS_TIMEOUT;
    while (this.#sessions.size > 0 && performance.now() < end) await Bun.sleep(LOOK);
  }

  /** Ends a program that does not end itself. A second call meanwhile ends it at once. */
  async #exit(): Promise<void> {
    if (this.#isQuiet) {
      this.#isQuiet = false;
      await Promise.all(Array.from(this.#servers, (server) => drain(server)));
    }
    process.exit();
  }

  /** Gives the socket back for a later call when one of the methods in `ends` is called. */
  #adopted<T extends object>(claim: Claim, it: T, ends: readonly (string | symbol)[]): T {
    const release =
      (native: unknown) =>
      (...args: unknown[]): unknown => {
        this.#claims.release(claim);
        this.#listeners.delete(it);
        return typeof native === "function" ? Reflect.apply(native, it, args) : undefined;
      };
    overlay(it, Object.fromEntries(ends.map((end) => [end, release(Reflect.get(it, end))])));
    return this.#opened(it, claim.wanted);
  }

  /** Reports readiness with the last passed socket, or with the first server if none was passed. */
  #opened<T>(it: T, wanted: Wanted): T {
    const { left, sockets } = this.#claims;
    if (this.#isReady || left.length > 0) return it;
    this.#isReady = true;
    const where = sockets.length > 0 ? listClaimable(sockets) : nameWanted(wanted);
    notify({ ready: true, status: `Listening on ${where}` });
    startWatchdog();
    if (this.#idleTimeout !== undefined) void this.#idle.after(this.#idleTimeout).then(this.#end);
    return it;
  }

  /**
   * Gives a `net.Server` with no handler for connections, which only tests whether a port is free, a
   * socket on which nobody comes. It gets the passed one when it is given a handler.
   */
  #placeholder(claim: Claim, options: ListenOptions, probe: Probe): object {
    this.#claims.release(claim);
    const { at, hostname } = claim.wanted;
    const isPort = typeof at === "number";
    const name = `\0bun-listen-${crypto.randomUUID()}`;
    const place = isPort ? { hostname: LOOPBACK, port: 0 } : { unix: name };
    const listener = call<BunListener>(this.#native.listen, { ...options, ...place });
    const { getsockname, stop } = listener;
    const ignore = onceHandled(probe, () => {
      const late = this.#claim(claim.wanted);
      if (late === undefined) return;
      keepWatch(listener, substitute(late.fd, listener.fd));
      this.#track(listener, this.#listeners);
      this.#adopted(late, listener, ["stop"]);
    });
    return overlay(listener, {
      ...(isPort ? { port: at, hostname } : { unix: at }),
      getsockname(address: { address?: string; port?: number }) {
        getsockname.call(listener, address);
        Object.assign(address, { port: at }, hostname && { address: hostname });
      },
      stop(...args: [boolean?]) {
        ignore();
        stop.apply(listener, args);
      },
    });
  }
}

/** Calls `then` when the server gets a handler for connections. The function that it returns cancels that. */
function onceHandled({ server, event }: Probe, then: () => void): () => void {
  const added = (name: unknown) => {
    if (name !== event) return;
    ignore();
    then();
  };
  const ignore = () => void server.off("newListener", added);
  server.on("newListener", added);
  return ignore;
}

function unclaimed(left: readonly Claimable[]): string {
  const ports = "the port or path that the program listens on";
  return `nothing listens on ${listClaimable(left)} yet: set FileDescriptorName= in the socket unit to ${ports}, or do not pass this socket`;
}

/** Returns the descriptor to give to Bun, which closes it. The passed one stays open for a later call. */
function duplicate({ fd }: Claim): number {
  return isHot() ? fd : libc.duplicate(fd);
}

function call<T>(native: Function, ...args: readonly unknown[]): T {
  return Reflect.apply(native, Bun, args);
}

/** Returns `IDLE_TIMEOUT` in milliseconds; undefined if it is not set, or for ever. */
function idleTimeout(): number | undefined {
  const seconds = process.env["IDLE_TIMEOUT"];
  if (seconds === undefined || seconds === "infinity" || Number(seconds) === 0) return undefined;
  if (/^\d+(\.\d+)?$/.test(seconds)) return Number(seconds) * 1000;
  throw misconfigured(
    `IDLE_TIMEOUT is ${quote(seconds)}, which is not a number of seconds: set seconds, such as 60, or infinity`,
  );
}

/** The port that `Bun.serve` takes from the environment, or from Bun's own options. */
function defaultPort(): number {
  const { BUN_PORT, PORT, NODE_PORT } = process.env;
  const { execArgv } = process;
  const at = execArgv.indexOf("--port");
  const option = at < 0 ? execArgv.find((it) => it.startsWith("--port=")) : execArgv[at + 1];
  const given = [BUN_PORT, PORT, NODE_PORT, option?.replace("--port=", "")];
  return given.map(Number).find((port) => port > 0) ?? DEFAULT_PORT;
}

/** The `net.Server` that calls `Bun.listen`, if it handles no connections: no `event`. */
function probing({ data, tls }: { data?: unknown; tls?: unknown }): Probe | undefined {
  const event = tls ? "secureConnection" : "connection";
  if (!isEmitter(data) || data.listenerCount(event) > 0 || hasListener(data)) return undefined;
  return { server: data, event };
}

/** Whether a `net.Server` was made with a handler: Bun 1.4.0 keeps that among its options. */
function hasListener(server: object): boolean {
  return Object.getOwnPropertySymbols(server).some(
    (symbol) => typeof Object(Reflect.get(server, symbol)).connectionListener === "function",
  );
}

function isEmitter(it: unknown): it is EventEmitter {
  return typeof it === "object" && it !== null && "listenerCount" in it;
}

function warn(problem: unknown): void {
  log(LogLevel.warning, `socket-service/register: ${messageOf(problem)}`);
}
