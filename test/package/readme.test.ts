/* The programs of both READMEs, as they stand, under systemd-socket-activate. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";

import {
  activate,
  type ActivateOptions,
  ask,
  Client,
  execute,
  freePort,
  Running,
  scratch,
} from "../support/daemon.ts";
import { lacks } from "../support/needs.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import * as sockets from "../support/sockets.ts";
import { AF_INET, SOCK_DGRAM } from "../support/sockets.ts";
import { until } from "../support/until.ts";
import { programs, ROOT } from "./programs.ts";
import { README, withReference } from "./reference.ts";

setDefaultTimeout(60_000);

const PROGRAMS = programs(README);

let directory: ReturnType<typeof scratch>;
beforeAll(() => {
  directory = scratch();
  mkdirSync(join(directory.path, "node_modules"));
  symlinkSync(ROOT, join(directory.path, "node_modules/socket-service"));
});
afterAll(() => directory[Symbol.dispose]());

/** Writes a program into a file, and returns its path. */
function write(name: string, source = PROGRAMS.get(name)): string {
  if (source === undefined) throw new Error(`the README holds no ${name}`);
  const file = join(directory.path, name);
  writeFileSync(file, source);
  return file;
}

const activated = test.skipIf(lacks("systemd-socket-activate"));

/** Runs a program of the module's README on ports of the loopback. */
async function run(
  name: string,
  ports: number[],
  options: Omit<ActivateOptions, "listen"> = {},
): Promise<Running> {
  const listen = ports.map((port) => `127.0.0.1:${port}`);
  return await activate(process.execPath, { ...options, listen, args: [write(name)] });
}

const get = async (port: number, path = "/"): Promise<string> =>
  await (await fetch(`http://127.0.0.1:${port}${path}`)).text();

activated("the README's hello.ts serves as it stands, and compiled to one executable", async () => {
  const source = write("hello.ts", programs(join(ROOT, "README.md")).get("hello.ts"));
  const executable = join(directory.path, "hello");
  const build = [process.execPath, "build", "--compile", source, "--outfile", executable];
  expect(Bun.spawnSync(build, { cwd: directory.path }).exitCode).toBe(0);
  for (const [command, args] of [
    [process.execPath, [source]],
    [executable, []],
  ] as const) {
    const port = freePort();
    await using service = await activate(command, { listen: [port], args });
    expect(await get(port)).toBe("Hello\n");
    expect(service.said).toBe("");
  }
});

activated("http.ts serves, reports readiness, and ends at SIGTERM", async () => {
  const port = freePort();
  const receiver = new NotifyReceiver(join(directory.path, "notify"));
  await using service = await run("http.ts", [port], { env: { NOTIFY_SOCKET: receiver.address } });
  expect(await get(port)).toBe("Hello\n");
  expect((await receiver.next()).text).toBe(`READY=1\nSTATUS=Serving http://127.0.0.1:${port}/\n`);
  expect(await get(port, "/hello/you")).toBe("Hello you\n");
  service.process.kill("SIGTERM");
  expect((await receiver.next()).text).toBe("STOPPING=1\n");
  expect(await service.status()).toBe(0);
  receiver.close();
});

activated("idle.ts ends when it is idle", async () => {
  const port = freePort();
  await using service = await run("idle.ts", [port], { env: { IDLE_SECONDS: "1" } });
  expect(await get(port)).toBe("Hello\n");
  expect(await service.status()).toBe(0);
});

test("http.ts serves on its own port if nothing was passed, and ends at SIGTERM", async () => {
  const port = freePort();
  // The port that the README names may be taken here.
  const file = write("http.ts", PROGRAMS.get("http.ts")?.replace("port: 4000", `port: ${port}`));
  const child = Bun.spawn([process.execPath, file], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  await using service = new Running(child);
  expect(await until("an answer", 10, () => get(port).catch(() => undefined))).toBe("Hello\n");
  service.process.kill("SIGTERM");
  expect(await service.status()).toBe(0);
});

activated("named.ts serves both of its sockets", async () => {
  const [http, admin] = [freePort(), freePort()];
  await using service = await run("named.ts", [http, admin], { flags: ["--fdname=http:admin"] });
  expect(await get(http)).toBe("Hello\n");
  expect(await ask(admin)).toBe(`1 requests on 127.0.0.1:${http}\n`);
  expect(service.stderr).not.toContain("error");
});

activated("named.ts says which socket is missing", async () => {
  const port = freePort();
  await using service = await run("named.ts", [port], { flags: ["--fdname=http"] });
  const client = await Client.connect(port);
  await service.says(/0 descriptors are named "admin", where one is wanted/);
  client.close();
});

activated("echo.ts sends datagrams back", async () => {
  const port = freePort(AF_INET, SOCK_DGRAM);
  await using service = await run("echo.ts", [port], { flags: ["-d"] });
  const received = Promise.withResolvers<string>();
  const socket = await Bun.udpSocket({
    connect: { hostname: "127.0.0.1", port },
    socket: { data: (_, data) => received.resolve(data.toString()) },
  });
  socket.send("hello");
  expect(await received.promise).toBe("hello");
  socket.close();
  expect(service.stderr).not.toContain("error");
});

test("counter.ts goes on counting after a restart", async () => {
  const file = write("counter.ts");
  const receiver = new NotifyReceiver(join(directory.path, "store"));
  const http = sockets.listening(AF_INET, 5);
  const port = sockets.portOf(http);
  /** As the service manager starts it: the socket first, and then what it has stored. */
  const start = (stored: readonly number[]) =>
    execute(
      process.execPath,
      [http, ...stored],
      {
        LISTEN_FDNAMES: ["http", ...stored.map(() => "state")].join(":"),
        NOTIFY_SOCKET: receiver.address,
      },
      [file],
    );
  const stored: number[] = [];
  {
    await using _ = start([]);
    for (const count of [1, 2, 3]) expect(await get(port)).toBe(`${count}\n`);
    const { text, fds } = await receiver.next();
    expect(text).toBe("FDSTORE=1\nFDNAME=state\n");
    stored.push(...fds);
    expect((await receiver.next()).text).toBe("READY=1\n");
  }
  await using _ = start(stored);
  for (const count of [4, 5]) expect(await get(port)).toBe(`${count}\n`);
  expect((await receiver.next()).text).toBe("READY=1\n");
  for (const fd of [http, ...stored]) sockets.close(fd);
  receiver.close();
});

activated("node-http.ts serves through node:http", async () => {
  const port = freePort();
  await using service = await run("node-http.ts", [port]);
  expect(await get(port, "/there")).toBe("You asked for /there\n");
  expect(service.stderr).not.toContain("error");
});

test("the reference is what the doc comments say: make format puts it there", () => {
  const text = readFileSync(README, "utf8");
  expect(text).toBe(withReference(text));
});

test("every export is in the reference, under a heading of its own", async () => {
  const text = readFileSync(README, "utf8");
  const headings = [...text.matchAll(/^#### `(.*)`$/gm)].map(([, name = ""]) => name);
  expect(new Set(headings).size).toBe(headings.length);
  const exported = Object.keys(await import("../../src/activation/index.ts"));
  expect(exported.filter((name) => !headings.includes(name))).toEqual([]);
});

test("every link within the page leads to a heading", () => {
  const text = readFileSync(README, "utf8");
  const headings = [...text.matchAll(/^#+ (.*)$/gm)].map(([, title = ""]) =>
    title
      .toLowerCase()
      .replace(/[^a-z0-9 _-]/g, "")
      .replaceAll(" ", "-"),
  );
  const links = [...text.matchAll(/\]\(#(.*?)\)/g)].map(([, anchor = ""]) => anchor);
  expect(links.length).toBeGreaterThan(10);
  expect(links.filter((anchor) => !headings.includes(anchor))).toEqual([]);
});

test.each([README, "README.md", "test/bench/README.md"])(
  "no row of a table of %s is wider than a terminal",
  (path) => {
    const rows = readFileSync(resolve(ROOT, path), "utf8").match(/^\|.*/gm) ?? [];
    expect(rows.length).toBeGreaterThan(0);
    expect(rows.filter((row) => row.length > 120)).toEqual([]);
  },
);
