/** Times connections from within a machine's network. Started as a program, it is that client. */
import { lines } from "../support/lines.ts";
import type { Machine } from "../support/machine.ts";

/** Milliseconds from connect(2). */
interface Times {
  readonly first: number;
  readonly end: number;
}

export class Stopwatch implements AsyncDisposable {
  readonly #client;
  readonly #answers;

  constructor(machine: Machine) {
    this.#client = machine.client(import.meta.path);
    this.#answers = lines(this.#client.stdout);
  }

  /**
   * Connects, and asks over HTTP if `http` is true.
   *
   * @throws {Error} if the connection ends before its first byte.
   */
  async time(port: number, http = false): Promise<Times> {
    this.#client.stdin.write(`${JSON.stringify({ port, http })}\n`);
    await this.#client.stdin.flush();
    const { value } = await this.#answers.next();
    const [first, end] = JSON.parse(value ?? "[]");
    if (typeof first !== "number") throw new Error(`nobody answered on port ${port}`);
    return { first, end };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#client.stdin.end();
    await this.#client.exited;
  }
}

async function connect(port: number, http: boolean): Promise<(number | undefined)[]> {
  const { promise, resolve } = Promise.withResolvers<void>();
  let first: number | undefined;
  const began = performance.now();
  const since = (): number => performance.now() - began;
  await Bun.connect({
    hostname: "127.0.0.1",
    port,
    socket: {
      open(socket) {
        if (http) socket.write("GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
      },
      data: () => void (first ??= since()),
      end: () => resolve(),
      close: () => resolve(),
    },
  });
  await promise;
  return [first, since()];
}

if (import.meta.main)
  for await (const line of console)
    if (line !== "") {
      const { port, http } = JSON.parse(line);
      console.log(JSON.stringify(await connect(port, http)));
    }
