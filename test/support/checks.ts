/* Checks of many tests: the error that a call throws, and that nothing is left open. */
import { expect, spyOn } from "bun:test";
import fs, { readdirSync, readlinkSync } from "node:fs";

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

/** What an ActivationError should look like. */
export function refusal(status: 71 | 78, message: RegExp, code?: string) {
  return expect.objectContaining({
    name: "ActivationError",
    status,
    code,
    message: expect.stringMatching(message),
  });
}

/** How the error for a wrong argument should look. */
export function misuse(name: "TypeError" | "RangeError", message: RegExp) {
  return expect.objectContaining({ name, message: expect.stringMatching(message) });
}

/** What `log` writes to stderr during a call, which is not the journal in a test. */
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
 * How many descriptors of each socket, pidfd, memory file and file of /proc this process has, and
 * which of them children inherit that should not: not so the first three, which may be sockets.
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
  await until("nothing more is open than before", 3, () => more().length === 0).catch(() => {});
  expect(more()).toEqual([]);
}
