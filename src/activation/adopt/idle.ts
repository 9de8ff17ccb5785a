import type { Server } from "bun";

import { derive, type Listener } from "../bun.ts";
import { wrongNumber } from "../error.ts";
import { isHot, perProcess } from "../hot.ts";
import { type Answers, mapAnswers } from "./answers.ts";
import { hasConnectionAt } from "./connections.ts";
import type { Watched } from "./event-loop.ts";
import { listeningOf } from "./listening.ts";
import { servedBy } from "./served.ts";

/** How long a program has to be idle. */
export interface IdleOptions {
  /** For how long no connection may be open, in milliseconds. */
  readonly timeout: number;
}

/** The longest time between two looks, in milliseconds. */
const LONGEST_INTERVAL = 1000;

/** How often this file was evaluated (`bun --hot`), and the number of this evaluation. */
const evaluations = perProcess("idle", () => ({ count: 0 }));
const evaluation = ++evaluations.count;

/**
 * Waits until none of the servers has had an open connection for `timeout` milliseconds. The program
 * can end then: systemd still holds the socket, and the next client starts the program again. A server
 * that was passed no socket is never idle, because nobody would start it again.
 *
 * It looks at the descriptors of this process ten times in `timeout`, and at least once a second. A
 * look takes 20 µs, and up to 3 µs more for each open descriptor. A request costs nothing that can be
 * measured.
 *
 * Limitations: it can miss a client that comes and goes between two looks. It notices a call of `fetch`,
 * `error` or the function of a route, and a connection to `listen`. It does not notice a static response,
 * or a client after `socket.reload`. Under `bun --hot`, the promise of the code before an
 * edit never resolves. Do not wait for it with a top-level `await` there: Bun evaluates no edit until
 * that is over.
 *
 * @param servers One or several, of `serve` or `listen`.
 * @param options `timeout`: for how long no connection may be open, in milliseconds, above 0.
 * @returns A promise that resolves in the same turn of the event loop as the last look. No client is
 *   accepted before your `then` runs. The promise does not keep the process alive.
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
  /** Where they listen, as sockaddrs, by their text: a later server may have the socket of a stopped one. */
  readonly #addresses = new Map<string, Uint8Array>();
  /** The servers that were passed no socket. While there is one, nobody is idle. */
  readonly #withoutSocket = new Set<object>();
  /** The sets of functions in which `mark` is. */
  readonly #uses = new Set<Set<() => void>>();
  #lastUse = 0;

  /** Notes that a client is there. */
  readonly mark = (): void => void (this.#lastUse = performance.now());

  /** @param own The watch of a socket that the server opened itself, if that counts as a passed one. */
  add(server: object, own?: Watched): void {
    const served = servedBy(server);
    const listening = listeningOf(server);
    if (!served && !listening && !("getsockname" in server))
      throw new TypeError(
        "serve or listen did not make this server: use them instead of Bun.serve and Bun.listen",
      );
    if (served && !served.isNoticing) {
      served.isNoticing = true;
      served.change((options) => noticing(options, served.onUse));
    }
    const { onUse, watch = own } = served ?? listening ?? {};
    if (onUse) this.#uses.add(onUse.add(this.mark));
    if (watch === undefined) this.addOwn(server);
    else this.#addresses.set(String(watch.address), watch.address);
  }

  addOwn(server: object): void {
    this.#withoutSocket.add(server);
  }

  /** Forgets a server that has stopped. Its connections still count. */
  remove(server: object): void {
    this.#withoutSocket.delete(server);
    const { onUse } = servedBy(server) ?? listeningOf(server) ?? {};
    if (onUse) this.#uses.delete(onUse);
  }

  /** Resolves when no client was there for `timeout` milliseconds; never if `isOver` returns true before. */
  after(timeout: number, isOver = () => false): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    // Otherwise each `whenIdle` would leave its function with the server.
    const forget = () => {
      for (const onUse of this.#uses) onUse.delete(this.mark);
    };
    if (timeout === Infinity) {
      forget();
      return promise;
    }
    const interval = Math.min(timeout / 10, LONGEST_INTERVAL);
    let since = performance.now();
    const look = () => {
      if (isOver()) return forget();
      const now = performance.now();
      since = this.#withoutSocket.size > 0 || this.#isOpen() ? now : Math.max(since, this.#lastUse);
      const left = since + timeout - now;
      if (left > 0) return void setTimeout(look, Math.min(interval, left)).unref();
      forget();
      resolve();
    };
    setTimeout(look, interval).unref();
    return promise;
  }

  /** Whether a connection is open now. */
  #isOpen(): boolean {
    return this.#addresses.values().some((at) => hasConnectionAt(at));
  }
}

/** The same options, but each function that answers first calls all of `onUse`. */
function noticing(options: Answers, onUse: ReadonlySet<() => void>): Answers {
  const { error, onNodeHTTPRequest } = options;
  const notice = (answer: Function) =>
    function (this: unknown, ...args: unknown[]): unknown {
      for (const used of onUse) used();
      return Reflect.apply(answer, this, args);
    };
  return derive(mapAnswers(options, notice), {
    ...(error && { error: notice(error) }),
    ...(onNodeHTTPRequest && { onNodeHTTPRequest: notice(onNodeHTTPRequest) }),
  });
}
