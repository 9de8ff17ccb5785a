/** How many times as long everything may take: more than once under emulation (test/emulate.sh). */
export const SLOW = Number(process.env["SLOW"] ?? 1);

/** Whether the tests run under qemu-user: for `test.skipIf`, with the reason at the test. */
export const EMULATED = SLOW > 1;

/**
 * Waits until `probe` returns something, and returns that: asks again and again for `seconds`.
 *
 * @throws An error that says for what it waited in vain.
 */
export async function until<T>(
  what: string,
  seconds: number,
  probe: () => T | undefined | false | Promise<T | undefined | false>,
): Promise<T> {
  const limit = SLOW * seconds;
  for (const deadline = performance.now() + 1000 * limit; ;) {
    const answer = await probe();
    if (answer !== undefined && answer !== false) return answer;
    if (performance.now() > deadline) throw new Error(`not in ${Math.round(limit)} s: ${what}`);
    await Bun.sleep(5);
  }
}
