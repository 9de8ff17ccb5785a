import type { Socket } from "node:net";

import { drain } from "../../src/activation/adopt/drain.ts";
import { client, type Listening } from "./listening.ts";
import { atEnd } from "./started.ts";
import { until } from "./until.ts";

/** A client of HTTP/1.1 that keeps its connection, and what came on it. */
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

  async ask(target: string, headers = "") {
    this.send(target, headers);
    return await this.answer();
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
}

/** The headers of a request that becomes a WebSocket. */
export const UPGRADE =
  "Upgrade: websocket\r\nConnection: Upgrade\r\n" +
  "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/** Bytes of a frame that closes with 1001. */
export const GOING_AWAY = /\x88.\x03\xe9/s;

/** Waits until so many requests of a server are under way. */
export async function underWay(server: { pendingRequests: number }, count = 1): Promise<void> {
  await until("requests are under way", 10, () => server.pendingRequests === count);
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
