/* Waits for what `whenIdle` returns, on a machine that may be busy. */
import { expect } from "bun:test";

/** Whether it happens within a time. */
export async function within(milliseconds: number, promise: Promise<unknown>): Promise<boolean> {
  return await Promise.race([promise.then(() => true), Bun.sleep(milliseconds).then(() => false)]);
}

/** Waits until it happens. A busy machine may take long. */
export const happens = async (promise: Promise<unknown>) =>
  expect(await within(10_000, promise)).toBe(true);

/**
 * Uses a server again and again, and checks that it is idle a time after the last use, and not before. On a
 * busy machine it may be idle between two uses, if as much time has passed.
 */
export async function idleAfterUses(
  { timeout, pause }: { timeout: number; pause: number },
  idle: Promise<unknown>,
  uses: readonly (() => Promise<unknown>)[],
) {
  let end: number | undefined;
  const ended = idle.then(() => (end = performance.now()));
  let used = performance.now();
  for (const use of uses) {
    const begun = performance.now();
    await use();
    if (end !== undefined) break;
    used = begun;
    await within(pause, ended);
  }
  await happens(ended);
  expect((end ?? 0) - used).toBeGreaterThanOrEqual(timeout);
}
