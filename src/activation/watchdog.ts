import { isOwnPid, parseDecimal, takeVariable } from "./environment.ts";
import { notify } from "./notify.ts";

/**
 * Tells whether the service manager expects signs of life from this process, as
 * sd_watchdog_enabled(3), and takes `WATCHDOG_USEC` and `WATCHDOG_PID` out of the environment.
 *
 * @returns The interval within which each has to come, in microseconds; undefined where none are
 *   expected, or from another process. A second call finds nothing.
 * @throws {ActivationError} (78) when a variable is malformed.
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
 * a loop that is stuck sends none. Does nothing where no signs of life are expected.
 *
 * @param onError Gets each failure to send; the next is sent all the same.
 * @returns The timer, or undefined where none is needed. It does not keep the process alive.
 * @throws {ActivationError} As {@link watchdogEnabled}.
 */
export function startWatchdog(onError: (error: unknown) => void): NodeJS.Timeout | undefined {
  const interval = watchdogEnabled();
  if (interval === undefined) return undefined;
  const ping = () => {
    try {
      notify({ watchdog: true });
    } catch (error) {
      onError(error);
    }
  };
  // The longest that a timer takes, 25 days, is soon enough for any longer interval.
  const milliseconds = Math.min(interval / 2 / 1000, 0x7fffffff);
  return setInterval(ping, milliseconds).unref();
}
