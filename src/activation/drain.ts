import type { Server } from "bun";

import { describe } from "./describe.ts";
import { misconfigured } from "./error.ts";
import { pause } from "./event-loop.ts";
import { kept } from "./hot.ts";
import * as libc from "./libc.ts";
import { derive } from "./runtime.ts";
import type { Served } from "./serve.ts";

/** In milliseconds: how long a server takes to end. */
export interface DrainOptions {
  /**
   * How long clients are still served as before: longer than they pause between two requests, so
   * that each learns that its connection ends. Default: 1000.
   */
  readonly grace?: number;
  /** After how long what is left is cut off, counted from the call. Default: 10,000. */
  readonly timeout?: number;
}

/**
 * How long the last to be accepted have for their first request, and the longest if one of them has
 * sent nothing by then. Newcomers wait that long.
 */
const LINGER = { SHORTEST: 50, LONGEST: 200 } as const;
/** How often to look for requests under way: Bun does not report their end. */
const INTERVAL = 5;

/**
 * Ends a server without losing a request. From the call on every answer carries
 * `Connection: close`, and upgrades are answered with 503, while newcomers are still served. When
 * `grace` is over and the requests that were under way are answered, newcomers wait in the queue of
 * the passed socket, which is for the next process; whoever is still connected is answered;
 * WebSockets are closed with 1001; and the server stops. Before the call a request costs nothing.
 *
 * Limitations: no header can be added to the answers of directory routes and HTML bundles, nor to
 * those of requests under way at the call: `grace` counts from the last of these again. A client that
 * pauses for longer than `grace` can meet the close (RFC 9112, 9.5), as can requests sent behind one
 * whose answer says close (9.3.2). With no passed socket, nobody reaches a server that has stopped.
 *
 * @param server A server of `serve`. A second call for it returns the first one's promise.
 * @returns Whether nobody was cut off at `timeout`.
 * @throws {ActivationError} (78) if `serve` did not make the server, or a number is negative or none.
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
  { grace = 1000, timeout = 10_000 }: DrainOptions = {},
): Promise<boolean> {
  const served = kept.served.get(server);
  if (served === undefined)
    throw misconfigured("drain got a server of Bun.serve, whose options it cannot know: use serve");
  for (const [name, value] of Object.entries({ grace, timeout }))
    if (!(value >= 0)) throw misconfigured(`${name} is ${value}: give milliseconds, from 0 on`);
  return (served.drained ??= end(server, served, grace, performance.now() + timeout));
}

async function end(server: Server<unknown>, served: Served, grace: number, deadline: number) {
  const left = () => Math.max(0, deadline - performance.now());
  const wait = (milliseconds: number) => Bun.sleep(Math.min(milliseconds, left()));

  /** How many requests our handlers have. */
  let inHandlers = 0;
  served.adapt = (options) => withClose(options, (change) => (inHandlers += change));
  served.reload(served.options);

  // Those under way at the call, which no handler of ours has, until each is answered.
  let underWay = server.pendingRequests;
  while (underWay > 0 && left() > 0) {
    await wait(INTERVAL);
    underWay = server.pendingRequests - inHandlers;
  }
  await wait(grace);
  // A server that has given up its socket does not know it any more.
  const port = served.watch && server.port;
  if (served.watch !== undefined) pause(served.watch);
  const linger = performance.now() + Math.min(LINGER.LONGEST, left());
  await wait(LINGER.SHORTEST);
  while (port !== undefined && performance.now() < linger && awaitsRequest(port))
    await wait(INTERVAL);
  // Closes the connections that are idle, and each other one when its request is answered.
  void server.stop();
  while (server.pendingRequests > 0 && left() > 0) await wait(INTERVAL);
  const complete = server.pendingRequests === 0;
  // Bun 1.4.0 closes them with 1006.
  for (const socket of served.sockets) socket.close(1001);
  // Cuts off what is left. Before Bun 1.4.3 that never resolves if a handler goes on.
  const stopped = server.stop(true);
  if (complete) await stopped;
  return complete;
}

/** Whether a connection over TCP to this port has brought nothing yet. */
function awaitsRequest(port: number): boolean {
  const { readdirSync } = process.getBuiltinModule("node:fs");
  return readdirSync("/proc/self/fd").some((fd) => {
    const it = libc.isSilent(Number(fd)) ? describe(Number(fd)) : undefined;
    return it !== undefined && "port" in it && it.connected && it.port === port;
  });
}

/** Which of the options answer. */
type Handlers = { routes?: object; fetch?: Function | null; error?: Function | null };

/** The same options, but every answer says that the connection ends with it, and upgrades get 503. */
function withClose(options: object, count: (change: 1 | -1) => void): object {
  const handler = (answer: Function) =>
    async function (this: unknown, request: Request, ...others: unknown[]): Promise<unknown> {
      if (request.headers.get("upgrade")?.toLowerCase() === "websocket")
        return close(new Response(null, { status: 503 }));
      count(1);
      try {
        return close(await Reflect.apply(answer, this, [request, ...others]));
      } finally {
        count(-1);
      }
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
  const { routes, fetch, error }: Handlers = options;
  return derive(options, {
    ...(routes && { routes: mapped(Object.entries(routes), route) }),
    fetch: handler(fetch ?? notFound),
    async error(this: unknown, problem: unknown): Promise<unknown> {
      return close(await Reflect.apply(error ?? failed, this, [problem]));
    },
  });
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
