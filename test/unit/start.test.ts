/* The services leave slow work until after the first byte: see Start in src/README.md. */
import { expect, test } from "bun:test";
import { resolve } from "node:path";

import { SERVICES } from "../support/services.ts";
import { client, listening, text } from "../support/listening.ts";
import * as sockets from "../support/sockets.ts";

const PRELOAD = resolve(import.meta.dir, "../support/start.ts");

test.each(SERVICES.map(({ name, greeting }) => [name, greeting] as const))(
  "%s uses nothing before its first byte that makes a start longer",
  async (name, greeting) => {
    using listener = listening("IPv4");
    const socket = await client(listener.to);
    const fd = name === "socket-service" ? listener.fd : sockets.accept(listener.kept);
    const program = resolve(import.meta.dir, `../../src/daemons/${name}.ts`);
    // The shell becomes the service, so that its own process id is the right one.
    const script = `[ -z "$LISTEN_FDS" ] || export LISTEN_PID=$$; exec "$@"`;
    const command = ["sh", "-c", script, "sh", process.execPath, "--preload", PRELOAD, program];
    await using service = name.endsWith("inet")
      ? Bun.spawn(command, { env: {}, stdio: [fd, fd, "pipe"] })
      : Bun.spawn(command, { env: { LISTEN_FDS: "1" }, stdio: ["ignore", "ignore", "pipe", fd] });
    for (const own of new Set([fd, listener.fd])) sockets.close(own);
    expect(await text(socket)).toBe(greeting);
    socket.end();
    service.kill("SIGTERM");
    expect(await new Response(service.stderr).text()).toBe("");
  },
);
