/**
 * The smallest Bun program for the same job, compiled with the flags of the services: it takes the
 * socket as it comes, checks nothing, and has no deadline. `floor listen|accepted|inet`, or
 * `floor unix PATH` for a socket of its own, behind systemd-socket-proxyd.
 */
import { runtime } from "../../../src/activation/bun.ts";

function greet(socket: Bun.Socket, line: string): void {
  socket.write(line);
  socket.shutdown();
}

// Without a `data` handler Bun does not read, and would not see the client's end of file.
const data = (): void => {};
const end = (socket: Bun.Socket): void => void socket.end();
const allowHalfOpen = true;

function serveOne(fd: number, line: string): void {
  const open = (socket: Bun.Socket): void => greet(socket, line);
  void runtime.connect({ fd, allowHalfOpen, socket: { open, data, end } });
}

switch (process.argv[2]) {
  case "accepted":
    serveOne(3, "This socket was already accepted\n");
    break;
  case "inet":
    serveOne(0, "This socket was passed on stdin/stdout\n");
    break;
  default: {
    const open = (socket: Bun.Socket): void => greet(socket, "This is a test\n");
    const [style, unix] = process.argv.slice(2);
    const socket = { open, data, end };
    if (style !== "unix" || unix === undefined) {
      runtime.listen({ fd: 3, allowHalfOpen, socket });
      break;
    }
    Bun.listen({ unix, allowHalfOpen, socket });
    console.log("listening");
  }
}
