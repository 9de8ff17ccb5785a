import type { IncomingMessage, Server, ServerResponse } from "node:http";

import { PATIENCE, type Requests } from "./requests.ts";

/*
 * `http.Server.listen` gives `Bun.serve` an option that is internal to Bun: `onNodeHTTPRequest`, a
 * function of (server, url, method, bits, handle, hasBody, socketHandle, isSocketNew, socket, ...).
 */

const BITS = 3;
const HAS_BODY = 5;
const SOCKET = 8;
/** The bit by which Bun writes `Connection: close`, and closes after the response. */
const CLOSE = 1;

/** The same function, but each response ends its connection, unless that would reset the client. */
export function withNodeClose(answer: Function, requests: Requests): Function {
  const announcing = new WeakSet<object>();
  return function (this: unknown, ...args: unknown[]): unknown {
    const { [BITS]: bits, [HAS_BODY]: hasBody, [SOCKET]: socket } = args;
    // Bun closes at once. A client that still sends would be reset.
    if (typeof bits === "number" && hasBody === false) args[BITS] = bits | CLOSE;
    else {
      const server = serverOf(socket);
      if (server && !announcing.has(server)) announceTo(server, requests);
      if (server) announcing.add(server);
    }
    requests.handled++;
    const result: unknown = Reflect.apply(answer, this, args);
    // It returns a promise unless the response has ended already.
    void Promise.resolve(result).finally(() => requests.handled--);
    return result;
  };
}

/**
 * Has a server say close to requests with a body. Each waits until its body has come, because a
 * handler may answer without reading it. One that takes longer is told after its body was read.
 */
function announceTo(server: Server, requests: Requests): void {
  const { emit } = server;
  server.emit = function (this: Server, name: string, ...args: unknown[]): boolean {
    const pass = (): boolean => Reflect.apply(emit, this, [name, ...args]);
    if (!isRequest(name, args)) return pass();
    const [request, response] = args;
    const sayClose = () => {
      if (!response.headersSent) response.setHeader("Connection", "close");
    };
    const chunks: Buffer[] = [];
    const answer = () => {
      clearTimeout(patience);
      request.off("readable", look);
      request.unshift(Buffer.concat(chunks));
      if (request.complete) sayClose();
      else {
        requests.unfinished = performance.now();
        request.once("end", sayClose);
      }
      pass();
    };
    const look = () => {
      if (request.complete) return answer();
      // The stream holds only the beginning of a long body.
      for (let chunk; (chunk = request.read()) !== null;) chunks.push(chunk);
    };
    const patience = setTimeout(answer, PATIENCE);
    request.on("readable", look);
    return true;
  };
}

const isRequest = (
  event: string,
  _args: readonly unknown[],
): _args is readonly [IncomingMessage, ServerResponse] => event === "request";

function serverOf(socket: unknown): Server | undefined {
  const { server }: { server?: Server } = Object(socket);
  return typeof server?.emit === "function" ? server : undefined;
}
