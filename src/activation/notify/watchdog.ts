import { isOwnPid, parseDecimal, takeVariable } from "../environment.ts";
import { LONGEST_TIMER } from "../bun.ts";
import { notify } from "./notify.ts";

/**
 * Returns how often the service manager expects a sign of life from this process, as
 * sd_watchdog_enabled(3), and removes `WATCHDOG_USEC` and `WATCHDOG_PID` from `process.env`.
 *
 * @returns The longest time between two of them, in microseconds; undefined if none are expected,
 *   or from another process. A second call finds nothing, and neither does a call in a Worker.
 * @throws {ActivationError} (78) if a variable is malformed.
 */
export function watchdogEnabled(): number | undefined {
  const usec = takeVariable("WATCHDOG_USEC");
  const pid = takeVariable("WATCHDOG_PID");
  if (usec === undefined) return undefined;
  const interval = parseDecimal("WATCHDOG_USEC", usec, "a number of microseconds");
  return pid === undefined || isOwnPid("WATCHDOG_PID", pid) ? interval : undefined;
}

/**
 * Sends `WATCHDOG=1` at half the interval that the service manager expects, from the event loop:
 * a loop that is stuck sends none. It does nothing if no signs of life are expected. If one cannot be
 * sent, that is logged as {@link notify} does, and the next is sent all the same.
 *
 * @returns The timer, or undefined if none is needed. It does not keep the process alive.
 * @throws {ActivationError} as {@link watchdogEnabled} does.
 */
export function startWatchdog(): NodeJS.Timeout | undefined {
  const interval = watchdogEnabled();
  if (interval === undefined) return undefined;
  // Not Math.min: see Start.
  const half = interval / 2 / 1000;
  const ping = () => notify({ watchdog: true });
  return setInterval(ping, half < LONGEST_TIMER ? half : LONGEST_TIMER).unref();
}
