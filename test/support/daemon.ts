/* Starts the compiled executables as systemd would, and is their client. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { isAbsolute, join, resolve } from "node:path";

import { build } from "./build.ts";
import { client } from "./listening.ts";
import type { NotifyReceiver } from "./notify-receiver.ts";
import * as sockets from "./sockets.ts";
import { SLOW, until } from "./until.ts";

const DIST = resolve(import.meta.dir, "../../dist");

/**
 * Returns the path of a program: `name` is a service, a script that starts one, relative to dist/, or
 * an absolute path. The first call that is not for an absolute path builds the services.
 */
export function executable(name: string): string {
  if (!isAbsolute(name)) build();
  return resolve(DIST, name);
}

/** A directory that is gone when the test is over. */
export function scratch(name = "socket-service-"): { path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), name));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) };
}

/**
 * A port of the loopback that is free now, below those that the kernel gives to clients: one of
 * them may take it before the activator does.
 */
export function freePort(type = sockets.SOCK_STREAM, family = sockets.AF_INET): number {
  for (let tries = 0; ; tries++) {
    const port = 16_384 + Math.floor(Math.random() * 16_384);
    try {
      sockets.close(sockets.bound(family, type, port));
      return port;
    } catch (error) {
      // Another program has it. If the address is missing, no try succeeds.
      if (tries === 100) throw error;
    }
  }
}

/** Waits for at most that long, so that a test ends by itself, and its processes with it. */
async function within<T>(
  limit: number,
  what: string | (() => string),
  promise: Promise<T>,
): Promise<T> {
  const milliseconds = SLOW * limit;
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => {
    const subject = typeof what === "string" ? what : what();
    reject(new Error(`${subject} did not come within ${milliseconds} ms`));
  }, milliseconds);
  return await Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** A process, and all that it writes to stderr. */
export class Running implements AsyncDisposable {
  stderr = "";
  readonly #drained: Promise<void>;

  constructor(readonly process: Bun.Subprocess<"ignore", "pipe", "pipe">) {
    this.#drained = this.#read();
  }

  async #read(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of this.process.stderr) this.stderr += decoder.decode(chunk);
  }

  /** Waits until stderr matches, and gives the match. */
  says(pattern: RegExp): Promise<RegExpExecArray> {
    return until(`stderr has ${pattern}`, 10, () => pattern.exec(this.stderr) ?? undefined);
  }

  /** The stderr of the service itself, without the lines of systemd-socket-activate. */
  get said(): string {
    return this.stderr.replaceAll(
      /^(Listening on|Communication attempt|Connection from|Spawned|Execing|Child \d+ died) .*\n/gm,
      "",
    );
  }

  /** Waits for the ends of `count` instances for one connection: `code 0`, or how it was else. */
  async ends(count: number, milliseconds: number): Promise<string[]> {
    return await until(`${count} instances end`, milliseconds / 1000, () => {
      const ended = [...this.stderr.matchAll(/^Child \d+ died with (.*)$/gm)];
      return ended.length >= count && ended.map(([, how = ""]) => how);
    });
  }

  /** Waits for the end: the exit status, or the signal as 128 and its number. */
  async status(milliseconds = 10_000): Promise<number> {
    const what = () => `the end of process ${this.process.pid} (${this.#state()})`;
    const status = await within(milliseconds, what, this.process.exited);
    await this.#drained;
    return status;
  }

  /** What the reader of a failure asks first: what it waits for in the kernel, and what it has said. */
  #state(): string {
    const read = (file: string) => {
      try {
        return readFileSync(`/proc/${this.process.pid}/${file}`, "latin1");
      } catch (error) {
        return String(error);
      }
    };
    const [state] = /^State:.*/m.exec(read("status")) ?? [];
    return `${state}, wchan ${read("wchan")}, syscall ${read("syscall").trim()}, stderr ${JSON.stringify(this.stderr)}`;
  }

  /** Sends SIGTERM, and waits for the end: the exit status. */
  async stop(milliseconds?: number): Promise<number> {
    this.process.kill("SIGTERM");
    return await this.status(milliseconds);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.process.kill("SIGKILL");
    await this.status();
  }
}

/** A service on a port of the loopback. */
export class Served extends Running {
  constructor(
    process: Running["process"],
    readonly port: number,
  ) {
    super(process);
  }

  client(): Promise<Client> {
    return Client.connect(this.port);
  }

  ask(): Promise<string> {
    return ask(this.port);
  }

  get(path?: string): Promise<string> {
    return get(this.port, path);
  }
}

export interface ActivateOptions {
  /** Options of systemd-socket-activate, such as -a. */
  readonly flags?: readonly string[];
  /** The addresses to listen on, as -l takes them. Default: a free port. */
  readonly listen?: readonly (string | number)[];
  /** Options of the service. */
  readonly args?: readonly string[];
  /** Environment variables of the service: the activator passes no others. */
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
}

/** A service under the real systemd-socket-activate, which listens when this resolves. */
export async function activate(name: string, options: ActivateOptions = {}): Promise<Served> {
  const port = freePort();
  const { flags = [], listen = [port], args = [], env = {}, cwd } = options;
  const running = new Served(
    Bun.spawn(
      [
        "systemd-socket-activate",
        ...flags,
        ...listen.flatMap((address) => ["-l", String(address)]),
        ...Object.entries(env).flatMap(([variable, value]) => ["-E", `${variable}=${value}`]),
        executable(name),
        ...args,
      ],
      { stdin: "ignore", stdout: "pipe", stderr: "pipe", ...(cwd === undefined ? {} : { cwd }) },
    ),
    port,
  );
  await until("systemd-socket-activate listens", 10, () => {
    if (running.process.exitCode !== null) throw new Error(`it does not start: ${running.stderr}`);
    return running.stderr.split("Listening on").length > listen.length;
  });
  return running;
}

/**
 * A service as systemd itself executes it: `fds` from number 3 on, and the variables that go with
 * them, `LISTEN_PID` being its own. `variables` adds to those or, with undefined, leaves one out.
 */
export function execute(...how: Parameters<typeof spawn>): Running {
  return new Running(spawn(...how));
}

function spawn(
  name: string,
  fds: readonly number[],
  variables: Readonly<Record<string, string | undefined>> = {},
  args: readonly string[] = [],
  cwd = process.cwd(),
): Running["process"] {
  const env: Record<string, string> = {};
  const all = { LISTEN_PID: "self", LISTEN_FDS: String(fds.length), ...variables };
  for (const [key, value] of Object.entries(all)) if (value !== undefined) env[key] = value;
  // The shell becomes the service, so that its own process id is the right one.
  const script = `[ "$LISTEN_PID" = self ] && export LISTEN_PID=$$; exec "$0" "$@"`;
  return Bun.spawn(["/bin/sh", "-c", script, executable(name), ...args], {
    env,
    cwd,
    stdio: ["ignore", "pipe", "pipe", ...fds],
  });
}

/** Runs a program in Bun to its end, as systemd executes it, if need be with few descriptors. */
export async function run(
  source: string,
  variables: Readonly<Record<string, string | undefined>> = {},
  descriptors?: number,
): Promise<{ status: number; stdout: string; stderr: string }> {
  const limited = ["-c", `ulimit -n ${descriptors}; exec "$0" -e "$1"`, process.execPath, source];
  await using child =
    descriptors === undefined
      ? execute(process.execPath, [], variables, ["-e", source])
      : execute("/bin/sh", [], variables, limited);
  const stdout = await child.process.stdout.text();
  return { status: await child.status(), stdout, stderr: child.stderr };
}

export interface ListenerOptions {
  /** Default: socket-service. */
  readonly name?: string;
  readonly args?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** The service manager that it notifies, if any. */
  readonly receiver?: NotifyReceiver;
  readonly backlog?: number;
}

/** A service as systemd executes it on a listening socket, of which `fd` is the manager's copy. */
export class Listener extends Served {
  readonly fd: number;

  constructor(options: ListenerOptions = {}) {
    const { name = "socket-service", args = [], env = {}, receiver, backlog = 5 } = options;
    const fd = sockets.listening(sockets.AF_INET, backlog);
    const manager = receiver === undefined ? {} : { NOTIFY_SOCKET: receiver.address };
    super(spawn(name, [fd], { ...env, ...manager }, args), sockets.portOf(fd));
    this.fd = fd;
  }

  /** Whether it accepts: it closes its copy of the socket when it stops. */
  get accepts(): boolean {
    return existsSync(`/proc/${this.process.pid}/fd/3`);
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await super[Symbol.asyncDispose]();
    sockets.close(this.fd);
  }
}

/** A client as a raw stream: half-open, so that the service's end of file is not its own. */
export class Client {
  readonly #socket: Socket;
  readonly #greeted = Promise.withResolvers<string>();
  readonly #closed = Promise.withResolvers<number>();
  #received = "";

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", (data) => (this.#received += data.toString()));
    socket.on("end", () => this.#greeted.resolve(this.#received));
    socket.on("error", (error: NodeJS.ErrnoException) =>
      this.#greeted.resolve(error.code ?? error.message),
    );
    socket.on("close", () => this.#closed.resolve(performance.now()));
  }

  /** Connects to a port of the loopback, or a path. */
  static async connect(to: number | string, host = "127.0.0.1"): Promise<Client> {
    return new Client(await client(typeof to === "number" ? { port: to, host } : { path: to }));
  }

  /** Resolves when the kernel has all of it. */
  async send(data: string | Uint8Array): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#socket.write(data, () => resolve());
    await promise;
  }

  pause(): void {
    this.#socket.pause();
  }

  /** Shuts the sending side down. */
  finish(): void {
    this.#socket.end();
  }

  /** Sends a reset. */
  reset(): void {
    this.#socket.resetAndDestroy();
  }

  /** Waits for the first data, or for the end of a connection that brings none. */
  async firstByte(): Promise<void> {
    if (this.#received !== "") return;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#socket.once("data", () => resolve());
    await within(10_000, "the first byte", Promise.race([promise, this.#closed.promise]));
  }

  /** Reads to the service's end of file. If the connection fails, returns the code of the error. */
  async received(limit = 10_000): Promise<string> {
    this.#socket.resume();
    return await within(limit, "an end of file", this.#greeted.promise);
  }

  /** Waits until both sides have closed the connection, or one has reset it: the time of that. */
  async closed(): Promise<number> {
    return await within(20_000, "the connection's end", this.#closed.promise);
  }

  close(): void {
    this.#socket.destroy();
  }
}

/** Connects, reads to the end of file, and closes, as most clients do. */
export async function ask(to: number | string, host?: string): Promise<string> {
  const client = await Client.connect(to, host);
  const received = await client.received();
  client.close();
  return received;
}

/** Asks a port over HTTP, on a connection of its own, and returns the body of the answer. */
export async function get(port: number | string, path = "/", host = "127.0.0.1"): Promise<string> {
  // A test that fails here ends with its error. After its time limit, that would be one of no test.
  const signal = AbortSignal.timeout(SLOW * 10_000);
  return await (await fetch(`http://${host}:${port}${path}`, { keepalive: false, signal })).text();
}

/** Sends a datagram to a port, and returns the one that answers it. */
export async function askDatagram(port: number, hostname = "127.0.0.1"): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>();
  const client = await Bun.udpSocket({
    hostname,
    connect: { hostname, port },
    socket: { data: (_, data) => resolve(data.toString()) },
  });
  client.send("hello");
  return await within(10_000, "an answer", promise).finally(() => client.close());
}

/** Asks `total` times, `atOnce` at a time, and counts the answers. */
export async function load(
  port: number,
  total: number,
  atOnce: number,
): Promise<Record<string, number>> {
  const answers: Record<string, number> = {};
  let begun = 0;
  const worker = async () => {
    while (begun++ < total) {
      const answer = await ask(port);
      answers[answer] = (answers[answer] ?? 0) + 1;
    }
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
  return answers;
}
