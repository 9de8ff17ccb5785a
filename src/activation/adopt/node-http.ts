import type { IncomingMessage, Server, ServerResponse } from "node:http";

import type { Requests } from "./requests.ts";

/*
 * What `http.Server.listen` gives to `Bun.serve`, which is internal to Bun: `onNodeHTTPRequest`, a
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
    // Bun closes at once, and what the client still sends would reset it.
    if (typeof bits === "number" && hasBody === false) args[BITS] = bits | CLOSE;
    else {
      const server = serverOf(socket);
      if (server && !announcing.has(server)) server.prependListener("request", announce);
      if (server) announcing.add(server);
    }
    requests.handled++;
    const result: unknown = Reflect.apply(answer, this, args);
    // It returns a promise unless the response has ended already.
    void Promise.resolve(result).finally(() => requests.handled--);
    return result;
  };
}

/** Says close as soon as the body of the request was read. */
function announce(request: IncomingMessage, response: ServerResponse): void {
  request.once("end", () => {
    if (!response.headersSent) response.setHeader("Connection", "close");
  });
}

function serverOf(socket: unknown): Server | undefined {
  const { server }: { server?: Server } = Object(socket);
  return typeof server?.prependListener === "function" ? server : undefined;
}
