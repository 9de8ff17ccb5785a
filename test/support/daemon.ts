/* Starts the compiled executables as systemd would, and is their client. */
import { mkdtempSync, rmSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { isAbsolute, join, resolve } from "node:path";

import { build } from "./build.ts";
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
export function scratch(): { path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), "socket-service-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) };
}

/**
 * A port of the loopback that is free now, below those that the kernel gives to clients: one of
 * them may take it before the activator does.
 */
export function freePort(family = sockets.AF_INET, type = sockets.SOCK_STREAM): number {
  for (let tries = 0; ; tries++) {
    const port = 16_384 + Math.floor(Math.random() * 16_384);
    try {
      sockets.close(sockets.bound(family, type, port));
      return port;
    } catch (error) {
      // Somebody has it, if it is not the address that is missing.
      if (tries === 100) throw error;
    }
  }
}

/** Waits no longer than that, so that a test ends by itself and takes what it started with it. */
async function within<T>(limit: number, what: string, promise: Promise<T>): Promise<T> {
  const milliseconds = SLOW * limit;
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(
    () => reject(new Error(`${what} did not come within ${milliseconds} ms`)),
    milliseconds,
  );
  return await Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** A process and all that it says on stderr. */
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
    const status = await within(milliseconds, "the process's end", this.process.exited);
    await this.#drained;
    return status;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.process.kill("SIGKILL");
    await this.status();
  }
}

export interface ActivateOptions {
  /** Options of systemd-socket-activate, such as -a. */
  readonly flags?: readonly string[];
  /** The addresses to listen on, as -l takes them. */
  readonly listen: readonly (string | number)[];
  /** Options of the service. */
  readonly args?: readonly string[];
  /** Environment variables of the service: the activator passes no others. */
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
}

/** A service under the real systemd-socket-activate, which listens when this resolves. */
export async function activate(name: string, options: ActivateOptions): Promise<Running> {
  const { flags = [], listen, args = [], env = {}, cwd } = options;
  const running = new Running(
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
export function execute(
  name: string,
  fds: readonly number[],
  variables: Readonly<Record<string, string | undefined>> = {},
  args: readonly string[] = [],
  cwd = process.cwd(),
): Running {
  const env: Record<string, string> = {};
  const all = { LISTEN_PID: "self", LISTEN_FDS: String(fds.length), ...variables };
  for (const [key, value] of Object.entries(all)) if (value !== undefined) env[key] = value;
  // The shell becomes the service, so that its own process id is the right one.
  const script = `[ "$LISTEN_PID" = self ] && export LISTEN_PID=$$; exec "$0" "$@"`;
  return new Running(
    Bun.spawn(["/bin/sh", "-c", script, executable(name), ...args], {
      env,
      cwd,
      stdio: ["ignore", "pipe", "pipe", ...fds],
    }),
  );
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
    const options = typeof to === "number" ? { port: to, host } : { path: to };
    const socket = connect({ ...options, allowHalfOpen: true });
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    socket.once("connect", resolve).once("error", reject);
    await promise;
    return new Client(socket);
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

  /** All that came until the service's end of file, or how the connection failed instead. */
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

/** Connects, reads to the end of file, and closes: what most clients do. */
export async function ask(to: number | string, host?: string): Promise<string> {
  const client = await Client.connect(to, host);
  const received = await client.received();
  client.close();
  return received;
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
