import type { Server } from "bun";
import type { Server as HttpServer } from "node:http";

import { overlay } from "../bun.ts";
import { wrongNumber } from "../error.ts";
import { perProcess } from "../hot.ts";
import type { Talk } from "../linux/libc.ts";
import { type Connection, Connections } from "./connections.ts";
import { pause, type Watched } from "./event-loop.ts";
import { type Served, servedBy, watchOf } from "./served.ts";
import { PATIENCE, Requests } from "./requests.ts";
import { withClose } from "./with-close.ts";

/** The options of {@link drain}. */
export interface DrainOptions {
  /**
   * How long clients are still served as before, in milliseconds. Set it to more than the longest
   * pause of a client between two requests: then each client learns that its connection ends. Default:
   * 1000.
   */
  readonly grace?: number;
  /** Time after which open connections are cut off, in milliseconds from the call. Default: 10,000. */
  readonly timeout?: number;
  /** Cuts off the open connections when it is aborted, for example by a second SIGTERM. */
  readonly signal?: AbortSignal;
}

/** How long to wait for a moment in which nobody asks, in milliseconds. */
const LULL = 200;
/**
 * The longest to wait for first requests, or for more of one, in milliseconds. On a machine with more
 * work than processors, a TLS handshake takes longer than PATIENCE.
 */
const STARVED = 2000;
/** How often to look for what Bun does not report, in milliseconds. */
const LOOK = 1;

/**
 * Ends a server without losing a request, in four phases:
 *
 * 1. Announce: from the call on, each response says `Connection: close`, and upgrades get 503, except
 *    those of an `http.Server`. This phase waits for nothing.
 * 2. Grace: clients are served as before, until `grace` has passed after the last request that was
 *    under way at the call. This phase ends at the latest after half of `timeout`, or after `grace` if
 *    that is longer. Then `drain` waits up to 200 milliseconds for a moment without a request under way.
 * 3. Linger: the server accepts no more. New clients wait in the queue of the passed socket, for the
 *    next process. This phase waits for the first request of each accepted connection: up to 500
 *    milliseconds, and up to 2,000 while its TLS handshake or parts of the request keep coming. Then the
 *    connection is cut off. If a part of the request has come, the result is false, with these
 *    exceptions. Over TLS and AF_UNIX, it can be true. So it can while as many answers are still being
 *    sent. On a connection that has asked before, it can also be true if as many WebSockets are open, or
 *    if the part came more than two seconds before the call. If there is no such connection, this phase
 *    takes no time.
 * 4. Stop: the server waits until each request is answered and each response is sent. It closes
 *    WebSockets with 1001, and stops.
 *
 * Limitations:
 *
 * - No header can be added to the responses of directory routes and HTML bundles, and to the responses
 *   of requests that were under way at the call.
 * - Bun resets a client that still sends when a response says close. So a response waits up to 500
 *   milliseconds until the body of its request has come. It does not say close if the body takes longer.
 *   Memory holds the part of a body that the handler has not read. During a drain, `request.blob()` has
 *   no type. In Bun 1.4.0, `Bun.write(path, request)` never ends.
 * - A response that is a part of a file (`Bun.file(path).slice()`) has the status 200 instead of 206.
 * - Bun can bundle an HTML page at its first request. `drain` and `whenIdle` discard such bundles, like a
 *   new process: until the next request for the page, its scripts give 404. Bundle with `bun build`
 *   before the start.
 * - With `http2`, a session does not learn of the drain before the server stops (GOAWAY).
 * - A request can be lost if its client pauses for longer than `grace` (RFC 9112, 9.5), or sends it
 *   behind one whose response says close (9.3.2).
 * - Over TLS and AF_UNIX, with a `grace` of less than 500 milliseconds, phase 3 also waits for
 *   connections that have asked before.
 * - A stream that never ends keeps phase 2 going for half of `timeout`. After that, new clients wait, and
 *   at `timeout` the stream is cut off. {@link draining} tells a stream to end. Over AF_UNIX, short
 *   streams that begin after the call keep phase 2 going as well, if one is always being sent.
 * - With no passed socket, nobody reaches a server that has stopped. The clients of several servers that
 *   this process has on one address (`reusePort`) cannot be told apart: the promise is rejected. For
 *   passed sockets (`ReusePort=yes`), the clients of one server count for the others, too.
 *
 * Before the call, a request costs nothing.
 *
 * @param server A server of `serve`, or an `http.Server` in a program with the preload
 *   `socket-service/register`. A second call for it returns the promise of the first one.
 * @param options `grace` and `timeout` in milliseconds, and `signal`: see {@link DrainOptions}.
 * @returns A promise: false if a request or an answer was cut off, and true otherwise. For a server that
 *   has stopped already: true if it has answered all of its requests by `timeout`.
 * @throws {TypeError} if `serve` did not make the server, or if `grace` or `timeout` is not a number.
 * @throws {RangeError} if `grace` or `timeout` is a number below 0, or `NaN`.
 *
 * @example
 * ```ts
 * process.on("SIGTERM", async () => {
 *   await drain(server);
 *   process.exit();
 * });
 * ```
 */
export function drain(
  server: Server<unknown> | HttpServer,
  { grace = 1000, timeout = 10_000, signal }: DrainOptions = {},
): Promise<boolean> {
  const drain = drainOf(server);
  for (const [name, value] of Object.entries({ grace, timeout }))
    if (!(typeof value === "number" && value >= 0))
      throw wrongNumber(name, value, "milliseconds from 0 on");
  return drain.run({ grace, timeout, signal });
}

/**
 * Runs the first three phases of {@link drain}, and waits until the responses are sent. The grace ends as
 * soon as no connection is open. After five seconds, a response that is still being sent is not waited
 * for, because it may be an endless stream. A later `drain` runs the last phase.
 */
export async function becomeQuiet(server: Server<unknown>): Promise<void> {
  await drainOf(server).becomeQuiet({ grace: 1000, timeout: 10_000 });
}

/**
 * Returns a signal that is aborted when {@link drain} of a server begins. It is for responses that do
 * not end by themselves, such as streams of events. In a response that begins later, it is aborted
 * already.
 *
 * @param server A server of `serve`, or an `http.Server` in a program with the preload
 *   `socket-service/register`.
 * @returns The signal: the same one at each call for a server.
 * @throws {TypeError} if `serve` did not make the server.
 *
 * @example
 * ```ts
 * async function* ticks() {
 *   while (!draining(server).aborted) {
 *     yield `data: ${Date.now()}\n\n`;
 *     await Bun.sleep(1000);
 *   }
 * }
 * ```
 */
export function draining(server: Server<unknown> | HttpServer): AbortSignal {
  return drainOf(server).draining.signal;
}

interface Limits {
  readonly grace: number;
  readonly timeout: number;
  readonly signal?: AbortSignal | undefined;
}

const drains = perProcess("drains", () => new WeakMap<object, Drain>());

/** Returns the drain of a server, which may not have begun. */
function drainOf(given: Server<unknown> | HttpServer): Drain {
  // `node:http` keeps the server of Bun under a symbol.
  const inside = Object.getOwnPropertySymbols(given).map((symbol) => Reflect.get(given, symbol));
  for (const server of [given, ...inside]) {
    const served = typeof server === "object" && server !== null && servedBy(server);
    if (!served) continue;
    const drain = drains.get(server) ?? new Drain(server, served);
    drains.set(server, drain);
    return drain;
  }
  throw new TypeError(
    "getConnections" in given
      ? "this http.Server has no passed socket: let it listen first, in a program with the preload socket-service/register"
      : "serve did not make this server: use serve instead of Bun.serve",
  );
}

class Drain {
  /** Aborted when it begins. */
  readonly draining = new AbortController();
  #result: Promise<boolean> | undefined;
  /** The first three phases, once they have begun. */
  #phases: Promise<Connections | undefined> | undefined;
  #hasCutOff = false;
  /** Whether requests went on coming in pieces for too long. */
  #hasGivenUp = false;
  #signal: AbortSignal | undefined;
  /** In milliseconds. */
  #grace = 0;
  /** When the grace ends at the latest: requests that come until then can be answered before the deadline. */
  #latest = 0;
  #deadline = 0;
  #begun = 0;
  readonly #requests = new Requests();

  constructor(
    readonly server: Server<unknown>,
    readonly served: Served,
  ) {}

  /** All phases. After `becomeQuiet`, the new limits count from now on. */
  run(limits: Limits): Promise<boolean> {
    if (this.#result === undefined) this.#limit(limits);
    return (this.#result ??= this.#run());
  }

  #limit({ grace, timeout, signal }: Limits): void {
    const now = performance.now();
    this.#grace = grace;
    this.#latest = now + Math.max(grace, timeout / 2);
    this.#deadline = now + timeout;
    this.#signal = signal;
  }

  async #run(): Promise<boolean> {
    const connections = await (this.#phases ??= this.#runPhases(false));
    const isComplete = await (connections
      ? this.#stop(connections)
      : this.#until(this.#areAnswered));
    return isComplete && !this.#hasCutOff;
  }

  /** The first three phases, and the answers: after them, the program may end at any time. */
  async becomeQuiet(limits: Limits): Promise<void> {
    if (this.#phases === undefined) this.#limit(limits);
    const connections = await (this.#phases ??= this.#runPhases(true));
    // There are none if somebody has stopped the server.
    const areSent = () => !connections || connections.count(({ isSending }) => isSending) === 0;
    await this.#until(() => {
      if (this.#requests.mayHaveMore) return false;
      if (this.#areAnswered() && areSent()) return true;
      return performance.now() >= this.#latest && this.#requests.open === 0;
    });
    if (!this.served.isHttp2) return;
    void this.server.stop();
    await this.#until(this.#areAnswered);
  }

  /**
   * Runs the first three phases. If `endsEarly`, the grace ends when no connection is open.
   *
   * @returns The connections of the server; undefined if it has stopped.
   */
  async #runPhases(endsEarly: boolean): Promise<Connections | undefined> {
    this.#begun = performance.now();
    const watch = watchOf(this.server, this.served);
    if (watch === undefined) return undefined;
    const connections = new Connections(watch);
    const isOver = () => endsEarly && connections.isEmpty();

    this.#announce();
    if (!isOver()) await this.#waitForGrace(connections, isOver);
    await this.#linger(connections, watch);
    return connections;
  }

  /** 1. Announce: from now on, each response ends its connection. */
  #announce(): void {
    this.draining.abort();
    this.served.change((options) => withClose(options, this.#requests));
    const { server } = this;
    const { fetch, stop } = server;
    overlay(server, {
      // It calls a handler at once.
      fetch: (...args: unknown[]): unknown =>
        this.#requests.uncounted(() => Reflect.apply(fetch, server, args)),
      stop: (closesConnections?: boolean) => {
        if (closesConnections && server.pendingRequests > 0) this.#hasCutOff = true;
        return stop.call(server, closesConnections);
      },
    });
  }

  /** 2. Grace: waits until each client had the time to ask once more, or until `isOver`. */
  async #waitForGrace(connections: Connections, isOver: () => boolean): Promise<void> {
    const { server } = this;
    const requests = this.#requests;
    requests.notesSending = true;
    await this.#until(() => {
      // Our handlers do not count those that were under way at the call.
      const underWay = server.pendingRequests - requests.open - requests.sending;
      return underWay <= 0 || performance.now() >= this.#latest;
    });
    requests.notesSending = false;
    const end = Math.min(performance.now() + this.#grace, this.#latest);
    await this.#until(() => performance.now() >= end || isOver());
    // If nobody asks at that moment, the next clients need not wait until others are answered. The first
    // look loads what the looks need, which takes 5 to 10 ms.
    await this.#silence(connections, LULL, () => server.pendingRequests);
  }

  /** 3. Linger: stops accepting, and waits until each accepted connection has asked. */
  async #linger(connections: Connections, watch: Watched): Promise<void> {
    pause(watch);
    // A connection with a request or a WebSocket can look as if it asked. After PATIENCE, as many as have
    // one do not count.
    const { server } = this;
    const busy = () => server.pendingRequests + server.pendingWebSockets;
    const ignored = (waited: number) => (waited < PATIENCE ? 0 : busy());
    const isSilent = await this.#silence(connections, STARVED, ignored);
    // A session goes on asking, until the server stops.
    this.#hasGivenUp = !isSilent && !this.served.isHttp2;
    if (this.#hasGivenUp || this.#hasParts(connections)) this.#hasCutOff = true;
  }

  /** Whether a client has paused for PATIENCE in the middle of its request. It is cut off. */
  #hasParts(connections: Connections): boolean {
    const { pendingRequests, pendingWebSockets, protocol } = this.server;
    // The rest of a body that was answered early looks the same, so data from long before the call does
    // not count.
    const age = performance.now() - this.#begun + STARVED;
    // Only requests are under way on a connection on which nothing was sent.
    const first = connections.count(({ talk }) => talk?.sent === 0 && talk.received > 0);
    const isLater = ({ heard, said, sent }: Talk) => sent > 0 && heard < said && heard < age;
    // In a TLS handshake, the peer is often the last to send.
    const later =
      protocol === "https"
        ? 0
        : connections.count(({ talk }) => talk !== undefined && isLater(talk));
    const answered = pendingRequests + pendingWebSockets + this.#requests.early;
    return first > pendingRequests || first + later > answered;
  }

  /** 4. Stop: waits until all that was read is answered, closes the WebSockets, and stops the server. */
  async #stop(connections: Connections): Promise<boolean> {
    const { server, served } = this;
    await this.#until(this.#areAnswered);
    // Bun 1.4.0 closes them with 1006.
    for (const socket of served.sockets) socket.close(1001);
    // Not server.stop(): it would close a connection on which Bun still sends a direct stream.
    const hasWork = ({ isUnread, isSending }: Connection) => isUnread || isSending;
    const asks = ({ talk }: Connection) => talk !== undefined && isAsking(talk);
    const isComplete = await this.#until(() => {
      if (!this.#areAnswered() || this.#requests.mayHaveMore) return false;
      if (connections.count(hasWork) > 0) return false;
      // A WebSocket of `node:http` is open until the program ends it.
      return this.#hasGivenUp || connections.count(asks) <= server.pendingWebSockets;
    });
    // Closes what is idle, or left, at once. The promise tells nothing more, and before Bun 1.4.3 it never
    // resolves if a handler goes on.
    void server.stop(true);
    return isComplete;
  }

  /**
   * Waits until nobody is about to ask, for `limit` milliseconds at most, and returns whether it is so. A
   * connection looks the same while a handler has its request. `ignored` returns how many do not count.
   */
  async #silence(
    connections: Connections,
    limit: number,
    ignored: (waited: number) => number,
  ): Promise<boolean> {
    const begun = performance.now();
    const isTLS = this.server.protocol === "https";
    const mayAsk = (connection: Connection): boolean => {
      const { isUnread, talk } = connection;
      if (isUnread) return true;
      const now = performance.now();
      // Over AF_UNIX, the kernel tells no times.
      if (talk === undefined) return now < (connection.isNew ? begun : this.#begun) + PATIENCE;
      // A handshake is talk as well. One segment of the peer is its first message alone.
      const patience = talk.received === 1 ? STARVED : PATIENCE;
      if (isTLS) return Math.min(talk.heard, talk.said) < patience;
      return talk.sent > 0 ? isAsking(talk) : talk.heard < PATIENCE;
    };
    // On a connection on which nothing was sent, there is no WebSocket.
    const isFirst = (connection: Connection) => connection.talk?.sent === 0 && mayAsk(connection);
    let isSilent = false;
    await this.#until(() => {
      const waited = performance.now() - begun;
      isSilent =
        connections.count(mayAsk) <= ignored(waited) &&
        connections.count(isFirst) <= this.server.pendingRequests;
      return isSilent || waited >= limit;
    });
    return isSilent;
  }

  readonly #areAnswered = (): boolean => this.server.pendingRequests === 0;

  /** Repeats `isSo` until it returns true or no time is left. Returns whether it returned true. */
  async #until(isSo: () => boolean): Promise<boolean> {
    for (;;) {
      const begun = performance.now();
      if (isSo()) return true;
      if (this.#left() === 0) return false;
      // With thousands of connections, a look takes long.
      await Bun.sleep(Math.min(Math.max(LOOK, performance.now() - begun), this.#left()));
    }
  }

  #left(): number {
    return this.#signal?.aborted ? 0 : Math.max(0, this.#deadline - performance.now());
  }
}

/** Whether the peer was the last to send data, a moment ago: a request, or a part of one. */
function isAsking({ heard, said }: Talk): boolean {
  return heard < said && heard < PATIENCE;
}
