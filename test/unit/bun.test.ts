/* What is asked of Bun itself: a version, and what `serve` is there for. */
import { expect, test } from "bun:test";

import { requireBun } from "../../src/activation/bun.ts";
import { refusal, thrown } from "../support/checks.ts";
import { listening } from "../support/listening.ts";

test("Bun 1.4.0 and newer will do, and an older one is refused", () => {
  for (const version of ["1.4.0", "1.4.5", "1.5.0", "1.10.0", "2.0.0", "10.0.0"])
    requireBun(version);
  for (const version of ["0.8.1", "1.0.0", "1.0.36", "1.3.14"])
    expect(thrown(() => requireBun(version))).toEqual(refusal(71, /^Bun \S+ is too old for /));
});

test("Bun.serve ignores fd", async () => {
  using socket = listening("IPv4");
  const options = { fd: socket.fd, port: 0, fetch: () => new Response() };
  const server = Bun.serve(options);
  const { port } = server;
  await server.stop(true);
  const passed = "port" in socket.to ? socket.to.port : undefined;
  if (port === passed)
    throw new Error(
      `Bun ${Bun.version} takes fd in Bun.serve itself. Find out with the tests of serve whether it keeps ` +
        "the backlog of the socket, reports its address, and serves over AF_UNIX. If so, have serve() hand " +
        "fd to Bun.serve from that version on, and once package.json asks for it (engines), delete the " +
        "placeholder. If not, serve() goes on as it is: it never lets Bun see fd. Tell in this test why.",
    );
  expect(port).toBeGreaterThan(0);
});
