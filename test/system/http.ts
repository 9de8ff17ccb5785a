/*
 * Asks a port of the loopback over HTTP, with as many connections at once as told, each kept for as
 * long as the service keeps it, and prints how it went and the last answer, as JSON. Asks no
 * question twice. Arguments: port, number of requests, connections.
 */
import { connect } from "node:net";

const [port = 0, requests = 1, connections = 1] = process.argv.slice(2).map(Number);

const tally = { answered: 0, connections: 0, lost: {} as Record<string, number>, last: "" };
let asked = 0;

/** One connection, until the service closes it or there is nothing left to ask. */
function converse(): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const socket = connect(port, "127.0.0.1").setEncoding("latin1");
  let waiting = false;
  let received = "";
  let problem = "closed without an answer";
  const ask = () => {
    if (asked >= requests) return void socket.end();
    asked++;
    waiting = true;
    received = "";
    socket.write("GET / HTTP/1.1\r\nHost: example\r\n\r\n");
  };
  socket.on("connect", () => {
    tally.connections++;
    ask();
  });
  socket.on("data", (data) => {
    received += String(data);
    const [head = "", body] = received.split("\r\n\r\n");
    const length = Number(/^content-length: (\d+)/im.exec(head)?.[1]);
    if (body === undefined || body.length < length) return;
    waiting = false;
    tally.answered++;
    tally.last = body;
    // The service wants no more on this connection.
    if (/^connection: close/im.test(head)) socket.end();
    else ask();
  });
  socket.on("error", (error: NodeJS.ErrnoException) => (problem = error.code ?? error.message));
  socket.on("close", () => {
    if (waiting) tally.lost[problem] = (tally.lost[problem] ?? 0) + 1;
    resolve();
  });
  return promise;
}

async function worker(): Promise<void> {
  while (asked < requests) await converse();
}

await Promise.all(Array.from({ length: connections }, worker));
console.log(JSON.stringify(tally));
