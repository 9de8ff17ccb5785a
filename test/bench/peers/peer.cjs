// The greeting in Node with its `net`:  peer.cjs listen|accepted|inet
const net = require("node:net");

const deadline = 5000;

function serve(socket, line) {
  const timer = setTimeout(() => socket.destroy(), deadline);
  socket.on("close", () => clearTimeout(timer));
  socket.on("error", () => {}); // a client that has gone away is normal
  socket.end(line);
  socket.resume();
}

const allowHalfOpen = true;
switch (process.argv[2]) {
  case "accepted":
    serve(new net.Socket({ fd: 3, allowHalfOpen }), "This socket was already accepted\n");
    break;
  case "inet":
    serve(new net.Socket({ fd: 0, allowHalfOpen }), "This socket was passed on stdin/stdout\n");
    break;
  default:
    net
      .createServer({ allowHalfOpen }, (socket) => serve(socket, "This is a test\n"))
      .listen({ fd: 3 });
}
