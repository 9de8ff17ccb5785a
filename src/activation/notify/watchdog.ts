import { isOwnPid, parseDecimal, takeVariable } from "../environment.ts";
import { LONGEST_TIMER } from "../bun.ts";
import { perProcess } from "../hot.ts";
import { notify } from "./notify.ts";

interface Kept {
  /** In microseconds. */
  interval?: number | undefined;
  isStarted?: boolean;
}

const kept = perProcess<Kept>("watchdog", () => ({}));

/**
 * Returns the interval in which systemd expects a sign of life from this process, like
 * sd_watchdog_enabled(3). The first call removes `WATCHDOG_USEC` and `WATCHDOG_PID` from `process.env`.
 *
 * @returns The longest time between two signs of life, in microseconds. It is undefined if systemd
 *   expects none, or expects them from another process, and in a Worker.
 * @throws {ActivationError} (78) if a variable is malformed.
 */
export function watchdogEnabled(): number | undefined {
  const usec = takeVariable("WATCHDOG_USEC");
  const pid = takeVariable("WATCHDOG_PID");
  if (usec === undefined) return kept.interval;
  const interval = parseDecimal("WATCHDOG_USEC", usec, "a number of microseconds");
  const isOwn = pid === undefined || isOwnPid("WATCHDOG_PID", pid);
  kept.isStarted = false;
  return (kept.interval = isOwn ? interval : undefined);
}

/**
 * Sends `WATCHDOG=1` at half the interval that systemd expects, from the event loop: a loop that is
 * stuck sends none. It does nothing if systemd expects no signs of life, and at a second call. If a
 * sign of life cannot be sent, that is logged as {@link notify} does, and the next one is sent all the
 * same.
 *
 * Limitation: after `notify({ watchdogUsec })`, it keeps its interval. Set a timer of your own then.
 *
 * @returns The timer, which does not keep the process alive. It is undefined if the call does nothing.
 * @throws {ActivationError} as {@link watchdogEnabled} does.
 */
export function startWatchdog(): NodeJS.Timeout | undefined {
  const interval = watchdogEnabled();
  if (interval === undefined || kept.isStarted) return undefined;
  kept.isStarted = true;
  // Not Math.min: see Start.
  const half = interval / 2 / 1000;
  const ping = () => notify({ watchdog: true });
  return setInterval(ping, half < LONGEST_TIMER ? half : LONGEST_TIMER).unref();
}
