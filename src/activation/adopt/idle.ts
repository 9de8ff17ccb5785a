import type { Server } from "bun";

import { derive, type Listener, LONGEST_TIMER } from "../bun.ts";
import { wrongNumber } from "../error.ts";
import { isHot, perProcess } from "../hot.ts";
import { socketName, type Watch } from "../linux/libc.ts";
import { connectionsAt } from "./connections.ts";
import { watchOfListener } from "./listening.ts";
import { servedBy } from "./served.ts";

/** How long a program has to be idle. */
export interface IdleOptions {
  /** For how long no connection may be open, in milliseconds. */
  readonly timeout: number;
}

/** The longest time between two looks, in milliseconds. */
const LONGEST_INTERVAL = 1000;

/** How often the program was evaluated (`bun --hot`), and the number of this evaluation. */
const evaluations = perProcess("idle", () => ({ count: 0 }));
const evaluation = ++evaluations.count;

/**
 * Waits until none of the servers has had an open connection for `timeout` milliseconds. The program
 * can end then: systemd still holds the socket, and the next client starts the program again. A server
 * that was passed no socket is never idle, because nobody would start it again.
 *
 * It looks at the descriptors of this process ten times in `timeout`, and at least once a second. A
 * look takes 20 µs. A request costs nothing that can be measured.
 *
 * Limitations: it looks only at intervals. If no connection is open when it looks, it notices a client
 * between two looks only by a call of `fetch`, `error` or the function of a route: not by a static
 * response, and not by a connection to `listen`. Under `bun --hot`, the promise of the code before an
 * edit never resolves. Do not wait for it with a top-level `await` there: Bun evaluates no edit until
 * that is over.
 *
 * @param servers One or several, of `serve` or `listen`.
 * @param options `timeout`: for how long no connection may be open, in milliseconds, above 0.
 * @returns A promise that resolves in the same turn of the event loop as the last look: no client is
 *   accepted between that look and a synchronous call. It does not keep the process alive.
 * @throws {TypeError} if `serve` or `listen` did not make one of them, or if `timeout` is not a
 *   number.
 * @throws {RangeError} if `timeout` is a number that is not above 0.
 *
 * @example
 * ```ts
 * whenIdle(server, { timeout: 30_000 })
 *   .then(() => drain(server, { grace: 0 }))
 *   .then(() => process.exit());
 * ```
 */
export function whenIdle(
  servers: ServerOrListener | readonly ServerOrListener[],
  { timeout }: IdleOptions,
): Promise<void> {
  if (!(typeof timeout === "number" && timeout > 0))
    throw wrongNumber("timeout", timeout, "milliseconds above 0");
  const idle = new Idle();
  for (const server of [servers].flat()) idle.add(server);
  // The code before an edit does not see the requests of the new code.
  return idle.after(timeout, () => isHot() && evaluation < evaluations.count);
}

type ServerOrListener = Server<unknown> | Listener<unknown>;

/** Watches servers for connections. */
export class Idle {
  /** Where they listen, as sockaddrs. */
  readonly #addresses: Uint8Array[] = [];
  #isEndless = false;
  #wasUsed = false;

  /** Notes that a client was there. */
  readonly mark = (): void => void (this.#wasUsed = true);

  add(server: object): void {
    const served = servedBy(server);
    const watch = served === undefined ? watchOfListener(server) : served.watch;
    if (served === undefined && watch === undefined && !("getsockname" in server))
      throw new TypeError(
        "serve or listen did not make this server: use them instead of Bun.serve and Bun.listen",
      );
    served?.change((options) => noticing(options, this.mark));
    this.watch(watch);
  }

  /** @param watch undefined for a server that was passed no socket. */
  watch(watch: Watch | undefined): void {
    if (watch === undefined) this.#isEndless = true;
    else this.#addresses.push(socketName(watch.fd));
  }

  /** Resolves when no client was there for `timeout` milliseconds; never if `isOver` returns true before. */
  after(timeout: number, isOver = () => false): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    if (this.#isEndless) return promise;
    let since = performance.now();
    const timer = setInterval(
      () => {
        if (isOver()) return clearInterval(timer);
        const now = performance.now();
        if (this.#wasUsed || this.isUsed()) since = now;
        this.#wasUsed = false;
        if (now - since < timeout) return;
        clearInterval(timer);
        resolve();
      },
      Math.min(timeout / 10, LONGEST_INTERVAL, LONGEST_TIMER),
    );
    timer.unref();
    return promise;
  }

  /** Whether a connection is open now. */
  isUsed(): boolean {
    return this.#addresses.some((at) => connectionsAt(at).length > 0);
  }
}

/** The options that hold the functions that answer requests. */
type Answering = {
  routes?: object;
  fetch?: Function | null;
  error?: Function | null;
  onNodeHTTPRequest?: Function;
};

/** The same options, but each function that answers calls `mark`. */
function noticing(options: object, mark: () => void): object {
  const { routes, fetch, error, onNodeHTTPRequest }: Answering = options;
  const notice = (answer: Function) =>
    function (this: unknown, ...args: unknown[]): unknown {
      mark();
      return Reflect.apply(answer, this, args);
    };
  const route = (value: unknown): unknown => {
    if (typeof value === "function") return notice(value);
    if (Object.getPrototypeOf(value ?? 0) !== Object.prototype) return value;
    return all(value ?? {});
  };
  const all = (values: object) =>
    Object.fromEntries(Object.entries(values).map(([name, value]) => [name, route(value)]));
  return derive(options, {
    ...(routes && !Array.isArray(routes) && { routes: all(routes) }),
    ...(fetch && { fetch: notice(fetch) }),
    ...(error && { error: notice(error) }),
    ...(onNodeHTTPRequest && { onNodeHTTPRequest: notice(onNodeHTTPRequest) }),
  });
}
