import { LONGEST_TIMER, runtime } from "../bun.ts";
import { wrongNumber } from "../error.ts";
import { close, socketPair } from "../linux/libc.ts";
import { attempt, notifyEnabled, send } from "./notify.ts";

/**
 * Waits until systemd has handled all notifications that were sent so far, like sd_notify_barrier(3).
 * It does not block the event loop.
 *
 * @param timeout The longest wait, in milliseconds. More than 25 days, or `Infinity`, is for ever.
 * @returns A promise of whether systemd has handled them in time. It is false too if nobody is
 *   notified, or if the barrier cannot be sent (without FFI, for example). {@link notify} says how that is
 *   logged.
 * @throws {TypeError} if `timeout` is not a number.
 * @throws {RangeError} if `timeout` is a number below 0, or `NaN`.
 */
export async function notifyBarrier(timeout: number): Promise<boolean> {
  if (!(typeof timeout === "number" && timeout >= 0))
    throw wrongNumber("timeout", timeout, "milliseconds from 0 on, or Infinity");
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const timer = timeout > LONGEST_TIMER ? undefined : setTimeout(resolve, timeout, false);
  const ours = sendBarrier();
  try {
    if (ours === undefined) return false;
    // Bun adopts every socket of a pair, also if the other end is closed already.
    const handlers = { data() {}, close: () => resolve(true) };
    const socket = await runtime.connect({ fd: ours, socket: handlers });
    const handled = await promise;
    socket.terminate();
    return handled;
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Sends one end of a connection, which systemd closes when it handles this message.
 *
 * @returns The other end; undefined if it could not be sent.
 */
function sendBarrier(): number | undefined {
  return attempt(() => {
    if (!notifyEnabled()) return undefined;
    const [ours, theirs] = socketPair();
    try {
      send("BARRIER=1", { fds: [theirs] });
      return ours;
    } catch (error) {
      close(ours);
      throw error;
    } finally {
      close(theirs);
    }
  });
}
