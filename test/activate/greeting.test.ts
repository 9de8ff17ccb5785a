/* Each client of a service is greeted, whatever it does itself. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { activate, ask, freePort, type Running, scratch } from "../support/daemon.ts";
import { SERVICES } from "../support/services.ts";
import { lacks, lacksIPv6 } from "../support/needs.ts";
import { EMULATED } from "../support/until.ts";

setDefaultTimeout(30_000);

const MEGABYTE = new Uint8Array(1_000_000).fill(0x78);
/** The longest time in milliseconds until a service is done with a client that has closed. */
/** An open connection has five seconds. */
const SOON = 4000;

const FAMILIES = ["IPv4", ...(lacksIPv6() ? [] : ["IPv6"]), "Unix"];

const testClients = test.skipIf(lacks("nc", "curl", "telnet"));

for (const { name, flags, greeting } of SERVICES)
  describe.skipIf(lacks("systemd-socket-activate"))(name, () => {
    const start = () => activate(name, { flags });

    /** After `count` clients have closed: nothing is left of them within a second, and no word. */
    async function expectDone(service: Running, count: number): Promise<void> {
      if (flags.length > 0)
        expect(await service.ends(count, SOON)).toEqual(Array(count).fill("code 0"));
      // It would wait for an open connection.
      else expect(await service.stop(SOON)).toBe(0);
      expect(service.said).toBe("");
    }

    test.each(FAMILIES)("greets and ends the stream, over %s", async (family) => {
      using directory = scratch();
      const [port, path] = [freePort(), join(directory.path, "socket")];
      const [listen, to, host] =
        family === "Unix"
          ? [path, path]
          : family === "IPv6"
            ? [`[::1]:${port}`, port, "::1"]
            : [port, port];
      await using service = await activate(name, { flags, listen: [listen] });
      expect(await ask(to, host)).toBe(greeting);
      await expectDone(service, 1);
    });

    test("greets a client that sends a megabyte first", async () => {
      await using service = await start();
      const client = await service.client();
      client.pause();
      await client.send(MEGABYTE);
      client.finish();
      expect(await client.received()).toBe(greeting);
      await client.closed();
      await expectDone(service, 1);
    });

    test("greets a client that shuts its sending side down first", async () => {
      await using service = await start();
      const client = await service.client();
      client.finish();
      expect(await client.received()).toBe(greeting);
      await expectDone(service, 1);
    });

    testClients("greets nc, curl and telnet, which speak first", async () => {
      await using service = await start();
      const commands = [
        ["nc", "-q0", "127.0.0.1", `${service.port}`],
        [
          ..."curl --noproxy * --silent --show-error --http0.9".split(" "),
          `http://127.0.0.1:${service.port}/`,
        ],
        ["telnet", "127.0.0.1", `${service.port}`],
      ];
      await Promise.all(
        commands.map(async (command) => {
          const stdio = ["pipe", "pipe", "pipe"] as const;
          await using client = Bun.spawn(command, { stdio: [...stdio], timeout: 10_000 });
          client.stdin.write("GET / HTTP/1.0\r\n\r\n");
          client.stdin.flush();
          const decoder = new TextDecoder();
          let received = "";
          for await (const chunk of client.stdout) {
            received += decoder.decode(chunk);
            if (received.includes(greeting)) client.stdin.end();
          }
          expect(`${command[0]}: ${received}`).toContain(greeting);
          expect(await client.stderr.text()).not.toMatch(/reset/i);
        }),
      );
      await expectDone(service, 3);
    });

    // qemu-user returns four bytes of TCP_INFO, which tells a connection that was reset.
    test.skipIf(EMULATED)(
      "takes a reset of a client for normal, before the greeting and after it",
      async () => {
        await using service = await start();
        for (let i = 0; i < 5; i++) (await service.client()).reset();
        for (let i = 0; i < 5; i++) {
          const client = await service.client();
          expect(await client.received()).toBe(greeting);
          client.reset();
        }
        expect(await service.ask()).toBe(greeting);
        await expectDone(service, 11);
      },
    );

    test("is changed by nothing in its working directory", async () => {
      using directory = scratch();
      writeFileSync(join(directory.path, "evil.ts"), `console.error("evil code runs");`);
      writeFileSync(join(directory.path, "bunfig.toml"), `preload = ["./evil.ts"]`);
      writeFileSync(join(directory.path, ".env"), "LISTEN_FDS=2\nBUN_OPTIONS=--preload=./evil.ts");
      writeFileSync(join(directory.path, "libc.so.6"), "not a library");
      const files = readdirSync(directory.path);
      await using service = await activate(name, { flags, cwd: directory.path });
      expect(await service.ask()).toBe(greeting);
      await expectDone(service, 1);
      expect(readdirSync(directory.path)).toEqual(files);
    });

    if (flags.length > 0)
      test("greets without the JIT, as under MemoryDenyWriteExecute=", async () => {
        using directory = scratch();
        const path = join(directory.path, "socket");
        const env = { BUN_JSC_useJIT: "0" };
        await using tcp = await activate(name, { flags, env });
        await using unix = await activate(name, { flags, listen: [path], env });
        expect(await tcp.ask()).toBe(greeting);
        expect(await ask(path)).toBe(greeting);
        // A client that is gone before the greeting needs an explanation, and gets none here.
        (await tcp.client()).reset();
        await expectDone(tcp, 2);
        await expectDone(unix, 1);
      });
  });
