/*
 * Asks a port of the loopback over TLS, from far away, and then prints its Tally as JSON: as many
 * connections at once as told, each for one request. Goes on until standard input has ended.
 * Arguments: port, connections, and milliseconds of a round trip.
 */
import { connect } from "node:tls";

import { far } from "../support/far.ts";
import type { Tally } from "../support/http.ts";

const [port = 0, connections = 1, roundTrip = 0] = process.argv.slice(2).map(Number);
const tally: Tally = { answered: 0, connections: 0, lost: {}, longest: 0, answers: {}, last: "" };
const distance = await far({ host: "127.0.0.1", port }, roundTrip);
let isOver = false;

function ask(): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const begun = performance.now();
  let received = "";
  let problem = "closed without an answer";
  tally.connections++;
  const socket = connect({ host: "127.0.0.1", port: distance.port, rejectUnauthorized: false });
  socket.write("GET / HTTP/1.1\r\nHost: example\r\nConnection: close\r\n\r\n");
  socket.on("data", (data) => (received += String(data)));
  socket.on("error", (error: NodeJS.ErrnoException) => (problem = error.code ?? error.message));
  socket.on("close", () => {
    const [, body] = received.split("\r\n\r\n");
    if (body === undefined) tally.lost[problem] = (tally.lost[problem] ?? 0) + 1;
    else {
      tally.answered++;
      tally.last = body;
      tally.answers[body] = (tally.answers[body] ?? 0) + 1;
      tally.longest = Math.max(tally.longest, performance.now() - begun);
    }
    resolve();
  });
  return promise;
}

async function worker(): Promise<void> {
  while (!isOver) await ask();
}

void Bun.stdin.text().finally(() => (isOver = true));
await Promise.all(Array.from({ length: connections }, worker));
console.log(JSON.stringify(tally));
process.exit();
