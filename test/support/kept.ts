import type { Socket } from "node:net";
import { connect as connectTLS } from "node:tls";

import { connectionsAt } from "../../src/activation/adopt/connections.ts";
import { drain } from "../../src/activation/adopt/drain.ts";
import { serve, type ServeOptions } from "../../src/activation/adopt/serve.ts";
import { socketName } from "../../src/activation/linux/libc.ts";
import { client, FAMILIES, type Listening, listening } from "./listening.ts";
import * as sockets from "./sockets.ts";
import { atEnd, started } from "./started.ts";
import { until } from "./until.ts";

/** A client of HTTP/1.1 that keeps its connection, and the text that came on it. */
export class Kept {
  received = "";
  /** How the server ended it. */
  end: string | undefined;

  constructor(readonly socket: Socket) {
    atEnd(() => socket.destroy());
    socket.setEncoding("latin1");
    socket.on("data", (data) => (this.received += String(data)));
    socket.on("end", () => (this.end = "closed"));
    socket.on("error", (error) => (this.end = error.message));
  }

  static async to(to: Listening["to"]): Promise<Kept> {
    return new Kept(await client(to));
  }

  send(target: string, headers = "", method = "GET"): void {
    this.received = "";
    this.socket.write(`${method} ${target} HTTP/1.1\r\nHost: example\r\n${headers}\r\n`);
  }

  /** The head and the body of the next answer, which has a known length. */
  async answer(): Promise<{ status: number; body: string; closes: boolean }> {
    return await until("an answer", 10, () => {
      if (this.end !== undefined && this.received === "") throw new Error(this.end);
      const [head = "", body] = this.received.split("\r\n\r\n");
      const length = Number(/^content-length: (\d+)/im.exec(head)?.[1] ?? 0);
      if (body === undefined || body.length < length) return undefined;
      const closes = /^connection: close/im.test(head);
      return { status: Number(head.slice(9, 12)), body, closes };
    });
  }

  async ask(target = "/", headers = "") {
    this.send(target, headers);
    return await this.answer();
  }

  /** Sends text in pieces, with a pause after each in milliseconds. */
  async write(pieces: readonly string[], pause: number): Promise<void> {
    this.received = "";
    for (const piece of pieces) {
      this.socket.write(piece);
      await Bun.sleep(pause);
    }
  }

  /** Waits until the server has ended the connection, and returns how. */
  async ended(): Promise<string> {
    return await until("the connection's end", 10, () => this.end);
  }

  /** Becomes a WebSocket. */
  async upgrade(): Promise<void> {
    this.send("/", UPGRADE);
    await until("the upgrade", 10, () => this.received.startsWith("HTTP/1.1 101 "));
  }

  /** Sends "hi" as a WebSocket, and waits for its echo. */
  async echo(): Promise<void> {
    this.received = "";
    this.socket.write(HI);
    await until("the echo", 10, () => this.received === "\x81\x07echo hi");
  }
}

/** The headers of a request that becomes a WebSocket. */
export const UPGRADE =
  "Upgrade: websocket\r\nConnection: Upgrade\r\n" +
  "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/** The frame of a WebSocket's message "hi". */
export const HI = Uint8Array.of(0x81, 0x82, 0, 0, 0, 0, 0x68, 0x69);

/** A handler that accepts WebSockets. */
export const upgrade = (request: Request, server: Bun.Server<undefined>) =>
  server.upgrade(request) ? undefined : new Response();

/** The handler of a WebSocket that sends back each message. */
export const ECHO: Bun.WebSocketHandler<undefined> = {
  message: (socket, message) => void socket.send(`echo ${message}`),
};

/** A handler that answers a request for /slow when it is released, and others at once. */
export function holding(text: string) {
  const release = Promise.withResolvers<void>();
  const fetch = async ({ url }: Request) => {
    if (url.endsWith("/slow")) await release.promise;
    return new Response(text);
  };
  return { release, fetch };
}

/** Bytes of a frame that closes with 1001. */
export const GOING_AWAY = /\x88.\x03\xe9/s;

/** Waits until so many requests of a server are under way. */
export async function underWay(server: { pendingRequests: number }, count = 1): Promise<void> {
  await until("requests are under way", 10, () => server.pendingRequests === count);
}

/** Waits until a server has accepted its first client: a client connects before that. */
export async function accepted(it: { kept: number }): Promise<void> {
  await until("it is accepted", 10, () => connectionsAt(socketName(it.kept)).length === 1);
}

/** Begins a drain whose grace lasts until the returned function is called, which returns the result. */
export function drainUntil(server: Bun.Server<undefined>): () => Promise<boolean> {
  const end = new AbortController();
  const drained = drain(server, { grace: 20_000, timeout: 30_000, signal: end.signal });
  return () => {
    end.abort();
    return drained;
  };
}

/** A server on a passed socket that answers with a text, or as its options say, and its clients. */
export function serving<Route extends string = never>(
  options: string | ServeOptions<undefined, Route>,
  family: (typeof FAMILIES)[number] = "IPv4",
) {
  const it = listening(family);
  atEnd(() => it[Symbol.dispose]());
  const answering = (text: string, fd: number) => serve({ fd, fetch: () => new Response(text) });
  return {
    kept: it.kept,
    to: it.to,
    server:
      typeof options === "string"
        ? answering(options, it.fd)
        : serve(Object.assign({}, options, { fd: it.fd })),
    client: () => Kept.to(it.to),
    tlsClient: () => new Kept(connectTLS({ ...it.to, rejectUnauthorized: false })),
    /** Returns a client that has sent a request. */
    async asking(target = "/", headers = "", method = "GET") {
      const kept = await Kept.to(it.to);
      kept.send(target, headers, method);
      return kept;
    },
    /** Asks on a connection of its own. */
    ask: async (target = "/", headers = "") => await (await Kept.to(it.to)).ask(target, headers),
    /** Starts the next process's server on the socket. */
    next: (text: string) => void started(answering(text, sockets.duplicate(it.kept))),
  };
}

/** The same, and stops the server at the end of the test. */
export function served<Route extends string = never>(
  ...how: Parameters<typeof serving<Route>>
): ReturnType<typeof serving> {
  const it = serving(...how);
  started(it.server);
  return it;
}
