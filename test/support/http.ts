/*
 * Asks a server over HTTP, with as many connections at once as told, each kept for as long as the
 * service keeps it, and then prints its Tally as JSON. Asks no question twice.
 * Arguments: a port of the loopback or `@` and an abstract name, number of requests, connections, the
 * longest pause between two requests of one connection in milliseconds (each is random), the length of
 * the body that each request is to have: none by default, and the milliseconds of a round trip: if they are
 * given, each request has a connection of its own over TLS, from far away. If a pause is given, it goes on
 * beyond that number until standard input has ended.
 */
import { connect } from "node:net";
import { connect as connectTLS } from "node:tls";

import { far } from "./far.ts";

export interface Tally {
  answered: number;
  connections: number;
  /** The number of requests with no answer, by their end. */
  lost: Record<string, number>;
  /** Milliseconds from a request, or from the connect before it, to its answer: the longest. */
  longest: number;
  /** The number of answers that are an error of the server, by their status. */
  failed: Record<string, number>;
  /** The number of answers with each body. */
  answers: Record<string, number>;
  /** The body of the last answer. */
  last: string;
}

const [address = "", ...numbers] = process.argv.slice(2);
const to = address.startsWith("@")
  ? { path: address.replace("@", "\0") }
  : { port: Number(address), host: "127.0.0.1" };
const [requests = 1, connections = 1, longest, size = 0, roundTrip] = numbers.map(Number);
const pause = longest ?? 0;
const distance = roundTrip === undefined ? undefined : await far(to, roundTrip);
const open = () =>
  distance === undefined
    ? connect(to)
    : connectTLS({ host: "127.0.0.1", port: distance.port, rejectUnauthorized: false });
const close = distance === undefined ? "" : "Connection: close\r\n";
const request =
  size === 0
    ? `GET / HTTP/1.1\r\nHost: example\r\n${close}\r\n`
    : `POST / HTTP/1.1\r\nHost: example\r\nContent-Length: ${size}\r\n\r\n${"x".repeat(size)}`;

const tally: Tally = {
  answered: 0,
  connections: 0,
  lost: {},
  longest: 0,
  failed: {},
  answers: {},
  last: "",
};
let asked = 0;
let ended = longest === undefined;
const isOver = () => ended && asked >= requests;
const someTime = () => Bun.sleep(Math.random() * pause);

/** One connection, until the service closes it or there is nothing left to ask. */
function converse(): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  asked++;
  tally.connections++;
  let begun = performance.now();
  let isWaiting = true;
  let received = "";
  let problem = "closed without an answer";
  const socket = open().setEncoding("latin1");
  const send = () => socket.write(request);
  const ask = async () => {
    if (pause > 0) await someTime();
    // The service has closed the connection meanwhile, or there is no need of it any more.
    if (socket.readyState !== "open") return;
    if (isOver()) return void socket.end();
    asked++;
    isWaiting = true;
    begun = performance.now();
    send();
  };
  socket.on(distance === undefined ? "connect" : "secureConnect", send);
  socket.on("data", (data) => {
    received += String(data);
    const [head = "", body] = received.split("\r\n\r\n");
    const length = Number(/^content-length: (\d+)/im.exec(head)?.[1]);
    if (body === undefined || body.length < length) return;
    // The last chunk of a body in chunks is empty.
    if (/^transfer-encoding: chunked/im.test(head) && !received.endsWith("\r\n0\r\n\r\n")) return;
    received = "";
    isWaiting = false;
    tally.answered++;
    const [status = ""] = /5\d\d/.exec(head.slice(9, 12)) ?? [];
    if (status !== "") tally.failed[status] = (tally.failed[status] ?? 0) + 1;
    tally.last = body;
    tally.answers[body] = (tally.answers[body] ?? 0) + 1;
    tally.longest = Math.max(tally.longest, performance.now() - begun);
    // The service wants no more on this connection.
    if (/^connection: close/im.test(head)) socket.end();
    else void ask();
  });
  socket.on("error", (error: NodeJS.ErrnoException) => (problem = error.code ?? error.message));
  socket.on("close", () => {
    if (isWaiting) tally.lost[problem] = (tally.lost[problem] ?? 0) + 1;
    resolve();
  });
  return promise;
}

async function worker(): Promise<void> {
  while (!isOver()) {
    await converse();
    if (pause > 0) await someTime();
  }
}

if (!ended) void Bun.stdin.text().finally(() => (ended = true));
await Promise.all(Array.from({ length: connections }, worker));
console.log(JSON.stringify(tally));
process.exit();
