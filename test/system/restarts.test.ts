/** Clients of an HTTP service notice nothing of its restarts by a real systemd. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";

import { restarts } from "../support/restarts.ts";
import { CERTIFICATE } from "../support/listening.ts";
import { lacks } from "../support/needs.ts";
import { until } from "../support/until.ts";
import { cannotRun, nothingFailed } from "./harness.ts";
import type { Tally } from "../support/http.ts";
import { BUN, linkModule, Machine, ROOT } from "../support/machine.ts";

setDefaultTimeout(120_000);

const PORT = 4100;
const REQUEST = 100;
const MB = 1e6;

/** Roots of `make debian-root` have it. */
const noNginx = ROOT === "/" && lacks("nginx");

describe.skipIf(cannotRun)("restarts by systemd", () => {
  let machine: Machine;
  beforeAll(async () => {
    machine = await Machine.boot();
    await linkModule(machine);
  });
  afterAll(() => nothingFailed(machine));

  /** Clients, the bytes that each request sends and no handler reads, and where they ask. */
  for (const [connections, body, where] of [
    [64, REQUEST, {}],
    [64, 0, { unix: true }],
    [64, REQUEST, { unix: true }],
    [8, MB, {}],
    [4, 10 * MB, {}],
    [32, 0, { nginx: true }],
    [32, REQUEST, { nginx: true }],
    [32, REQUEST, { nginx: true, unix: true }],
    [8, MB, { nginx: true }],
    [4, 10 * MB, { nginx: true }],
  ] as const) {
    const { unix, nginx } = { unix: false, nginx: false, ...where };
    const kind = `${unix ? "AF_UNIX" : "TCP"}${nginx ? " behind nginx" : ""}`;
    test.skipIf(nginx && noNginx)(
      `lose no request of ${connections} clients over ${kind} that never pause, of ${body} bytes each`,
      async () => {
        const load = { end: "drain", grace: 200, pause: 0, restarts: 3, requests: 0 } as const;
        const tally = await restarts(machine, { ...load, connections, body, ...where });
        expect(tally).toMatchObject({ lost: {}, answers: { "Hello\n": tally.answered } });
        expect(tally.answered).toBeGreaterThan(2 * connections);
      },
    );
  }

  /** A service that ends as a program does with these lines, and its socket. */
  async function install(name: string, source: string): Promise<void> {
    const unit = `/run/systemd/system/${name}`;
    await machine.write(`/srv/programs/${name}.ts`, source);
    const start = `Type=notify\nExecStart=${BUN} /srv/programs/${name}.ts`;
    await machine.write(
      `${unit}.service`,
      `[Unit]\nStartLimitIntervalSec=0\n[Service]\n${start}\n`,
    );
    await machine.write(`${unit}.socket`, `[Socket]\nListenStream=127.0.0.1:${PORT}\n`);
    await machine.systemctl("daemon-reload");
    await machine.systemctl("start", `${name}.socket`, `${name}.service`);
  }

  async function stop(name: string): Promise<void> {
    await machine.systemctl("stop", `${name}.socket`, `${name}.service`);
  }

  // With the exit statuses of curl.
  for (const [what, condition, ended, longestDrain] of [
    ["ends when draining says so", "!draining(server).aborted", 0, 1000],
    ["never ends, is cut", "true", 18, 2000],
  ] as const)
    test(`a stream that ${what}, and costs no other client a request`, async () => {
      await install(
        "stream",
        `
import { drain, draining, notify, passedFd, serve } from "socket-service/activation";
async function* ticks() {
  while (${condition}) {
    yield "tick\\n";
    await Bun.sleep(20);
  }
}
const server = serve({
  fd: passedFd(),
  routes: { "/stream": () => new Response(ticks()) },
  fetch: () => new Response("Hello"),
});
process.on("SIGTERM", async () => {
  await drain(server, { grace: 300, timeout: 2000 });
  process.exit();
});
notify({ ready: true });
`,
      );
      const script = join(import.meta.dir, "../support/http.ts");
      const clients = machine.client(script, ...[PORT, 0, 16, 0].map(String));
      const output = clients.stdout.text();
      for (let i = 0; i < 3; i++) {
        const at = `/run/stream-${ended}-${i}`;
        const url = `http://127.0.0.1:${PORT}/stream`;
        const stream = machine.run("curl", "--silent", "--no-buffer", "--output", at, url);
        await until("the stream has begun", 10, async () => {
          return (await machine.run("test", "-s", at)).status === 0;
        });
        const begun = performance.now();
        await machine.systemctl("restart", "stream.service");
        // The end of one process and the start of the next are part of it.
        expect(performance.now() - begun).toBeWithin(longestDrain / 4, longestDrain + 2000);
        expect((await stream).status).toBe(ended);
      }
      await clients.stdin.end();
      const { lost, answered, longest }: Tally = JSON.parse(await output);
      expect(lost).toEqual({});
      expect(answered).toBeGreaterThan(100);
      // From half of the timeout on, newcomers wait for the next process.
      expect(longest).toBeLessThan(2500);
      await stop("stream");
    });

  test("a TLS handshake under way is finished, with a round trip of 100 ms", async () => {
    await install(
      "tls",
      `
import { drain, notify, passedFd, serve } from "socket-service/activation";
const tls = ${JSON.stringify(CERTIFICATE)};
const server = serve({ fd: passedFd(), tls, fetch: () => new Response("safe") });
process.on("SIGTERM", async () => {
  await drain(server, { grace: 300 });
  process.exit();
});
notify({ ready: true });
`,
    );
    const script = join(import.meta.dir, "../support/http.ts");
    const clients = machine.client(script, ...[PORT, 0, 32, 0, 0, 100].map(String));
    const output = clients.stdout.text();
    for (let i = 0; i < 6; i++) {
      await Bun.sleep(300);
      await machine.systemctl("restart", "tls.service");
    }
    await clients.stdin.end();
    const tally: Tally = JSON.parse(await output);
    expect(tally).toMatchObject({ lost: {}, answers: { safe: tally.answered } });
    expect(tally.answered).toBeGreaterThan(100);
    await stop("tls");
  });
});
