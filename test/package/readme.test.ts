/* The programs of both READMEs, as they stand, under systemd-socket-activate. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { basename, join, resolve } from "node:path";

import { serve } from "../../src/activation/index.ts";
import { activate, ask, askDatagram, Client, get } from "../support/daemon.ts";
import { execute, executable, freePort, type Running, scratch } from "../support/daemon.ts";
import { CERTIFICATE } from "../support/listening.ts";
import { lacks } from "../support/needs.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import { project } from "../support/project.ts";
import * as sockets from "../support/sockets.ts";
import { AF_INET, SOCK_DGRAM } from "../support/sockets.ts";
import { until } from "../support/until.ts";
import { activation, furtherLines, programs, README } from "../support/pages.ts";
import { REFERENCE, ROOT, units } from "../support/pages.ts";
import { withReference } from "./reference.ts";

setDefaultTimeout(60_000);

const PROGRAMS = programs(README);
/** The programs that need no framework: frameworks.test.ts has the others. */
const OWN = [...PROGRAMS.keys()].filter(
  (name) => !/ from "(?!node:|socket-service\/)/.test(PROGRAMS.get(name) ?? ""),
);

let directory: ReturnType<typeof scratch>;
beforeAll(() => {
  directory = project();
  for (const name of OWN) write(name);
  writeFileSync(join(directory.path, "key.pem"), CERTIFICATE.key);
  writeFileSync(join(directory.path, "cert.pem"), CERTIFICATE.cert);
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

const HELLO = programs(join(ROOT, "README.md")).get("hello.ts");

interface RunOptions {
  readonly env?: Readonly<Record<string, string>>;
  /** Options of Bun. */
  readonly bun?: readonly string[];
}

/** Runs the command that the module's README has for a program, on other ports. */
async function run(name: string, ports: number[], options: RunOptions = {}): Promise<Running> {
  const { args, ...activator } = activation(README, name, ports);
  const { env = {}, bun = [] } = options;
  const cwd = directory.path;
  return await activate(process.execPath, { ...activator, args: [...bun, ...args], env, cwd });
}

activated("the README's hello.ts serves as it stands, and compiled to one executable", async () => {
  const source = write("hello.ts", HELLO);
  const executable = join(directory.path, "hello");
  const build = [process.execPath, "build", "--compile", source, "--outfile", executable];
  expect(Bun.spawnSync(build, { cwd: directory.path }).exitCode).toBe(0);
  for (const [command, args] of [
    [process.execPath, [source]],
    [executable, []],
  ] as const) {
    await using service = await activate(command, { args });
    expect(await service.get()).toBe("Hello\n");
    expect(service.said).toBe("");
    expect(await service.stop()).toBe(0);
  }
});

test("the README's hello.ts says in one line that nothing was passed, and opens no port", async () => {
  const source = write("hello.ts", HELLO);
  await using service = execute(process.execPath, [], { LISTEN_PID: undefined }, [source]);
  expect(await service.status()).toBe(78);
  expect(service.stderr).toMatch(/^no socket was passed, .*\n$/);
});

activated("the README's hello.ts answers its watchdog, and ends when it is idle", async () => {
  const source = write("hello.ts", HELLO?.replace("60_000", "500"));
  using receiver = new NotifyReceiver();
  const port = freePort();
  const env = { NOTIFY_SOCKET: receiver.address, WATCHDOG_USEC: "200000" };
  const options = { listen: [`127.0.0.1:${port}`], args: [source], env };
  await using service = await activate(process.execPath, options);
  expect(await get(port)).toBe("Hello\n");
  expect(await receiver.text()).toBe(`READY=1\nSTATUS=Serving http://127.0.0.1:${port}/\n`);
  expect(await receiver.text()).toBe("WATCHDOG=1\n");
  expect(await service.status()).toBe(0);
});

activated("http.ts serves, reports readiness, and ends at SIGTERM", async () => {
  const port = freePort();
  using receiver = new NotifyReceiver();
  await using service = await run("http.ts", [port], { env: { NOTIFY_SOCKET: receiver.address } });
  expect(await get(port)).toBe("Hello\n");
  expect(await receiver.text()).toBe(`READY=1\nSTATUS=Serving http://127.0.0.1:${port}/\n`);
  expect(await get(port, "/hello/you")).toBe("Hello you\n");
  service.process.kill("SIGTERM");
  expect(await receiver.text()).toBe("STOPPING=1\n");
  expect(await service.status()).toBe(0);
});

/** http.ts with the lines of the recipe for idle exit, but for another time. */
function idleExit(milliseconds: number): string {
  const lines = linesFor("whenIdle(");
  const source = PROGRAMS.get("http.ts")?.replace("{ drain,", "{ whenIdle, drain,");
  return `${source}${lines.replace("30_000", String(milliseconds))}`;
}

activated("http.ts ends when it is idle, with the lines of the recipe", async () => {
  const file = write("idle.ts", idleExit(500));
  await using service = await activate(process.execPath, { args: [file] });
  expect(await service.get()).toBe("Hello\n");
  expect(await service.status()).toBe(0);
  expect(service.said).toBe("");
});

activated(
  "under bun --hot, too, http.ts ends when it is idle, and not while it is busy",
  async () => {
    const file = write("idle.ts", idleExit(1000));
    const options = { args: ["--hot", file] };
    await using service = await activate(process.execPath, options);
    expect(await service.get()).toBe("Hello\n");
    write("idle.ts", idleExit(1000).replaceAll("Hello", "Edited"));
    await until("the new code answers", 10, async () => (await service.get()) === "Edited\n");
    // For longer than the code before the edit would wait.
    for (const begun = performance.now(); performance.now() - begun < 2000; await Bun.sleep(50))
      expect(await service.get()).toBe("Edited\n");
    expect(await service.status()).toBe(0);
  },
);

/** Lines of the module's page for http.ts: the block that begins with these. */
function linesFor(begin: string): string {
  const blocks = [...readFileSync(README, "utf8").matchAll(/```ts\n(.*?)```/gs)];
  const found = blocks.find(([, lines = ""]) => lines.startsWith(begin));
  return found?.[1] ?? expect.unreachable();
}

activated("http.ts reloads at SIGHUP, with the lines of the page", async () => {
  const text = join(directory.path, "hello");
  const lines = linesFor(`process.on("SIGHUP"`).replace("/etc/hello", text);
  const file = write("reload.ts", PROGRAMS.get("http.ts")?.replace("notify({ ready", `${lines}$&`));
  using receiver = new NotifyReceiver();
  const options = { args: [file], env: { NOTIFY_SOCKET: receiver.address } };
  await using service = await activate(process.execPath, options);
  expect(await service.get()).toBe("Hello\n");
  expect(await receiver.text()).toStartWith("READY=1\n");
  writeFileSync(text, "Reloaded\n");
  service.process.kill("SIGHUP");
  expect(await receiver.text()).toMatch(/^RELOADING=1\nMONOTONIC_USEC=\d+\n$/);
  expect(await receiver.text()).toBe("READY=1\n");
  expect(await service.get()).toBe("Reloaded\n");
});

activated("http.ts logs with fields, with the line of the page", async () => {
  const source = PROGRAMS.get("http.ts")?.replace("{ drain,", "{ log, LogLevel, drain,");
  const file = write("log.ts", `${source}${linesFor("log(")}`);
  await using service = await activate(process.execPath, { args: [file] });
  expect(await service.get()).toBe("Hello\n");
  expect(service.said).toBe("payment refused ORDER_ID=4711 REASON=limit REASON=country\n");
});

test.each(["http.ts", "tls.ts"])(
  "%s serves on the loopback's first address alone if nothing was passed",
  async (name) => {
    const port = freePort();
    // The port that the README names may be taken here.
    const file = write(`alone-${name}`, PROGRAMS.get(name)?.replace("4000", String(port)));
    const variables = { LISTEN_PID: undefined, LISTEN_FDS: undefined };
    const cwd = directory.path;
    await using service = execute(process.execPath, [], variables, [file], cwd);
    const url = `${name === "tls.ts" ? "https" : "http"}://127.0.0.1:${port}/`;
    const options = { keepalive: false, tls: { rejectUnauthorized: false } };
    await until("it answers", 10, () => fetch(url, options).catch(() => undefined));
    // A server on all addresses would have this one too.
    const elsewhere = Client.connect(port, "127.0.0.2");
    expect(await elsewhere.catch((error) => error)).toMatchObject({ code: "ECONNREFUSED" });
    expect(await service.stop()).toBe(0);
  },
);

activated("pair.ts serves both of its sockets, and reports readiness", async () => {
  using receiver = new NotifyReceiver();
  const [http, admin] = [freePort(), freePort()];
  const env = { NOTIFY_SOCKET: receiver.address };
  await using service = await run("pair.ts", [http, admin], { env });
  expect(await get(http)).toBe("Hello\n");
  expect(await ask(admin)).toBe(`1 requests on 127.0.0.1:${http}\n`);
  expect(await receiver.text()).toMatch(/^READY=1$/m);
  expect(service.stderr).not.toContain("error");
});

activated("pair.ts says which socket is missing", async () => {
  const flags = ["--fdname=http"];
  const args = [write("pair.ts")];
  await using service = await activate(process.execPath, { flags, args });
  const client = await service.client();
  await service.says(/0 descriptors have the name "admin", but the program expects one/);
  client.close();
});

activated("echo.ts sends datagrams back, and reports readiness", async () => {
  using receiver = new NotifyReceiver();
  const port = freePort(SOCK_DGRAM);
  await using service = await run("echo.ts", [port], { env: { NOTIFY_SOCKET: receiver.address } });
  expect(await askDatagram(port)).toBe("hello");
  expect(await receiver.text()).toMatch(/^READY=1$/m);
  expect(service.stderr).not.toContain("error");
});

test("counter.ts goes on counting after a restart", async () => {
  const file = join(directory.path, "counter.ts");
  using receiver = new NotifyReceiver();
  const http = sockets.listening(AF_INET, 5);
  const port = sockets.portOf(http);
  /** Starts it as the service manager does: the socket comes first, and then the stored descriptors. */
  const start = (stored: readonly number[]) => {
    const LISTEN_FDNAMES = ["http", ...stored.map(() => "state")].join(":");
    const variables = { LISTEN_FDNAMES, NOTIFY_SOCKET: receiver.address };
    return execute(process.execPath, [http, ...stored], variables, [file]);
  };
  const stored: number[] = [];
  {
    await using _ = start([]);
    for (const count of [1, 2, 3]) expect(await get(port)).toBe(`${count}\n`);
    const { text, fds } = await receiver.next();
    expect(text).toBe("FDSTORE=1\nFDNAME=state\n");
    stored.push(...fds);
    expect(await receiver.text()).toBe("READY=1\n");
  }
  await using _ = start(stored);
  for (const count of [4, 5]) expect(await get(port)).toBe(`${count}\n`);
  expect(await receiver.text()).toBe("READY=1\n");
  for (const fd of [http, ...stored]) sockets.close(fd);
});

activated(
  "under bun --hot, open connections of serve get the new code, of listen not",
  async () => {
    const source = `
    import { listen, listenFds, pick, serve } from "socket-service/activation";
    const { http, tcp } = pick(listenFds(), { http: "one", tcp: "one" });
    serve({ fd: http, fetch: () => new Response("before") });
    listen({ fd: tcp, socket: { data: (socket) => void socket.write("before\\n") } });`;
    const file = write("open.ts", source);
    const [http, tcp] = [freePort(), freePort()];
    const flags = ["--fdname=http:tcp"];
    const options = { flags, listen: [http, tcp], args: ["--hot", file] };
    await using service = await activate(process.execPath, options);
    /** Asks on a connection that stays open, each time. */
    const connection = async (port: number, question: string) => {
      const socket = connect(port, "127.0.0.1");
      let answer = "";
      socket.on("data", (data) => (answer += String(data)));
      return async () => {
        answer = "";
        socket.write(question);
        await until("an answer", 10, () => answer !== "");
        return answer.trimEnd().split(/\s/).at(-1);
      };
    };
    const askHTTP = await connection(http, "GET / HTTP/1.1\r\nHost: example\r\n\r\n");
    const askTCP = await connection(tcp, "hello");
    expect([await askHTTP(), await askTCP()]).toEqual(["before", "before"]);
    write("open.ts", source.replaceAll("before", "after"));
    await until("the new code answers", 10, async () => (await askHTTP()) === "after");
    expect(await askTCP()).toBe("before");
    expect(service.said).toBe("");
  },
);

test("a reload takes neither a new certificate nor a new address", async () => {
  const fetched = (url: URL) =>
    fetch(url, { tls: { rejectUnauthorized: false }, keepalive: false });
  const at = { hostname: "127.0.0.1", port: 0, tls: CERTIFICATE };
  const server = serve({ ...at, fetch: () => new Response("before") });
  const url = new URL(server.url);
  expect(await (await fetched(url)).text()).toBe("before");
  // As a new certificate this would be an error.
  const wrong = { port: freePort(), tls: { key: "no key", cert: "no certificate" } };
  server.reload({ ...wrong, fetch: () => new Response("after") });
  expect(await (await fetched(url)).text()).toBe("after");
  expect(server.url.href).toBe(url.href);
  await server.stop(true);
});

test("every program is started by a command, or by a unit", () => {
  const started = [...units(README).values()].map((unit) =>
    /^ExecStart=\/usr\/local\/bin\/bun --no-install \/srv\/(.*)$/m.exec(unit),
  );
  const varied = [...furtherLines(README).keys()].map((unit) => unit.replace(".service", ".ts"));
  const names = [...started.map((found) => found?.[1]), ...varied];
  const left = OWN.filter((name) => {
    const { listen = [] } = activation(README, name, [1, 2]);
    return listen.length === 0 && !names.includes(name);
  });
  expect(left).toEqual([]);
});

/** The pages that have examples. */
const PAGES = [
  "README.md",
  "src/activation/README.md",
  "src/activation/REFERENCE.md",
  "test/bench/README.md",
];

test.each(PAGES)("no example of %s listens on all addresses", (page) => {
  const text = readFileSync(join(ROOT, page), "utf8");
  const given = [
    ...text.matchAll(/systemd-socket-activate .*?(?<=-l )(\S+)(?: -l (\S+))?/g),
    ...text.matchAll(/^ListenStream=(.+)()$/gm),
  ].flatMap(([, first = "", second = ""]) => [first, second].filter(Boolean));
  expect(given.filter((address) => !/^(127\.0\.0\.1:\d+|\/.*)$/.test(address))).toEqual([]);
  // Programs, and the examples of the reference.
  const blocks = [...text.matchAll(/```ts\n(.*?)```/gs)].map(([, source = ""]) => source);
  const ports = blocks.flatMap((source) => [
    ...source.matchAll(/.*\n?.*\bport: \d+/g),
    ...source.matchAll(/\.listen\(.*/g),
  ]);
  expect(ports.filter(([use]) => !use.includes('"127.0.0.1"')).map(([use]) => use)).toEqual([]);
});

/** The lines of these directives in a unit. */
const lines = (unit: string, directives: readonly string[]): string[] =>
  directives.map((name) => new RegExp(`^${name}=.*$`, "m").exec(unit)?.[0] ?? `no ${name}=`);

/** No number of restarts closes a port, and a start that never takes the client is not tried for ever. */
const SOCKET = [
  "StartLimitIntervalSec=0",
  "TriggerLimitIntervalSec=2s",
  "TriggerLimitBurst=200",
  "WantedBy=sockets.target",
];

const EXAMPLES = PAGES.flatMap((page) => [...units(join(ROOT, page))]);

test.each(EXAMPLES)(
  "%s, an example, has the limits of socket-service's own units",
  (name, unit) => {
    const own = (suffix: string) =>
      readFileSync(join(ROOT, "units/socket-service") + suffix, "utf8");
    if (name.endsWith(".socket"))
      return expect(SOCKET.filter((line) => !unit.split("\n").includes(line))).toEqual([]);
    const directives = [
      "StartLimitIntervalSec",
      "StartLimitBurst",
      "Type",
      "Restart",
      "RestartSec",
    ];
    expect(lines(unit, directives)).toEqual(lines(own(".service"), directives));
    const socket = name.replace("@", "").replace(".service", ".socket");
    expect(lines(unit, ["Requires", "After"])).toEqual([`Requires=${socket}`, `After=${socket}`]);
  },
);

test("both pages have units to look at", () => {
  expect(EXAMPLES.map(([name]) => name)).toEqual([
    ...["app.socket", "app.service", "hello.socket", "hello.service"],
    ...["app.socket", "app.service", "http.socket", "http.service"],
    ...["web.socket", "web@.service", "web@.socket"],
  ]);
});

test("both pages have the same units for an unchanged program", () => {
  const [first, second] = [join(ROOT, "README.md"), README].map(units);
  for (const name of ["app.socket", "app.service"])
    expect(first?.get(name)).toBe(second?.get(name) ?? "none");
});

test("without the JIT, a listening socket passed by mistake is a client that has gone", async () => {
  const fd = sockets.listening(AF_INET, 5);
  const env = { BUN_JSC_useJIT: "0" };
  await using accepted = execute("socket-service-accepted", [fd], env);
  const inet = Bun.spawn([executable("socket-service-inet")], { env, stdio: [fd, fd, "pipe"] });
  expect([await accepted.status(), await inet.exited]).toEqual([0, 0]);
  expect([accepted.stderr, await inet.stderr.text()]).toEqual(["", ""]);
  sockets.close(fd);
});

test("the reference holds the doc comments: make format writes it", () => {
  const text = readFileSync(REFERENCE, "utf8");
  // The formatter breaks a declaration elsewhere if it is shorter without `export`.
  const unbroken = (page: string) => page.replace(/,?\s+/g, "");
  expect(unbroken(text)).toBe(unbroken(withReference(text)));
});

test("every export is in the reference, under a heading of its own", async () => {
  const text = readFileSync(REFERENCE, "utf8");
  const headings = [...text.matchAll(/^### `(.*)`$/gm)].map(([, name = ""]) => name);
  expect(new Set(headings).size).toBe(headings.length);
  const exported = Object.keys(await import("../../src/activation/index.ts"));
  expect(exported.filter((name) => !headings.includes(name))).toEqual([]);
});

test("the map names every exported function", async () => {
  const [, map = ""] = /^## The map\n(.*?)^## /ms.exec(readFileSync(README, "utf8")) ?? [];
  const exported = Object.entries(await import("../../src/activation/index.ts"));
  // A class begins with a capital letter.
  const functions = exported.filter(
    ([name, it]) => typeof it === "function" && /^[a-z]/.test(name),
  );
  expect(functions.length).toBeGreaterThan(10);
  expect(functions.filter(([name]) => !map.includes(`\`${name}\``))).toEqual([]);
});

test("every link of the module's pages to a heading leads to one, and none leads elsewhere", () => {
  const targets = new Set<string>();
  const links: string[] = [];
  for (const page of [README, REFERENCE]) {
    const text = readFileSync(page, "utf8");
    targets.add(basename(page));
    for (const [, title = ""] of text.matchAll(/^#+ (.*)$/gm)) {
      const anchor = title.toLowerCase().replace(/[^a-z0-9 _-]/g, "");
      targets.add(`${basename(page)}#${anchor.replaceAll(" ", "-")}`);
    }
    for (const [, link = ""] of text.matchAll(/\]\((?!https:)(.*?)\)/g))
      links.push(link.startsWith("#") ? basename(page) + link : link);
  }
  expect(links.length).toBeGreaterThan(10);
  expect(links.filter((link) => !targets.has(link))).toEqual([]);
});

test.each([README, "README.md", "test/bench/README.md"])(
  "no row of a table of %s is wider than a terminal",
  (path) => {
    const rows = readFileSync(resolve(ROOT, path), "utf8").match(/^\|.*/gm) ?? [];
    expect(rows.length).toBeGreaterThan(0);
    expect(rows.filter((row) => row.length > 120)).toEqual([]);
  },
);
