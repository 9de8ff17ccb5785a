/* A `net.Server` with no handler for connections: it may only test whether a port is free. */
import type { EventEmitter } from "node:events";

export interface Probe {
  readonly server: EventEmitter;
  /** The event of a connection. */
  readonly event: string;
}

/** The `net.Server` that calls `Bun.listen`, if it has no handler for `event`. */
export function probing({ data, tls }: { data?: unknown; tls?: unknown }): Probe | undefined {
  const event = tls ? "secureConnection" : "connection";
  if (!isNetServer(data) || data.listenerCount(event) > 0 || hasListener(data)) return undefined;
  return { server: data, event };
}

/** Calls `then` when the server gets a handler for connections. The function that it returns cancels that. */
export function onceHandled({ server, event }: Probe, then: () => void): () => void {
  const added = (name: unknown) => {
    if (name !== event) return;
    ignore();
    then();
  };
  const ignore = () => void server.off("newListener", added);
  server.on("newListener", added);
  return ignore;
}

/** Whether a `net.Server` was made with a handler: Bun 1.4.0 keeps that among its options. */
function hasListener(server: object): boolean {
  return Object.getOwnPropertySymbols(server).some(
    (symbol) => typeof Object(Reflect.get(server, symbol)).connectionListener === "function",
  );
}

export function isNetServer(it: unknown): it is EventEmitter {
  return typeof it === "object" && it !== null && "getConnections" in it;
}
