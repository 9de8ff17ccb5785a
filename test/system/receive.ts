/*
 * Prints what a port of the loopback sends: `bun receive.ts PORT` all until the end of file, and
 * `bun receive.ts PORT udp` the datagram that answers one.
 */
import { connect } from "node:net";

const [port = "0", type] = process.argv.slice(2);
if (type === "udp") {
  const client = await Bun.udpSocket({
    connect: { hostname: "127.0.0.1", port: Number(port) },
    socket: {
      data(_, data) {
        process.stdout.write(data);
        client.close();
      },
    },
  });
  client.send("hello");
} else {
  connect({ port: Number(port), host: "127.0.0.1" }).pipe(process.stdout);
}
