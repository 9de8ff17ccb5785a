import type { IncomingMessage, Server, ServerResponse } from "node:http";

import { PATIENCE, type Requests } from "./requests.ts";

/*
 * `http.Server.listen` gives `Bun.serve` an option that is internal to Bun: `onNodeHTTPRequest`, a
 * function of (server, url, method, bits, handle, hasBody, socketHandle, isSocketNew, socket, ...).
 */
const SOCKET = 8;

/** The events that give a request and its response to the program. */
const REQUEST_EVENTS = ["request", "checkContinue", "checkExpectation"];

/** The same function, but each response ends its connection, unless that would reset the client. */
export function withNodeClose(answer: Function, requests: Requests): Function {
  const announcing = new WeakSet<object>();
  /** Ends the request that Bun is giving to the program. */
  let end = () => {};
  return function (this: unknown, ...args: unknown[]): unknown {
    const server = serverOf(args[SOCKET]);
    if (server && isNew(server, announcing)) announceTo(server, requests, () => end());
    const done = (end = requests.begin(() => true));
    try {
      const result: unknown = Reflect.apply(answer, this, args);
      // It returns a promise unless the response has ended already.
      void Promise.resolve(result).then(done, done);
      return result;
    } catch (problem) {
      done();
      throw problem;
    }
  };
}

/**
 * Has a server say close. A request waits until its body has come, because a handler may answer without
 * reading it, and Bun resets a client that still sends when a response says close.
 */
function announceTo(server: Server, requests: Requests, end: () => void): void {
  const { emit } = server;
  const told = new WeakSet<object>();
  const waited = new WeakSet<object>();
  server.emit = function (this: Server, name: string, ...args: unknown[]): boolean {
    const pass = (): boolean => Reflect.apply(emit, this, [name, ...args]);
    // From now on, the connection is the program's, and no response ends the request.
    if (name === "upgrade" || name === "connect") end();
    if (!isRequest(name, args)) return pass();
    const [request, response] = args;
    if (isNew(response, told)) sayClose(request, response, requests);
    // A client that expects 100 Continue sends its body once the handler of that event has agreed.
    const waits = name === "request" && isComing(request) && isNew(request, waited);
    if (!waits) return pass();
    afterBody(request, response, pass);
    return true;
  };
}

/**
 * Passes a request on when its body has come, or after PATIENCE. Bun gives the body to `push`, and null at
 * its end. Nothing reads the stream meanwhile, so the program finds it as before the drain.
 */
function afterBody(request: IncomingMessage, response: ServerResponse, pass: () => void): void {
  const chunks: unknown[] = [];
  let isPassed = false;
  const passOn = () => {
    isPassed = true;
    clearTimeout(patience);
    const hasGone = request.destroyed && !request.complete;
    if (hasGone) return;
    // The body comes after all that the handler does at once, and in microtasks.
    setImmediate(() => {
      Reflect.deleteProperty(request, "push");
      for (const chunk of chunks) request.push(chunk);
    });
    try {
      pass();
    } catch (problem) {
      // As Bun does if a handler throws at once.
      response.end();
      throw problem;
    }
  };
  const patience = setTimeout(passOn, PATIENCE);
  request.push = (chunk: unknown) => {
    chunks.push(chunk);
    if (chunk === null && !isPassed) passOn();
    return true;
  };
}

/** Whether more of the body of a request may come. */
function isComing({ complete, headers }: IncomingMessage): boolean {
  // Without a body, `complete` is false at first.
  const hasBody = "transfer-encoding" in headers || Number(headers["content-length"]) > 0;
  return hasBody && !complete;
}

/**
 * Has a response say close, unless the body of its request still comes. All ways to begin a response end
 * in `writeHead`, and only there the headers of the program are known.
 */
function sayClose(request: IncomingMessage, response: ServerResponse, requests: Requests): void {
  const { writeHead } = response;
  response.writeHead = (...args: unknown[]) => {
    const [status] = args;
    const isFirst = !response.headersSent && Number(status) >= 200;
    if (isFirst && isComing(request)) requests.noteEarly();
    else if (isFirst) args = withConnectionClose(response, args);
    return Reflect.apply(writeHead, response, args);
  };
}

/** Sets the header `Connection`, and returns the arguments of `writeHead` without one. */
function withConnectionClose(response: ServerResponse, args: readonly unknown[]): unknown[] {
  const own: unknown[] = [response.getHeader("Connection")];
  const at = args.findLastIndex((arg) => typeof arg === "object" && arg !== null);
  const changed = args.map((arg, index) => (index === at ? withoutConnection(arg, own) : arg));
  // The header also names other headers, or a protocol.
  const options = own.flat().join().split(",");
  const others = options.map((it) => it.trim()).filter((it) => !/^(close|keep-alive|)$/i.test(it));
  response.setHeader("Connection", ["close", ...new Set(others)].join(", "));
  return changed;
}

/** Returns headers in the form that they have, without `Connection`, whose values go to `values`. */
function withoutConnection(headers: unknown, values: unknown[]): unknown {
  const isKept = (name: unknown, value: unknown): boolean => {
    if (String(name).toLowerCase() !== "connection") return true;
    values.push(value);
    return false;
  };
  if (!Array.isArray(headers))
    return Object.fromEntries(
      Object.entries(Object(headers)).filter(([name, value]) => isKept(name, value)),
    );
  const list: readonly unknown[] = headers;
  if (Array.isArray(list[0]))
    return list.filter((pair) => !Array.isArray(pair) || isKept(pair[0], pair[1]));
  return list.filter((_, at) => isKept(list[at - (at % 2)], list[at - (at % 2) + 1]));
}

const isRequest = (
  event: string,
  _args: readonly unknown[],
): _args is readonly [IncomingMessage, ServerResponse] => REQUEST_EVENTS.includes(event);

/** Adds an object to a set, and returns whether it is new there. */
function isNew(it: object, set: WeakSet<object>): boolean {
  const isKnown = set.has(it);
  set.add(it);
  return !isKnown;
}

function serverOf(socket: unknown): Server | undefined {
  const { server }: { server?: Server } = Object(socket);
  return typeof server?.emit === "function" ? server : undefined;
}
