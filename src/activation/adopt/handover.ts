/* The passed descriptor, once Bun has its socket. */
import { isHot, perProcess } from "../hot.ts";
import { close, duplicate, replace, STANDARD_ERROR } from "../linux/libc.ts";
import { unwatch, type Watched } from "./event-loop.ts";

/** How to stop what is on each passed descriptor. */
const inUse = perProcess("in use", () => new Map<number, () => void>());

/** The passed descriptors that a function of the module has taken, except under `bun --hot`. */
const taken = perProcess("taken", () => new Set<number>());

/** Whether a descriptor was taken. Its number may be that of another file by now. */
export function wasTaken(fd: number): boolean {
  return taken.has(fd);
}

/** Notes that a function of the module has a passed descriptor now. */
export function take(fd: number): void {
  if (!isHot()) taken.add(fd);
}

/**
 * Whether a descriptor is standard input, output or errors. Such a number is never left free: the next
 * file or connection would get it, and children would inherit that.
 */
export function isStandard(fd: number): boolean {
  return fd <= STANDARD_ERROR;
}

/** Returns the descriptor to hand to Bun, which closes it: a duplicate if the number stays open. */
export function descriptorForBun(fd: number): number {
  return isHot() || isStandard(fd) ? duplicate(fd) : fd;
}

/**
 * Closes the passed descriptor, except under `bun --hot`, where the next evaluation needs it again. On a
 * standard descriptor, /dev/null replaces it in one step.
 */
export function release(fd: number): void {
  take(fd);
  if (isHot()) return;
  if (!isStandard(fd)) return close(fd);
  const opened = openNull();
  replace(opened, fd);
  close(opened);
}

/** Opens /dev/null on a standard descriptor that was closed, as daemon(3) does. Calls no libc. */
export function replaceClosed(fd: number): void {
  if (!isStandard(fd)) return;
  // To load node:fs takes 3 ms, which a process for one connection would spend at its end.
  if (fd > 0) return void writers.push(Bun.file("/dev/null").writer());
  // The kernel assigns the lowest number that is free: 0, unless another thread was faster.
  const opened = openNull();
  if (opened > 0) process.getBuiltinModule("node:fs").closeSync(opened);
}

/** Kept, because a writer that is collected closes its file. */
const writers = perProcess("writers", (): object[] => []);

function openNull(): number {
  return process.getBuiltinModule("node:fs").openSync("/dev/null", "r+");
}

/** Under `bun --hot`, stops what an earlier evaluation put on a passed descriptor. */
export function supersede(fd: number, stop: () => void, watch?: Watched): void {
  if (!isHot()) return;
  inUse.get(fd)?.();
  inUse.set(fd, () => {
    if (watch) unwatch(watch);
    stop();
  });
}
