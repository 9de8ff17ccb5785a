/* The programs of the module's README, as they stand, under systemd-socket-activate. */
import { dlopen } from "bun:ffi";
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

import { freePort } from "../support/daemon.ts";
import { client, text } from "../support/listening.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import * as sockets from "../support/sockets.ts";
import { AF_INET, SOCK_DGRAM } from "../support/sockets.ts";
import { eventually } from "../support/until.ts";

setDefaultTimeout(60_000);

const ROOT = resolve(import.meta.dir, "../..");
const README = readFileSync(join(ROOT, "src/activation/README.md"), "utf8");

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "socket-service-"));
  mkdirSync(join(directory, "node_modules"));
  symlinkSync(ROOT, join(directory, "node_modules/socket-service"));
});
afterAll(() => rmSync(directory, { recursive: true }));

/** Copies the program that begins with its file's name out of the README. */
function program(name: string): string {
  const [, source] = README.split(`\`\`\`ts\n// ${name}\n`);
  if (source === undefined) throw new Error(`the README holds no ${name}`);
  const file = join(directory, name);
  writeFileSync(file, source.slice(0, source.indexOf("```")));
  return file;
}

interface Running extends AsyncDisposable {
  readonly child: Bun.Subprocess;
  stderr(): string;
}

/** Runs a command, and collects what it says on stderr. */
function run(
  command: string[],
  options: Partial<Bun.Spawn.OptionsObject<"ignore", "inherit", "pipe">> = {},
): Running {
  const child = Bun.spawn(command, {
    stdout: "inherit",
    ...options,
    stdin: "ignore",
    stderr: "pipe",
  });
  let stderr = "";
  const reading = (async () => {
    for await (const chunk of child.stderr) stderr += Buffer.from(chunk).toString();
  })();
  return {
    child,
    stderr: () => stderr,
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      await child.exited;
      await reading;
    },
  };
}

/** Runs a program under systemd-socket-activate, which listens when this resolves. */
async function activate(
  name: string,
  flags: string[],
  ports: number[],
  env: Record<string, string> = {},
): Promise<Running> {
  const it = run([
    "systemd-socket-activate",
    ...flags,
    ...ports.flatMap((port) => ["-l", `127.0.0.1:${port}`]),
    ...Object.entries(env).flatMap(([variable, value]) => ["-E", `${variable}=${value}`]),
    process.execPath,
    program(name),
  ]);
  await eventually(() => it.stderr().split("Listening on").length > ports.length);
  return it;
}

const get = async (port: number, path = "/"): Promise<string> =>
  await (await fetch(`http://127.0.0.1:${port}${path}`)).text();

test("http.ts serves, tells so, and ends when it is idle", async () => {
  const port = freePort();
  const receiver = new NotifyReceiver(join(directory, "notify"));
  await using it = await activate("http.ts", [], [port], {
    IDLE_SECONDS: "2",
    NOTIFY_SOCKET: receiver.address,
  });
  expect(await get(port)).toBe("Hello\n");
  expect((await receiver.next()).text).toBe(`READY=1\nSTATUS=Serving http://127.0.0.1:${port}/\n`);
  expect(await get(port, "/hello/you")).toBe("Hello you\n");
  expect((await receiver.next()).text).toBe("STOPPING=1\n");
  expect(await it.child.exited).toBe(0);
  receiver.close();
});

test("http.ts serves on its own port where nothing was passed, and ends at SIGTERM", async () => {
  const port = freePort();
  const file = program("http.ts");
  // The port that the README names may be taken here.
  writeFileSync(file, readFileSync(file, "utf8").replace("port: 4000", `port: ${port}`));
  await using it = run([process.execPath, file]);
  expect(await eventually(() => get(port).catch(() => undefined))).toBe("Hello\n");
  it.child.kill("SIGTERM");
  expect(await it.child.exited).toBe(0);
});

test("named.ts serves both of its sockets", async () => {
  const [http, admin] = [freePort(), freePort()];
  await using it = await activate("named.ts", ["--fdname=http:admin"], [http, admin]);
  expect(await get(http)).toBe("Hello\n");
  expect(await text(await client({ port: admin, host: "127.0.0.1" }))).toBe(
    `1 requests on 127.0.0.1:${http}\n`,
  );
  expect(it.stderr()).not.toContain("error");
});

test("named.ts says which socket is missing", async () => {
  const port = freePort();
  await using it = await activate("named.ts", ["--fdname=http"], [port]);
  const early = await client({ port, host: "127.0.0.1" });
  await eventually(() =>
    it.stderr().includes('0 descriptors are named "admin", where one is wanted'),
  );
  early.destroy();
});

test("echo.ts sends datagrams back", async () => {
  const port = freePort(AF_INET, SOCK_DGRAM);
  await using it = await activate("echo.ts", ["-d"], [port]);
  const received = Promise.withResolvers<string>();
  const socket = await Bun.udpSocket({
    connect: { hostname: "127.0.0.1", port },
    socket: { data: (_, data) => received.resolve(data.toString()) },
  });
  socket.send("hello");
  expect(await received.promise).toBe("hello");
  socket.close();
  expect(it.stderr()).not.toContain("error");
});

test("counter.ts goes on counting after a restart", async () => {
  const { symbols: libc } = dlopen("libc.so.6", {
    fcntl: { args: ["i32", "i32", "i32"], returns: "i32" },
  });
  const file = program("counter.ts");
  const receiver = new NotifyReceiver(join(directory, "store"));
  const http = sockets.listening(AF_INET, 5);
  /** As the service manager starts it: the socket first, and then what it has stored. */
  const start = (stored: readonly number[]) => {
    const names = ["http", ...stored.map(() => "state")];
    return run(["/bin/sh", "-c", `export LISTEN_PID=$$; exec "$0" "$1"`, process.execPath, file], {
      env: {
        LISTEN_FDS: String(names.length),
        LISTEN_FDNAMES: names.join(":"),
        NOTIFY_SOCKET: receiver.address,
      },
      stdio: ["ignore", "inherit", "pipe", http, ...stored],
    } as Partial<Bun.Spawn.OptionsObject<"ignore", "inherit", "pipe">>);
  };
  const port = sockets.portOf(http);
  const stored: number[] = [];
  {
    await using _ = start([]);
    for (const count of [1, 2, 3]) expect(await get(port)).toBe(`${count}\n`);
    const { text, fds } = await receiver.next();
    expect(text).toBe("FDSTORE=1\nFDNAME=state\n");
    stored.push(...fds);
    expect((await receiver.next()).text).toBe("READY=1\n");
  }
  for (const fd of stored) expect(libc.fcntl(fd, 1, 0)).toBeGreaterThanOrEqual(0);
  await using _ = start(stored);
  for (const count of [4, 5]) expect(await get(port)).toBe(`${count}\n`);
  expect((await receiver.next()).text).toBe("READY=1\n");
  for (const fd of [http, ...stored]) sockets.close(fd);
  receiver.close();
});

test("node-http.ts serves through node:http", async () => {
  const port = freePort();
  await using it = await activate("node-http.ts", [], [port]);
  expect(await get(port, "/there")).toBe("You asked for /there\n");
  expect(it.stderr()).not.toContain("error");
});

test("every export has its place in the README", async () => {
  const exported = Object.keys(await import("../../src/activation/index.ts"));
  expect(exported.length).toBeGreaterThan(20);
  expect(exported.filter((name) => !README.includes(`\`${name}`))).toEqual([]);
});
