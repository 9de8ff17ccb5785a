import type { Server } from "bun";

import { type Connection, connectionsAt } from "./connections.ts";
import { isWatched, pause } from "./event-loop.ts";
import { kept } from "./hot.ts";
import * as libc from "./libc.ts";
import { derive } from "./runtime.ts";
import { type Served, watchOwn } from "./serve.ts";

/** How long a server takes to end. */
export interface DrainOptions {
  /**
   * How long clients are still served as before, in milliseconds: longer than they pause between two
   * requests, so that each learns that its connection ends. Default: 1000.
   */
  readonly grace?: number;
  /** After how long what is left is cut off, in milliseconds from the call. Default: 10,000. */
  readonly timeout?: number;
  /** Cuts off what is left as soon as it is aborted, for example by a second SIGTERM. */
  readonly signal?: AbortSignal;
}

/** How long a new connection may take to send its first request, in milliseconds. */
const FIRST_REQUEST = 200;
/** How long Bun gets to read what has arrived, in milliseconds. */
const READ = 2;
/** How often to look whether earlier requests are answered, in milliseconds: Bun does not report it. */
const INTERVAL = 5;

/**
 * Ends a server without losing a request, in four phases:
 *
 * 1. Announce: from the call on each response says `Connection: close`, and upgrades get 503. Clients
 *    are still accepted and served.
 * 2. Grace: this goes on until `grace` has passed after the last request that was under way at the
 *    call, or half of `timeout` after the call if that comes first.
 * 3. Linger: new clients wait in the queue of the passed socket, for the next process. A connection
 *    that was accepted and has not sent its first request has 200 milliseconds for it. If there is
 *    none, this takes 2 milliseconds.
 * 4. Stop: what was read is answered, WebSockets are closed with 1001, and the server stops.
 *
 * Before the call a request costs nothing. {@link draining} tells long streams that it has begun.
 *
 * Limitations: no header can be added to the responses of directory routes and HTML bundles, nor to
 * those of requests under way at the call: `grace` counts from the last of these again. A response to
 * a request whose body was not read, or was read as a stream, does not say close, because Bun would
 * then reset a client that still sends. A client that pauses for longer than `grace` can meet the close
 * (RFC 9112, 9.5), as can requests sent behind one whose response says close (9.3.2). Over TLS and
 * AF_UNIX, with a `grace` of less than 200 milliseconds, phase 3 waits for all who may yet ask. With
 * no passed socket, nobody reaches a server that has stopped.
 *
 * @param server A server of `serve`. A second call for it returns the first one's promise.
 * @returns Whether nobody was cut off. True at once for a server that has stopped already.
 * @throws {TypeError} if `serve` did not make the server.
 * @throws {RangeError} if `grace` or `timeout` is not a number from 0.
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
  server: Server<unknown>,
  { grace = 1000, timeout = 10_000, signal }: DrainOptions = {},
): Promise<boolean> {
  const served = servedBy(server);
  for (const [name, value] of Object.entries({ grace, timeout }))
    if (!(value >= 0)) throw new RangeError(`${name} is ${value}: give milliseconds, from 0 on`);
  return (served.drained ??= new Drain(server, served, { grace, timeout, signal }).run());
}

/**
 * Returns a signal that is aborted when {@link drain} of a server begins, for responses that do not
 * end by themselves, such as streams of events.
 *
 * @param server A server of `serve`.
 * @throws {TypeError} if `serve` did not make the server.
 *
 * @example
 * ```ts
 * draining(server).addEventListener("abort", () => stream.close());
 * ```
 */
export function draining(server: Server<unknown>): AbortSignal {
  return drainingOf(servedBy(server)).signal;
}

function servedBy(server: Server<unknown>): Served {
  const served = kept.served.get(server);
  if (served === undefined)
    throw new TypeError("drain got a server of Bun.serve, whose options it cannot know: use serve");
  return served;
}

function drainingOf(served: Served): AbortController {
  return (served.draining ??= new AbortController());
}

class Drain {
  readonly #begun = performance.now();
  /** The requests that our handlers have. */
  #handled = 0;
  /** The connections at the call. Later ones end with their first response. */
  #earlier: ReadonlySet<string> = new Set();
  /** Where the server listens, as a sockaddr. */
  #address: Uint8Array = new Uint8Array();

  constructor(
    readonly server: Server<unknown>,
    readonly served: Served,
    readonly options: {
      readonly grace: number;
      readonly timeout: number;
      readonly signal: AbortSignal | undefined;
    },
  ) {}

  async run(): Promise<boolean> {
    const watch = this.served.watch ?? watchOwn(this.server);
    if (watch === undefined || !isWatched(watch)) return true;
    this.#address = libc.socketName(watch.fd);
    this.#earlier = new Set(this.#connections().map(({ socket }) => socket));

    this.#announce();
    await this.#grace();
    await this.#linger(watch);
    return await this.#stop();
  }

  /** 1. Each response ends its connection. */
  #announce(): void {
    drainingOf(this.served).abort();
    this.served.change((options) => withClose(options, (change) => (this.#handled += change)));
  }

  /** 2. Waits until each client had the time to ask once more. */
  async #grace(): Promise<void> {
    const { grace, timeout } = this.options;
    // So that the requests that come until then can be answered before the end.
    const latest = this.#begun + Math.max(grace, timeout / 2);
    // Our handlers do not count those that were under way at the call.
    let underWay = this.server.pendingRequests;
    while (underWay > 0 && performance.now() < latest && this.#left() > 0) {
      await this.#wait(INTERVAL);
      underWay = Math.min(underWay, this.server.pendingRequests - this.#handled);
    }
    await this.#wait(Math.min(grace, latest - performance.now()));
  }

  /** 3. Stops accepting, and waits until each connection that was accepted has asked. */
  async #linger(watch: libc.Watch): Promise<void> {
    pause(watch);
    const end = performance.now() + FIRST_REQUEST;
    do await this.#wait(READ);
    while (performance.now() < end && this.#left() > 0 && this.#connections().some(this.#mayAsk));
  }

  /** 4. Waits until all that was read is answered, and says goodbye to WebSockets. */
  async #stop(): Promise<boolean> {
    const { server, served } = this;
    while (server.pendingRequests > 0 && this.#left() > 0) await this.#wait(READ);
    // Bun 1.4.0 closes them with 1006.
    for (const socket of served.sockets) socket.close(1001);
    // Not server.stop(): it would close a connection on which Bun still sends a direct stream.
    while (this.#hasWork() && this.#left() > 0) await this.#wait(READ);
    const complete = !this.#hasWork();
    // Closes what is idle, or left. Before Bun 1.4.3 that never resolves if a handler goes on.
    const stopped = server.stop(true);
    if (complete) await stopped;
    return complete;
  }

  #connections(): Connection[] {
    return connectionsAt(this.#address);
  }

  /** Whether a request may come on a connection, or has come, that was not answered. */
  readonly #mayAsk = ({ socket, isUnread, talk }: Connection): boolean => {
    if (isUnread || !this.#earlier.has(socket)) return true;
    const isRecent = performance.now() < this.#begun + FIRST_REQUEST;
    // A TLS handshake is talk as well.
    if (talk === undefined || this.server.protocol === "https") return isRecent;
    return isAsking(talk) || (isRecent && !talk.answered);
  };

  /** Whether a connection, beside the WebSockets, waits for a response or for more of one. */
  #hasWork(): boolean {
    const hasWork = ({ isUnread, isSending, talk }: Connection) =>
      isUnread || isSending || (talk !== undefined && isAsking(talk));
    const { pendingRequests } = this.server;
    const { size } = this.served.sockets;
    return pendingRequests > 0 || this.#connections().filter(hasWork).length > size;
  }

  #left(): number {
    const { timeout, signal } = this.options;
    return signal?.aborted ? 0 : Math.max(0, this.#begun + timeout - performance.now());
  }

  async #wait(milliseconds: number): Promise<void> {
    await Bun.sleep(Math.max(0, Math.min(milliseconds, this.#left())));
  }
}

/** Whether the peer was the last to send data, a moment ago: a request, or a part of one. */
function isAsking({ heard, said }: libc.Talk): boolean {
  return heard < said && heard < FIRST_REQUEST;
}

/** Which of the options answer. */
type Handlers = {
  routes?: object;
  static?: object;
  fetch?: Function | null;
  error?: Function | null;
};

/** The same options, but each response ends its connection, and upgrades get 503. */
function withClose(options: object, count: (change: 1 | -1) => void): object {
  const { routes, static: files, fetch, error }: Handlers = options;
  const handler = (answer: Function) =>
    async function (this: unknown, request: Request, ...others: unknown[]): Promise<unknown> {
      if (request.headers.get("upgrade")?.toLowerCase() === "websocket")
        return close(new Response(null, { status: 503 }));
      count(1);
      const isRead = watchBody(request);
      let response: unknown;
      try {
        response = await Reflect.apply(answer, this, [request, ...others]);
      } catch (problem) {
        response = await Reflect.apply(error ?? failed, this, [problem]);
      } finally {
        count(-1);
      }
      // Bun closes at once, and what the client still sends would reset it.
      return isRead() ? close(response) : response;
    };
  const route = (value: unknown): unknown => {
    if (typeof value === "function") return handler(value);
    if (value instanceof Response) return close(value.clone());
    if (value instanceof Blob) return close(new Response(value));
    const byMethod = Object.entries(value ?? {});
    return byMethod.length > 0 && byMethod.every(([name]) => /^[A-Z]+$/.test(name))
      ? mapped(byMethod, route)
      : value;
  };
  const all = (given: object) => mapped(Object.entries(given), route);
  return derive(options, {
    // Bun ignores an array, which Hono has.
    ...(routes && !Array.isArray(routes) && { routes: all(routes) }),
    ...(files && { static: all(files) }),
    fetch: handler(fetch ?? notFound),
  });
}

/** The methods that read a body to its end. */
const READERS = ["arrayBuffer", "blob", "bytes", "formData", "json", "text"] as const;

/** Returns whether a request has no body, or one of its methods has read all of it. */
function watchBody(request: Request): () => boolean {
  const { headers } = request;
  let isRead = !headers.has("transfer-encoding") && !(Number(headers.get("content-length")) > 0);
  for (const name of isRead ? [] : READERS) {
    const native = request[name];
    const value = async () => await native.call(request).finally(() => (isRead = true));
    Object.defineProperty(request, name, { value, configurable: true, writable: true });
  }
  return () => isRead;
}

function mapped(entries: readonly [string, unknown][], map: (value: unknown) => unknown): object {
  return Object.fromEntries(entries.map(([name, value]) => [name, map(value)]));
}

function close(answer: unknown): unknown {
  if (answer instanceof Response) answer.headers.set("Connection", "close");
  return answer;
}

/** What Bun answers to what has no handler, or whose handler fails. */
const notFound = () => new Response(null, { status: 404 });
function failed(problem: unknown): Response {
  console.error(problem);
  return new Response("Something went wrong!", { status: 500 });
}
