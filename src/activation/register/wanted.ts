/* Where a call of `Bun.serve`, `Bun.listen` or `Bun.udpSocket` wants to listen. */
import { reportedPath } from "../adopt/address.ts";
import { LOOPBACK, PLACEHOLDER } from "../adopt/serve.ts";
import { overlay } from "../bun.ts";
import type { Wanted } from "./claims.ts";

/** The options of a call that say where. */
export interface Place {
  readonly fd?: unknown;
  readonly port?: unknown;
  readonly hostname?: unknown;
  readonly unix?: unknown;
  readonly reusePort?: unknown;
}

/** The port of `Bun.serve` if none is set. */
const DEFAULT_PORT = 3000;
/** The variables that set another one. Bun reads them once, at its start. */
const { BUN_PORT, PORT, NODE_PORT } = process.env;

/**
 * Returns what a call asks for; undefined if it needs no passed socket, for example with any free port.
 * `byDefault` returns the port if the call names none.
 */
export function wantedBy(
  { port, hostname, unix, reusePort }: Place,
  type: Wanted["type"],
  byDefault?: () => number,
): Wanted | undefined {
  // A placeholder of `serve` of the module.
  if (typeof unix === "string" && unix.startsWith(PLACEHOLDER)) return undefined;
  if (typeof unix === "string" && unix !== "") return { type, at: absolute(unix) };
  const isUnset = port === undefined || port === null || port === "";
  const at = isUnset ? byDefault?.() : Number(port);
  const host = typeof hostname === "string" ? hostname : undefined;
  // Bun throws the error for a wrong port.
  if (!at || !isPort(at)) return undefined;
  return { type, at, hostname: host, ...(reusePort ? { reusePort: true } : {}) };
}

/** The port that `Bun.serve` takes from the environment, or from Bun's own options. */
export function defaultPort(): number {
  const { execArgv } = process;
  const at = execArgv.indexOf("--port");
  const option = at < 0 ? execArgv.find((it) => it.startsWith("--port=")) : execArgv[at + 1];
  const given = [BUN_PORT, PORT, NODE_PORT, option?.replace("--port=", "")];
  // Bun ignores anything else, but not a 0.
  const isNumber = (text = "") => /^\+?\d+$/.test(text) && isPort(Number(text));
  return Number(given.find(isNumber) ?? DEFAULT_PORT);
}

/** Returns a place that no client knows. */
export function placeholder({ at }: Wanted): Place {
  return typeof at === "number"
    ? { fd: undefined, hostname: LOOPBACK, port: 0 }
    : { fd: undefined, unix: `\0bun-listen-${crypto.randomUUID()}` };
}

/** Has a listener report the address that was wanted. */
export function reporting(listener: object, { at, hostname }: Wanted): object {
  const getsockname: Function = Reflect.get(listener, "getsockname");
  return overlay(listener, {
    ...(typeof at === "number" ? { port: at, hostname } : { unix: reportedPath(at) }),
    getsockname(address: { address?: string; port?: number }) {
      getsockname.call(listener, address);
      const family = hostname?.includes(":") ? "IPv6" : "IPv4";
      Object.assign(address, { port: at }, hostname && { address: hostname, family });
    },
  });
}

/** Returns a path as systemd has it, and an abstract name with `@`. */
function absolute(unix: string): string {
  if (unix[0] === "\0") return `@${unix.slice(1)}`;
  return process.getBuiltinModule("node:path").resolve(unix);
}

function isPort(number: number): boolean {
  return Number.isInteger(number) && number >= 0 && number <= 0xffff;
}
