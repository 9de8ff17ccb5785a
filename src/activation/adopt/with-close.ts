import { derive } from "../bun.ts";
import { withNodeClose } from "./node-http.ts";
import { PATIENCE, type Requests } from "./requests.ts";

/** The options that answer requests. */
type Handlers = {
  routes?: object;
  static?: object;
  fetch?: Function | null;
  error?: Function | null;
  /** Of `node:http`. */
  onNodeHTTPRequest?: Function;
};

/** The same options, but each response ends its connection, and upgrades get 503. */
export function withClose(options: object, requests: Requests): object {
  const { routes, static: files, fetch, error, onNodeHTTPRequest }: Handlers = options;
  if (onNodeHTTPRequest)
    return derive(options, { onNodeHTTPRequest: withNodeClose(onNodeHTTPRequest, requests) });
  const handler = (answer: Function) =>
    async function (this: unknown, request: Request, ...others: unknown[]): Promise<unknown> {
      if (request.headers.get("upgrade")?.toLowerCase() === "websocket")
        return close(new Response(null, { status: 503 }));
      requests.handled++;
      const hasCome = watchBody(request, () => (requests.unfinished = performance.now()));
      try {
        let response: unknown;
        try {
          response = await Reflect.apply(answer, this, [request, ...others]);
        } catch (problem) {
          response = await Reflect.apply(error ?? failed, this, [problem]);
        }
        // Bun closes at once. A client that still sends would be reset.
        return (await hasCome()) ? close(response) : response;
      } finally {
        requests.handled--;
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

/**
 * Returns a function to call after the handler. It returns whether all of the request's body has come (true
 * for no body), and calls `late` if a body still comes that nobody reads.
 */
function watchBody(request: Request, late: () => void): () => boolean | Promise<boolean> {
  const { headers } = request;
  if (!headers.has("transfer-encoding") && !(Number(headers.get("content-length")) > 0))
    return () => true;
  let isRead = false;
  let isTaken = false;
  for (const name of READERS) {
    const native = request[name];
    const value = async () => await native.call(request).finally(() => (isRead = true));
    Object.defineProperty(request, name, { value, configurable: true, writable: true });
  }
  const { get } = Object.getOwnPropertyDescriptor(Request.prototype, "body") ?? {};
  const taken = () => {
    isTaken = true;
    return get?.call(request);
  };
  Object.defineProperty(request, "body", { get: taken, configurable: true });
  return async () => {
    if (isRead) return true;
    // A stream does not tell whether it was read or cancelled.
    if (isTaken || request.bodyUsed) return false;
    // Not the original: the response may still read that.
    const read = async () => {
      await request.clone().arrayBuffer();
      return true;
    };
    const patience = Bun.sleep(PATIENCE).then(() => false);
    const comes = await Promise.race([read().catch(() => false), patience]);
    if (!comes) late();
    return comes;
  };
}

function mapped(entries: readonly [string, unknown][], map: (value: unknown) => unknown): object {
  return Object.fromEntries(entries.map(([name, value]) => [name, map(value)]));
}

function close(answer: unknown): unknown {
  if (answer instanceof Response) answer.headers.set("Connection", "close");
  return answer;
}

/** Bun's answers to a request that has no handler, or whose handler fails. */
const notFound = () => new Response(null, { status: 404 });
function failed(problem: unknown): Response {
  console.error(problem);
  return new Response("Something went wrong!", { status: 500 });
}
