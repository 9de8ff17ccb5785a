import type { Server } from "bun";

import { reportedAddress } from "../adopt/address.ts";
import { connectionsAt } from "../adopt/connections.ts";
import { becomeQuiet, drain } from "../adopt/drain.ts";
import {
  exchange,
  isWatched,
  pauseForGood,
  substitute,
  unwatch,
  watchListener,
} from "../adopt/event-loop.ts";
import { supersede, wasTaken } from "../adopt/handover.ts";
import { Idle } from "../adopt/idle.ts";
import { listen, type ListenOptions } from "../adopt/listen.ts";
import { keepListening, listeningOf } from "../adopt/listening.ts";
import { serve, type ServeOptions } from "../adopt/serve.ts";
import { servedBy, watchOwn } from "../adopt/served.ts";
import { udpSocket, type UdpSocketOptions } from "../adopt/udp.ts";
import { derive, isHandler, overlay, runtime } from "../bun.ts";
import { messageOf, misconfigured, printable, quote } from "../error.ts";
import { isHot } from "../hot.ts";
import { log, LogLevel } from "../journal/log.ts";
import * as libc from "../linux/libc.ts";
import { notify, notifyEnabled, wasReady } from "../notify/notify.ts";
import { startWatchdog } from "../notify/watchdog.ts";
import { describe, formatDescriptor } from "../receive/describe.ts";
import { listenFds, reservePassed } from "../receive/listen-fds.ts";
import { type Claim, type Claimable, Claims, isClaimable } from "./claims.ts";
import { listClaimable, nameWanted, type Wanted } from "./claims.ts";
import { isNetServer, onceHandled, type Probe, probing } from "./probe.ts";
import { Sessions } from "./sessions.ts";
import { holdSigterm } from "./sigterm.ts";
import { defaultPort, type Place, placeholder, reporting, wantedBy } from "./wanted.ts";

type BunListener = ReturnType<typeof runtime.listen>;

/** How long answers may take after SIGTERM if the program has no handler, in milliseconds. */
const END_TIMEOUT = 10_000;

/** The methods that end a server or a listener (`stop`), or a socket for datagrams (`close`). */
const ENDS = ["stop", "close", Symbol.dispose];

/** When to warn of a socket that no call has claimed, in milliseconds from the start. */
const REMIND_AFTER = 10_000;

/** Puts the servers that this program opens from now on onto the passed sockets. */
export function register(): void {
  // Children that the program starts before it listens must not get the address of systemd.
  notifyEnabled();
  const sockets: Claimable[] = [];
  for (const { fd, name } of listenFds()) {
    const socket = describe(fd);
    if (isClaimable(socket)) sockets.push({ fd, name, socket });
    else if ("family" in socket)
      warn(
        `descriptor ${fd} is ${formatDescriptor(socket)}, which no server can use: set ListenStream= and Accept=no in the socket unit`,
      );
  }
  reservePassed();
  const claims = new Claims(sockets, warn, wasTaken);
  // With no socket passed, nobody would start the program again.
  const timeout = sockets.length > 0 ? idleTimeout() : Infinity;
  const { replacements } = new Unchanged(claims, timeout);
  for (const [name, replacement] of Object.entries(replacements)) {
    const native = Reflect.get(Bun, name);
    // Bun throws the error for no object.
    const choose = (options: unknown, ...others: unknown[]) =>
      call(typeof options === "object" && options ? replacement : native, options, ...others);
    Object.assign(Bun, { [name]: choose });
  }
  const remind = () => claims.left.length > 0 && warn(unclaimed(claims.left));
  if (sockets.length > 0) setTimeout(remind, REMIND_AFTER).unref();
}

class Unchanged {
  readonly #native = { serve: Bun.serve, listen: Bun.listen, udpSocket: Bun.udpSocket };
  readonly #claims: Claims;
  #hasReported = false;
  #isQuiet = false;
  /** When the connections of a program that has no handler of SIGTERM are cut off. */
  #deadline = 0;
  /** Every server, listener and socket that is open. */
  readonly #open = new Set<object>();
  readonly #servers = new Set<Server<unknown>>();
  /** The listeners of `node:http2` on passed sockets. */
  readonly #http2 = new WeakSet<object>();
  readonly #sessions = new Sessions();
  /** The server that got its socket by this guess. */
  readonly #guessed = new WeakMap<Claim, object>();
  /** undefined if the program never ends because it is idle. */
  readonly #idle: Idle | undefined;
  readonly #idleTimeout: number;
  readonly #end: () => void;

  /** @param idleTimeout In milliseconds. */
  constructor(claims: Claims, idleTimeout: number) {
    this.#claims = claims;
    this.#idle = idleTimeout === Infinity ? undefined : new Idle();
    this.#idleTimeout = idleTimeout;
    this.#end = holdSigterm(
      () => this.#becomeQuiet(),
      () => void this.#exit(),
    );
  }

  readonly replacements = {
    serve: (options: ServeOptions, ...others: unknown[]): object => {
      const wanted = this.#wanted(options, "stream", defaultPort);
      if (wanted === undefined) return call(this.#native.serve, options, ...others);
      const claim = this.#claim(wanted);
      const make = (fd?: number) => this.#natively(() => serve(derive(options, { fd })));
      const server = claim ? this.#onDuplicate(claim, make) : make();
      this.#servers.add(server);
      // A server that was stopped may still answer requests.
      const forget = () => this.#servers.delete(server);
      atEnd(server, undefined, (stopped) => void Promise.resolve(stopped).then(forget));
      return claim ? this.#listening(claim, server) : this.#own(server, wanted);
    },

    listen: (options: ListenOptions, ...others: unknown[]): object => {
      const native = () => call<object>(this.#native.listen, options, ...others);
      const wanted = this.#wanted(options, "stream");
      if (wanted === undefined) return native();
      const probe = probing(options);
      if (probe !== undefined) return this.#probing(probe, options, wanted);
      const claim = this.#claim(wanted);
      const { data }: { data?: unknown } = options;
      if (isNetServer(data)) this.#sessions.watch(data);
      if (claim === undefined) return this.#own(native(), wanted);
      // If the program has called `listen` of the module, that counts the connections already.
      const place = (fd: number) => derive(options, { fd, maxConnections: undefined });
      const make = (fd: number) => this.#natively(() => listen(place(fd)));
      const listener = this.#listening(claim, this.#onDuplicate(claim, make));
      if (isNetServer(data) && "updateSettings" in data) this.#http2.add(listener);
      // The primary process of node:cluster listens for its workers, which compare the ports.
      return isNetServer(data) && Reflect.get(data, "pauseOnConnect")
        ? reporting(listener, wanted)
        : listener;
    },

    udpSocket: (options: UdpSocketOptions, ...others: unknown[]): Promise<object> => {
      const native = () => call<Promise<object>>(this.#native.udpSocket, options, ...others);
      const isClient = "connect" in options && options.connect;
      const wanted = isClient ? undefined : this.#wanted(options, "datagram");
      if (wanted === undefined) return native();
      const claim = this.#claim(wanted);
      if (claim === undefined) return native().then((it) => this.#own(it, wanted));
      const fd = this.#duplicate(claim);
      const noticing = derive(this.#noticing(options, "data"), { fd });
      return this.#natively(() => udpSocket(noticing)).then(
        (socket) => this.#opened(socket, wanted, claim),
        (error) => {
          this.#giveUp(claim, fd);
          throw error;
        },
      );
    },
  };

  /** Returns what a call asks for; undefined if it needs no passed socket. */
  #wanted(place: Place, type: Wanted["type"], byDefault?: () => number): Wanted | undefined {
    if (typeof place.fd !== "number") return wantedBy(place, type, byDefault);
    const passed = this.#claims.wantedOf(place.fd);
    // A call by `listen` of the module does not count: that number holds its placeholder.
    return passed && isClaimable(describe(place.fd)) ? passed : undefined;
  }

  #claim(wanted: Wanted): Claim | undefined {
    const guess = this.#claims.wrongGuess(wanted);
    if (guess && !isHot()) this.#moveAway(guess);
    const claim =
      (isHot() ? this.#claims.reclaim(wanted) : undefined) ?? this.#claims.claim(wanted);
    if (claim === undefined && wanted.fd !== undefined)
      throw misconfigured(`descriptor ${wanted.fd} has a server already: listen on it once`);
    return claim;
  }

  /** Has the server that got a socket by a guess open its own port instead, unless that is in use. */
  #moveAway(guess: Claim): void {
    const it = this.#guessed.get(guess);
    const served = it && servedBy(it);
    const { watch } = served ?? (it && listeningOf(it)) ?? {};
    if (!it || !watch || !isWatched(watch)) return;
    const own = this.#openOwn(guess.wanted, served ? "serve" : "listen");
    if (own === undefined) return;
    const opened = "fd" in own ? watchListener(own.fd) : watchOwn(own);
    if (opened) {
      exchange(watch, opened.fd);
      unwatch(opened);
    }
    const { hostname, port } = own;
    overlay(
      it,
      served ? reportedAddress(it, describe(watch.fd)) : { hostname, port, unix: undefined },
    );
    void own.stop(true);
    this.#claims.release(guess);
    this.#idle?.addOwn(it);
  }

  /**
   * Opens the port that a call asks for, in the way of that call: `Bun.serve` has the kernel hold a client
   * back until it speaks. A path is not opened, because Bun removes it at the stop.
   */
  #openOwn({ at, hostname, reusePort }: Wanted, way: "serve" | "listen") {
    if (typeof at === "string") return undefined;
    const place = { port: at, hostname, reusePort };
    try {
      return way === "serve"
        ? call<Server<unknown>>(this.#native.serve, { ...place, fetch: () => new Response() })
        : call<BunListener>(this.#native.listen, { ...place, socket: { data() {} } });
    } catch {
      // Then there is a warning of the guess.
      return undefined;
    }
  }

  /** Calls a function of the module with Bun's own functions: not with ours, nor with a program's. */
  #natively<T>(make: () => T): T {
    const { serve, listen, udpSocket } = Bun;
    Object.assign(Bun, this.#native);
    try {
      return make();
    } finally {
      Object.assign(Bun, { serve, listen, udpSocket });
    }
  }

  /** Makes a server or a listener on a duplicate of the claimed descriptor. */
  #onDuplicate<T>(claim: Claim, make: (fd: number) => T): T {
    const fd = this.#duplicate(claim);
    try {
      return make(fd);
    } catch (error) {
      this.#giveUp(claim, fd);
      throw error;
    }
  }

  /** Returns the descriptor to give to Bun, which closes it. The passed one stays open for a later call. */
  #duplicate(claim: Claim): number {
    if (isHot()) return claim.fd;
    try {
      return libc.duplicate(claim.fd);
    } catch (error) {
      this.#claims.release(claim);
      throw error;
    }
  }

  #giveUp(claim: Claim, fd: number): void {
    if (fd !== claim.fd) libc.close(fd);
    this.#claims.release(claim);
  }

  /** Returns the same options, but one of the handlers notes that a client is there. */
  #noticing<T extends { readonly socket?: object }>(options: T, name: "open" | "data"): T {
    const idle = this.#idle;
    if (idle === undefined) return options;
    const { socket = {} } = options;
    // Bun throws the error for these.
    if (typeof socket !== "object" || socket === null) return options;
    const handler: unknown = Reflect.get(socket, name);
    if (!isHandler(handler)) return options;
    const notice = function (this: unknown, ...args: unknown[]): unknown {
      idle.mark();
      return typeof handler === "function" ? Reflect.apply(handler, this, args) : undefined;
    };
    return derive(options, { socket: derive(socket, { [name]: notice }) });
  }

  /** Notes a server, listener or socket that was not passed: nobody would start the program for that. */
  #own<T extends object>(it: T, wanted: Wanted): T {
    // Fastify listens on each address of localhost.
    const isTwin = servedBy(it) !== undefined && this.#claims.isTwin(wanted);
    if (isTwin) this.#idle?.add(it, watchOwn(it));
    else this.#idle?.addOwn(it);
    return this.#opened(it, wanted);
  }

  /** Notes a server or listener on a passed socket, which SIGTERM and the idle time end. */
  #listening<T extends object>(claim: Claim, it: T): T {
    this.#idle?.add(it);
    return this.#opened(it, claim.wanted, claim);
  }

  async #becomeQuiet(): Promise<void> {
    this.#hasReported = true;
    this.#deadline = performance.now() + END_TIMEOUT;
    notify({ stopping: true });
    await allOf([
      ...Array.from(this.#open, (it) => Promise.try(stopAccepting, it)),
      ...Array.from(this.#servers, becomeQuiet),
      this.#sessions.close(this.#http2Connections),
    ]);
    this.#isQuiet = true;
  }

  /** How many connections the servers of `node:http2` on passed sockets have. */
  readonly #http2Connections = (): number => {
    const watches = [...this.#open]
      .filter((it) => this.#http2.has(it))
      .map((listener) => listeningOf(listener)?.watch);
    return watches.flatMap((watch) => (watch ? connectionsAt(watch.address) : [])).length;
  };

  /** Ends a program that does not end itself. A second call meanwhile ends it at once. */
  async #exit(): Promise<void> {
    if (this.#isQuiet) {
      this.#isQuiet = false;
      const timeout = Math.max(0, this.#deadline - performance.now());
      await allOf(Array.from(this.#servers, (server) => drain(server, { timeout })));
    }
    process.exit();
  }

  /** Notes what is open. At its end, it gives the claimed socket back, for a later call. */
  #opened<T extends object>(it: T, wanted: Wanted, claim?: Claim): T {
    this.#open.add(it);
    if (claim?.isGuess) this.#guessed.set(claim, it);
    // One that is closed at once has only tested whether a port is free.
    setImmediate(() => this.#open.has(it) && this.#report(wanted));
    return atEnd(it, () => {
      if (claim) this.#claims.release(claim);
      this.#open.delete(it);
      this.#idle?.remove(it);
    });
  }

  /** Reports readiness with the last passed socket, or with the first server if none was passed. */
  #report(wanted: Wanted): void {
    const { left, sockets } = this.#claims;
    if (this.#hasReported || left.length > 0) return;
    this.#hasReported = true;
    const where = sockets.length > 0 ? listClaimable(sockets) : printable(nameWanted(wanted), "?");
    if (!wasReady()) notify({ ready: true, status: `Listening on ${where}` });
    startWatchdog();
    // The program itself ends when the sockets are idle that it gave to a function of the module.
    if (sockets.some(({ fd }) => wasTaken(fd))) return;
    void this.#idle?.after(this.#idleTimeout).then(this.#end);
  }

  /**
   * Serves a `net.Server` with no handler for connections, which only tests whether a port is free. It gets
   * the passed socket when it is given a handler.
   */
  #probing(probe: Probe, options: ListenOptions, wanted: Wanted): object {
    // A test alone moves no server away.
    const isGuessed = !isHot() && this.#claims.wrongGuess(wanted) !== undefined;
    const claim = isGuessed ? undefined : this.#claim(wanted);
    if (claim) this.#claims.release(claim);
    // Bun cannot open what the passed socket is bound to, and would say that it is in use.
    const isPlaceholder = isGuessed || claim?.isBound === true;
    const noticing = this.#noticing(options, "open");
    const place = isPlaceholder ? derive(noticing, placeholder(wanted)) : noticing;
    const listener = call<BunListener>(this.#native.listen, place);
    const ignore = onceHandled(probe, () => {
      const late = claim || isGuessed ? this.#claim(wanted) : undefined;
      if (late === undefined) return void (isPlaceholder || this.#own(listener, wanted));
      const watch = substitute(late.fd, listener.fd);
      // The handlers of `noticing` note each client already.
      keepListening(listener, { watch, onUse: new Set() });
      supersede(late.fd, () => listener.stop(), watch);
      this.#listening(late, listener);
    });
    atEnd(listener, ignore);
    return isPlaceholder ? reporting(listener, wanted) : listener;
  }
}

/** Calls `before` and `after` at each call of a method that ends `it`, the latter with its result. */
function atEnd<T extends object>(it: T, before?: () => void, after?: (result: unknown) => void): T {
  const ending =
    (native: unknown) =>
    (...args: unknown[]): unknown => {
      before?.();
      const result = typeof native === "function" ? Reflect.apply(native, it, args) : undefined;
      after?.(result);
      return result;
    };
  const ends = ENDS.filter((end) => end in it);
  return overlay(it, Object.fromEntries(ends.map((end) => [end, ending(Reflect.get(it, end))])));
}

/** Waits for all. A failure is a warning, and the others go on. */
async function allOf(ends: readonly Promise<unknown>[]): Promise<void> {
  for (const end of await Promise.allSettled(ends)) if (end.status === "rejected") warn(end.reason);
}

function stopAccepting(listener: object): void {
  const watch = listeningOf(listener)?.watch;
  if (watch) pauseForGood(watch);
}

function unclaimed(left: readonly Claimable[]): string {
  return `no server of this program has taken ${listClaimable(left)} yet: set FileDescriptorName= in the socket unit to the port or path that the program listens on, or do not pass this socket`;
}

function call<T>(native: Function, ...args: readonly unknown[]): T {
  return Reflect.apply(native, Bun, args);
}

/** Returns `IDLE_TIMEOUT` of the unit in milliseconds; Infinity if it is not set. */
function idleTimeout(): number {
  // A `.env` file is the program's, where the name may mean something else.
  const seconds = libc.startVariable("IDLE_TIMEOUT");
  if (seconds === undefined || seconds === "infinity" || Number(seconds) === 0) return Infinity;
  if (/^\d+(\.\d+)?$/.test(seconds)) return Number(seconds) * 1000;
  throw misconfigured(
    `IDLE_TIMEOUT is ${quote(seconds)}, which is not a number of seconds: set seconds, such as 60, or infinity`,
  );
}

function warn(problem: unknown): void {
  log(LogLevel.warning, `socket-service/register: ${messageOf(problem)}`);
}
