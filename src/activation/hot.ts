import type { Passed } from "./receive/listen-fds.ts";
import { duplicate } from "./linux/libc.ts";
import type { Served } from "./adopt/serve.ts";
import { isStandard } from "./adopt/standard.ts";

/** What is needed again when `bun --hot` evaluates every module anew in the same process. */
interface Kept {
  /** What the environment said was passed, and the address for notifications. */
  found?: Passed;
  address?: string | undefined;
  /** The socket that notifications are sent from. */
  notify?: number;
  /** Whether the last notification failed, and that was logged. */
  unheard?: boolean;
  /** How many entries of the log were lost since the last that was written. */
  lost: number;
  /** How to stop what is on each passed descriptor. */
  readonly inUse: Map<number, () => void>;
  /** The servers of `serve`: Bun keeps a server across a reload. */
  readonly served: WeakMap<object, Served>;
}

const KEY = Symbol.for("socket-service/activation");
const holder: { [KEY]?: Kept } & Partial<typeof globalThis> = globalThis;

export const kept: Kept = (holder[KEY] ??= { lost: 0, inUse: new Map(), served: new WeakMap() });

/** Whether this program is evaluated again after an edit. Takes 15 µs. */
export function isHot(): boolean {
  return process.execArgv.includes("--hot");
}

/** The descriptor to hand to Bun, which closes it: not the passed one if that is needed again. */
export function disposable(fd: number): number {
  return isHot() || isStandard(fd) ? duplicate(fd) : fd;
}

/** Stops what an earlier evaluation put on a passed descriptor. */
export function supersede(fd: number, stop: () => void): void {
  if (!isHot()) return;
  kept.inUse.get(fd)?.();
  kept.inUse.set(fd, stop);
}
