import { once } from "node:events";
import { createServer, type NetConnectOpts, Socket } from "node:net";

/** A way to a server that takes half of a round trip in each direction. */
export async function far(
  to: NetConnectOpts,
  roundTrip: number,
): Promise<{ port: number } & Disposable> {
  const proxy = createServer((near) => {
    const server = new Socket();
    // A client's first data arrives together with the end of TCP's handshake.
    setTimeout(() => server.connect({ ...to }), roundTrip / 2);
    const later = (from: Socket, onto: Socket) => {
      from.on("data", (data) => setTimeout(() => onto.write(data), roundTrip / 2));
      from.on("error", () => onto.destroy());
      from.on("close", () => setTimeout(() => onto.end(), roundTrip / 2));
    };
    later(near, server);
    later(server, near);
  }).listen(0, "127.0.0.1");
  await once(proxy, "listening");
  const address = proxy.address();
  const port = typeof address === "object" ? (address?.port ?? 0) : 0;
  return { port, [Symbol.dispose]: () => void proxy.close() };
}
