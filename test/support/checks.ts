/* Checks of many tests: the error that a call throws, and that nothing is left open. */
import { expect, spyOn } from "bun:test";
import fs, { readdirSync, readlinkSync } from "node:fs";

import { ActivationError } from "../../src/activation/error.ts";
import "./hang.ts";
import { closesOnExec } from "./sockets.ts";
import { until } from "./until.ts";

/** Returns the error that a call throws, if it throws one. */
export function thrown(call: () => unknown): unknown {
  try {
    call();
  } catch (error) {
    return error;
  }
  return undefined;
}

/** Returns an error as text: "78: message" of an ActivationError, "TypeError: message" of another. */
export function errorText(error: unknown): string {
  if (error === undefined) return "no error";
  if (!(error instanceof ActivationError)) return String(error);
  const { status, code, message } = error;
  return `${status}${code === undefined ? "" : ` ${code}`}: ${message}`;
}

/** Returns the text of the error that a call throws. */
export const refusal = (call: () => unknown): string => errorText(thrown(call));

/** Returns the text of the error that a promise is rejected with. */
export const rejection = async (promise: unknown): Promise<string> =>
  errorText(
    await Promise.resolve(promise).then(
      () => undefined,
      (error: unknown) => error,
    ),
  );

/** Calls `look` before each call of Bun.serve, until it is disposed of. */
export function onServe(look: (options: Bun.Serve.Options<undefined>) => void): Disposable {
  const native = Bun.serve;
  return spyOn(Bun, "serve").mockImplementation(((options: Bun.Serve.Options<undefined>) => {
    look(options);
    return native(options);
  }) as typeof Bun.serve);
}

/** Returns the lines that `log` writes to stderr during a call: in a test, that is not the journal. */
export async function logged(call: () => unknown): Promise<string> {
  let text = "";
  using write = spyOn(fs, "writeSync");
  write.mockImplementation((_, bytes) => {
    text += String(bytes);
    return Buffer.byteLength(bytes);
  });
  await call();
  return text;
}

/**
 * Counts the descriptors that this process has of each socket, pidfd, memory file and file of /proc.
 * The name says if children inherit one that they should not. The first three may be sockets.
 */
export function descriptors(): Map<string, number> {
  const held = new Map<string, number>();
  for (const fd of readdirSync("/proc/self/fd")) {
    try {
      const name = readlinkSync(`/proc/self/fd/${fd}`);
      if (!/^(socket|pidfd|anon_inode:\[pidfd|\/memfd|\/proc)/.test(name)) continue;
      // Bun looks at its own memory now and then.
      if (/^\/proc\/\d+\/statm$/.test(name)) continue;
      const key =
        Number(fd) < 3 || closesOnExec(Number(fd)) ? name : `${name}, which children inherit`;
      held.set(key, (held.get(key) ?? 0) + 1);
    } catch {
      // The directory's own, closed by now.
    }
  }
  return held;
}

/** Waits until nothing is open that was not `before`: Bun closes some a moment later. */
export async function nothingLeft(before: Map<string, number>): Promise<void> {
  const more = () => [...descriptors()].filter(([name, count]) => count > (before.get(name) ?? 0));
  await until("nothing more is open than before", 10, () => more().length === 0).catch(() => {});
  expect(more()).toEqual([]);
}
