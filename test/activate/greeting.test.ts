import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";

import {
  activate,
  ask,
  Client,
  freePort,
  type Running,
  scratch,
  SERVICES,
} from "../support/daemon.ts";
import { eventually } from "../support/until.ts";

// Some wait out the five seconds that a connection may stay open.
setDefaultTimeout(60_000);

const MEGABYTE = new Uint8Array(1_000_000).fill(0x78);

/** Waits for the end of every process that served a connection, and tells with what status. */
async function statuses(service: Running, count: number): Promise<string[]> {
  if (service.process.exitCode !== null) return [];
  const pattern = /Child \d+ died with (?:code|signal) \S+/g;
  const said = await eventually(() => {
    const found = service.stderr.match(pattern) ?? [];
    return found.length >= count && found;
  });
  return said.map((line) => line.replace(/Child \d+ died with /, ""));
}

/** How many connections to a port a process holds open on the service's side. */
function held(port: number): number {
  const local = port.toString(16).toUpperCase().padStart(4, "0");
  const [LISTEN, ORPHAN] = ["0A", "0"];
  return ["/proc/net/tcp", "/proc/net/tcp6"]
    .flatMap((table) => readFileSync(table, "utf8").split("\n"))
    .map((line) => line.trim().split(/\s+/))
    .filter(([, address, , state]) => address?.endsWith(`:${local}`) && state !== LISTEN)
    .filter((fields) => fields[9] !== ORPHAN).length;
}

for (const { name, flags, greeting } of SERVICES) {
  const perConnection = flags.length > 0;

  describe(name, () => {
    /** A running service, and a check that it took what happened as normal. */
    async function start(port: number): Promise<Running> {
      return await activate(name, { flags, listen: [port] });
    }

    /** After `count` connections: no message, and exit status 0. */
    async function expectNormal(service: Running, count: number): Promise<void> {
      if (perConnection)
        expect(await statuses(service, count)).toEqual(Array(count).fill("code 0"));
      else {
        service.process.kill("SIGTERM");
        expect(await service.status()).toBe(0);
      }
      expect(service.stderr).not.toMatch(new RegExp(`^${name}:`, "m"));
    }

    test("greets and ends the stream, over IPv4", async () => {
      const port = freePort();
      await using service = await start(port);
      expect(await ask(port)).toBe(greeting);
      await expectNormal(service, 1);
    });

    test("greets and ends the stream, over IPv6", async () => {
      const port = freePort();
      await using service = await activate(name, { flags, listen: [`[::1]:${port}`] });
      expect(await ask(port, "::1")).toBe(greeting);
      await expectNormal(service, 1);
    });

    test("greets and ends the stream, over a Unix socket", async () => {
      using directory = scratch();
      const path = join(directory.path, "socket");
      await using service = await activate(name, { flags, listen: [path] });
      expect(await ask(path)).toBe(greeting);
      await expectNormal(service, 1);
    });

    if (perConnection)
      test("greets without FFI, where memory is not both written and run", async () => {
        using directory = scratch();
        const [port, path] = [freePort(), join(directory.path, "socket")];
        // bun:ffi fails without the JIT.
        const env = { BUN_JSC_useJIT: "0" };
        await using tcp = await activate(name, { flags, listen: [port], env });
        await using unix = await activate(name, { flags, listen: [path], env });
        expect(await ask(port)).toBe(greeting);
        expect(await ask(path)).toBe(greeting);
        // A client that is gone before the greeting needs an explanation, and gets none here.
        (await Client.connect(port)).reset();
        await expectNormal(tcp, 2);
        await expectNormal(unix, 1);
      });

    test("greets a client that sends a megabyte before it reads", async () => {
      const port = freePort();
      await using service = await start(port);
      const client = await Client.connect(port);
      client.pause();
      client.send(MEGABYTE);
      client.finish();
      expect(await client.received()).toBe(greeting);
      await eventually(() => client.gone);
      await expectNormal(service, 1);
    });

    test("greets a client that shuts its sending side down first", async () => {
      const port = freePort();
      await using service = await start(port);
      const client = await Client.connect(port);
      client.finish();
      expect(await client.received()).toBe(greeting);
      await expectNormal(service, 1);
    });

    test("greets nc, telnet and curl, which speak first", async () => {
      const port = freePort();
      await using service = await start(port);
      const request = "GET / HTTP/1.0\r\n\r\n";
      for (const command of [
        ["nc", "-q1", "127.0.0.1", `${port}`],
        ["curl", "--silent", "--show-error", "--max-time", "10", `telnet://127.0.0.1:${port}`],
        // Ends as soon as its input does, so that has to wait.
        ["sh", "-c", `(cat; sleep 1) | telnet 127.0.0.1 ${port}`],
      ]) {
        await using client = Bun.spawn(command, {
          stdin: new Blob([request]),
          stdout: "pipe",
          stderr: "pipe",
        });
        expect(await client.stdout.text()).toContain(greeting);
        expect(await client.stderr.text()).not.toMatch(/reset/i);
      }
      await expectNormal(service, 3);
    });

    test("takes a client that resets before the greeting as normal", async () => {
      const port = freePort();
      await using service = await start(port);
      for (let i = 0; i < 5; i++) (await Client.connect(port)).reset();
      expect(await ask(port)).toBe(greeting);
      await expectNormal(service, 6);
    });

    test("takes a client that resets after the greeting as normal", async () => {
      const port = freePort();
      await using service = await start(port);
      const client = await Client.connect(port);
      expect(await client.received()).toBe(greeting);
      client.reset();
      expect(await ask(port)).toBe(greeting);
      await expectNormal(service, 2);
    });

    test("drops a client that never closes, and one that trickles, after five seconds", async () => {
      const port = freePort();
      await using service = await start(port);
      const silent = await Client.connect(port);
      const trickling = await Client.connect(port);
      const began = performance.now();
      expect(await silent.received()).toBe(greeting);
      expect(await trickling.received()).toBe(greeting);
      const trickle = setInterval(() => trickling.send("x"), 500);
      // Honest clients are served meanwhile.
      expect(await ask(port)).toBe(greeting);
      await eventually(() => held(port) === 2);
      await eventually(() => held(port) === 0);
      clearInterval(trickle);
      expect(performance.now() - began).toBeGreaterThan(4900);
      expect(performance.now() - began).toBeLessThan(6000);
      silent.close();
      trickling.close();
      await expectNormal(service, 3);
    });
  });
}
