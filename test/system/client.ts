/**
 * The clients of test/system, run in the machine's network: `bun client.ts KIND PORT COUNT [PAUSE]`.
 *
 *     once      COUNT clients at once
 *     load      COUNT clients at a time, each followed by the next
 *     pulse     COUNT clients at once, and again PAUSE milliseconds after the last has ended
 *     silent    COUNT clients that never close
 *     trickle   COUNT clients that send a byte a second for ever
 *     reset     COUNT clients that reset: a third at once, a third having sent, a third when greeted
 *
 * For each line on standard input it prints its Tally so far as a line of JSON. At the end of
 * standard input it begins no more connections, waits for those that are open (`silent` and
 * `trickle` excepted), prints its last Tally and ends.
 */
import type { Socket } from "bun";

import { SERVICES } from "../support/services.ts";

export interface Tally {
  /** Connections begun. */
  begun: number;
  /** Connections that got the whole greeting and then a clean end of file, or that reset. */
  served: number;
  /** The number of other connections, by their end. */
  lost: Record<string, number>;
  /** Milliseconds until the first byte: the median and the longest. */
  median: number;
  longest: number;
}

interface Connection {
  number: number;
  begun: number;
  received: string;
  /** How it ended, once it has: "served", or the reason why it was lost. */
  fate: string | undefined;
}

const kind = process.argv[2] ?? "";
const port = Number(process.argv[3]);
const count = Number(process.argv[4]);
const pause = Number(process.argv[5] ?? 0);
const greeting = SERVICES.find((service) => service.port === port)?.greeting;
const stays = kind === "silent" || kind === "trickle";

let begun = 0;
let ended = 0;
let finishing = false;
const fates: Record<string, number> = {};
const times: number[] = [];

function end(connection: Connection, fate: string): void {
  if (connection.fate !== undefined) return;
  connection.fate = fate;
  fates[fate] = (fates[fate] ?? 0) + 1;
  ended += 1;
  if (finishing) return;
  if (kind === "load") begin();
  // Between 90 and 110 % of the pause: clients come before, after and just as a service gives up.
  if (kind === "pulse" && ended === begun) setTimeout(burst, pause * (0.9 + Math.random() / 5));
}

const socket = {
  open(socket: Socket<Connection>) {
    const third = socket.data.number % 3;
    if (kind === "reset" && third !== 2) {
      if (third === 1) socket.write("GET / HTTP/1.0\r\n\r\n");
      end(socket.data, "served");
      socket.terminate();
    }
    if (kind === "trickle") setInterval(() => socket.write("."), 1000);
  },
  data(socket: Socket<Connection>, bytes: Buffer) {
    if (socket.data.received === "") times.push(performance.now() - socket.data.begun);
    socket.data.received += bytes.toString("latin1");
    if (kind === "reset") {
      end(socket.data, "served");
      socket.terminate();
    }
  },
  // With allowHalfOpen this is the server's FIN and nothing else: a reset goes to close().
  end(socket: Socket<Connection>) {
    const { received } = socket.data;
    end(socket.data, received === greeting ? "served" : `got ${JSON.stringify(received)}`);
    if (!stays) socket.end();
  },
  close(socket: Socket<Connection>, error?: Error) {
    end(socket.data, error === undefined ? "closed" : reason(error));
  },
  error(socket: Socket<Connection>, error: Error) {
    end(socket.data, reason(error));
  },
};

function reason(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : String(error);
}

function begin(): void {
  begun += 1;
  const data: Connection = {
    number: begun,
    begun: performance.now(),
    received: "",
    fate: undefined,
  };
  Bun.connect({ hostname: "127.0.0.1", port, allowHalfOpen: true, data, socket }).catch(
    (error: unknown) => end(data, reason(error)),
  );
}

function burst(): void {
  if (!finishing) for (let i = 0; i < count; i += 1) begin();
}

function tally(): Tally {
  const { served = 0, ...lost } = fates;
  const sorted = times.toSorted((a, b) => a - b);
  const median = sorted[sorted.length >> 1] ?? 0;
  return { begun, served, lost, median, longest: sorted.at(-1) ?? 0 };
}

burst();
for await (const _ of console) console.log(JSON.stringify(tally()));
finishing = true;
const deadline = performance.now() + 120_000;
while (ended < begun && performance.now() < deadline) await Bun.sleep(5);
if (ended < begun) fates["no answer"] = begun - ended;
console.log(JSON.stringify(tally()));
process.exit(0);
