/** The factor for each limit on time: above 1 under emulation (test/emulate.sh). */
export const SLOW = Number(process.env["SLOW"] ?? 1);

/** Whether the tests run under qemu-user: for `test.skipIf`, with the reason at the test. */
export const EMULATED = SLOW > 1;

/**
 * Waits until `probe` returns something, and returns that: asks again and again for `seconds`. It pauses three
 * times as long as `probe` takes, so that one that runs a command leaves the processors to others.
 *
 * @throws An error that names the condition for which it waited in vain.
 */
export async function until<T>(
  what: string,
  seconds: number,
  probe: () => T | undefined | false | Promise<T | undefined | false>,
): Promise<T> {
  const limit = SLOW * seconds;
  for (const deadline = performance.now() + 1000 * limit; ;) {
    const begun = performance.now();
    const answer = await probe();
    if (answer !== undefined && answer !== false) return answer;
    const now = performance.now();
    if (now > deadline) throw new Error(`not in ${Math.round(limit)} s: ${what}`);
    await Bun.sleep(Math.max(5, 3 * (now - begun)));
  }
}

/**
 * Measures a time in milliseconds up to five times, until it is below `limit`, and returns the shortest. A
 * busy machine makes it longer, and nothing makes it shorter.
 */
export async function shortest(limit: number, measure: () => Promise<number>): Promise<number> {
  let least = Infinity;
  for (let n = 0; n < 5 && least >= limit; n++) least = Math.min(least, await measure());
  return least;
}
