import { ActivationError, ExitStatus, misconfigured } from "./error.ts";
import { LONGEST_TIMER } from "./event-loop.ts";
import { close, socketPair } from "./libc.ts";
import { notifyEnabled, send } from "./notify.ts";
import { runtime } from "./runtime.ts";

/**
 * Waits until the service manager has handled all notifications sent so far, like
 * sd_notify_barrier(3), without blocking the event loop.
 *
 * @param timeout The longest wait, in milliseconds; more than 25 days, or `Infinity`, is for ever.
 * @returns Whether there was somebody to wait for: false if `NOTIFY_SOCKET` is not set.
 * @throws {ActivationError} as {@link notify} does, (78) if `timeout` is no such number, and (71, code
 *   `ETIMEDOUT`) if the time is over.
 */
export async function notifyBarrier(timeout: number): Promise<boolean> {
  const wanted = "give milliseconds from 0, or Infinity";
  if (!(typeof timeout === "number" && timeout >= 0))
    throw misconfigured(`cannot wait for a barrier within ${timeout}: ${wanted}`);
  if (!notifyEnabled()) return false;
  // The manager closes the end that it receives when it handles this message: ours is closed then.
  const [ours, theirs] = socketPair();
  const handled = Promise.withResolvers<true>();
  // Bun adopts every connected pair.
  const handlers = { data() {}, close: () => handled.resolve(true) };
  const socket = await runtime.connect({ fd: ours, socket: handlers });
  const late = `the service manager did not come to a barrier within ${timeout} ms`;
  const expire = () =>
    handled.reject(new ActivationError(ExitStatus.systemCall, late, "ETIMEDOUT"));
  const timer = timeout > LONGEST_TIMER ? undefined : setTimeout(expire, timeout);
  try {
    try {
      send("BARRIER=1", { fds: [theirs] });
    } finally {
      close(theirs);
    }
    return await handled.promise;
  } finally {
    clearTimeout(timer);
    socket.terminate();
  }
}
