/* Starts programs that know nothing of systemd with the preload, as systemd would. */
import { afterAll } from "bun:test";
import { mkdirSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";

import type { Tally } from "./http.ts";
import { executable, execute, get, type Running, scratch } from "./daemon.ts";
import { FAMILIES, type Listening, listening } from "./listening.ts";
import { NotifyReceiver } from "./notify-receiver.ts";
import * as sockets from "./sockets.ts";
import { until } from "./until.ts";

const CLIENT = resolve(import.meta.dir, "./http.ts");
const CONNECTIONS = 32;

/** As `make pack` packs it. */
export const REGISTER = executable("register.js");

/** A socket unit: a listening socket, or one for datagrams, and its name. */
export interface Unit {
  readonly family?: (typeof FAMILIES)[number] | "UDP";
  readonly name?: string;
}

interface Socket extends Disposable {
  readonly kept: number;
  readonly to: Listening["to"];
}

function open(family: Unit["family"] = "IPv4"): Socket {
  if (family !== "UDP") {
    const it = listening(family, 511);
    sockets.close(it.fd);
    return it;
  }
  const kept = sockets.bound(sockets.AF_INET, sockets.SOCK_DGRAM);
  const to = { port: sockets.portOf(kept), host: "127.0.0.1" };
  return { kept, to, [Symbol.dispose]: () => sockets.close(kept) };
}

export interface StartOptions {
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** Options of Bun. */
  readonly flags?: readonly string[];
  /** The program, with its arguments, in the place of Bun with a preload. */
  readonly command?: readonly string[];
}

/** A service: sockets that stay, a directory with the program, and the process that runs now. */
export class Service implements AsyncDisposable {
  readonly directory = scratch();
  readonly sockets: readonly Socket[];
  readonly receiver = new NotifyReceiver();
  /** Every process that was started. */
  readonly processes: Running[] = [];
  readonly #names: string;

  constructor(units: readonly Unit[] = [{}]) {
    this.sockets = units.map(({ family }) => open(family));
    this.#names = units.map(({ name = "app.socket" }) => name).join(":");
  }

  /** Where the first socket listens. */
  get to(): Listening["to"] {
    const [first] = this.sockets;
    if (first === undefined) throw new Error("no socket is passed");
    return first.to;
  }

  get port(): number {
    const { to } = this;
    if ("path" in to) throw new Error("a path has no port");
    return to.port;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}/`;
  }

  write(name: string, text: string): void {
    const path = join(this.directory.path, name);
    mkdirSync(dirname(path), { recursive: true });
    // In one step: bun --hot would read a half.
    writeFileSync(`${path}.new`, text);
    renameSync(`${path}.new`, path);
  }

  start(program: string, { env = {}, flags = [], command }: StartOptions = {}): Running {
    const { path } = this.directory;
    const passed = this.sockets.map(({ kept }) => kept);
    const variables = {
      PATH: process.env["PATH"],
      HOME: path,
      LISTEN_FDNAMES: this.#names,
      NOTIFY_SOCKET: this.receiver.address,
      ...(passed.length === 0 && {
        LISTEN_PID: undefined,
        LISTEN_FDS: undefined,
        LISTEN_FDNAMES: undefined,
      }),
      ...env,
    };
    const [executable = "", ...args] = command ?? [
      process.execPath,
      ...["--no-install", "--preload", REGISTER, ...flags, program],
    ];
    const running = execute(executable, passed, variables, args, path);
    this.processes.push(running);
    return running;
  }

  /** Writes a program and starts it. */
  run(source: string, options?: StartOptions): Running {
    this.write("program.ts", source);
    return this.start("program.ts", options);
  }

  /** Waits for a notification that holds a text, and returns all until it. */
  async notified(text: string): Promise<string[]> {
    const all: string[] = [];
    await until(`a notification with ${text}`, 10, () => {
      for (let next; (next = this.receiver.poll());) {
        all.push(next.text);
        if (next.text.includes(text)) return true;
      }
      const ended = this.processes.at(-1)?.process;
      if (ended !== undefined && ended.exitCode !== null)
        throw new Error(this.processes.at(-1)?.stderr);
      return false;
    });
    return all;
  }

  async ready(): Promise<string> {
    return (await this.notified("READY=1")).join("");
  }

  async get(path = "/"): Promise<string> {
    return await get(this.port, path);
  }

  /** Sends SIGTERM to the process that runs, and returns its exit status and how long it took. */
  async stop(): Promise<{ status: number; milliseconds: number }> {
    const running = this.processes.at(-1);
    if (running === undefined) throw new Error("nothing runs");
    const begun = performance.now();
    const status = await running.stop(30_000);
    return { status, milliseconds: performance.now() - begun };
  }

  /**
   * Restarts the program that runs under clients that keep their connections, as systemd does: the
   * next process starts when the last one has ended. Clients pause for `pause` milliseconds at most, and
   * send bodies of `body` bytes. Returns the tally of the clients, and the statuses.
   */
  async restarts(count: number, start: () => unknown, pause = 20, body = 0) {
    const numbers = [this.port, 1, CONNECTIONS, pause, body].map(String);
    const client = Bun.spawn([process.execPath, CLIENT, ...numbers], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "inherit",
    });
    const output = client.stdout.text();
    const statuses: number[] = [];
    for (let i = 0; i < count; i++) {
      // Every client asks on a connection that it keeps.
      await Bun.sleep(200 + 2 * pause);
      statuses.push((await this.stop()).status);
      start();
      await this.ready();
    }
    await Bun.sleep(200);
    await client.stdin.end();
    const tally: Tally = JSON.parse(await output);
    return { ...tally, statuses };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const running of this.processes) await running[Symbol.asyncDispose]();
    this.receiver.close();
    for (const socket of this.sockets) socket[Symbol.dispose]();
    this.directory[Symbol.dispose]();
  }
}

/** Starts services for the tests of one file, and ends them after these. */
export function startsServices() {
  const services = new AsyncDisposableStack();
  afterAll(() => services.disposeAsync());

  const service = (...units: Unit[]) => services.use(new Service(units));

  /** Starts a program on one socket, and waits until it is ready. */
  async function started(source: string, options?: StartOptions, unit: Unit = {}) {
    const it = service(unit);
    const running = it.run(source, options);
    return { it, running, status: await it.ready() };
  }

  return { service, started };
}

/** Returns the echo of a WebSocket. */
export async function echoed(url: string): Promise<unknown> {
  const socket = new WebSocket(url);
  socket.addEventListener("open", () => socket.send("echo"));
  const { data } = await new Promise<MessageEvent>((resolve, reject) => {
    socket.addEventListener("message", resolve);
    socket.addEventListener("close", reject);
  });
  socket.close();
  return data;
}

export const BUN_SERVE = `const server = Bun.serve({ port: 3000, fetch: () => new Response("Hello\\n") });`;
export const NODE_HTTP = `const server = require("node:http").createServer((request, response) => response.end("Hello\\n")).listen(3000);`;

/** The same, with a header of its own. */
export const KEEPING = `const server = require("node:http").createServer((request, response) =>
  response.writeHead(200, { Connection: "keep-alive", "Content-Length": 6 }).end("Hello\\n")).listen(3000);`;

/** Programs whose answers take a while. */
export const SLOW_ANSWERS = {
  "Bun.serve": `const server = Bun.serve({ port: 3000, fetch: () => Bun.sleep(800).then(() => new Response("Hello\\n")) });`,
  "node:http": `const server = require("node:http").createServer((request, response) => setTimeout(() => response.end("Hello\\n"), 800)).listen(3000);`,
} as const;

/** Ways to end at SIGTERM. */
export const ENDS = {
  "no handler": "",
  "process.exit()": `process.on("SIGTERM", () => process.exit());`,
  "process.exit(143)": `process.once("SIGTERM", () => process.exit(143));`,
  "a stop of the server": `process.on("SIGTERM", () => {
    if (server.stop) server.stop(); else server.close();
  });`,
} as const;
