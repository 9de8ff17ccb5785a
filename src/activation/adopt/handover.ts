/* The passed descriptor, once Bun has its socket. */
import { isHot, perProcess } from "../hot.ts";
import { close, duplicate } from "../linux/libc.ts";

/** The highest of the standard descriptors: input, output and errors. */
const STANDARD_ERROR = 2;

/** How to stop what is on each passed descriptor. */
const inUse = perProcess("in use", () => new Map<number, () => void>());

/**
 * Whether a descriptor is standard input, output or errors. Such a number is never left free: the next
 * file or connection would get it, and children would inherit that.
 */
export function isStandard(fd: number): boolean {
  return fd <= STANDARD_ERROR;
}

/** Returns the descriptor to hand to Bun, which closes it: a duplicate if the number stays open. */
export function disposable(fd: number): number {
  return isHot() || isStandard(fd) ? duplicate(fd) : fd;
}

/** Closes the passed descriptor, except under `bun --hot`, where the next evaluation needs it again. */
export function release(fd: number): void {
  if (isHot()) return;
  close(fd);
  replaceClosed(fd);
}

/** Opens /dev/null on a standard descriptor that was closed, as daemon(3) does. Calls no libc. */
export function replaceClosed(fd: number): void {
  if (!isStandard(fd)) return;
  const { closeSync, openSync } = process.getBuiltinModule("node:fs");
  let opened: number;
  // The kernel assigns the lowest number that is free.
  do opened = openSync("/dev/null", "r+");
  while (opened < fd);
  // Another thread was faster.
  if (opened > fd) closeSync(opened);
}

/** Under `bun --hot`, stops what an earlier evaluation put on a passed descriptor. */
export function supersede(fd: number, stop: () => void): void {
  if (!isHot()) return;
  inUse.get(fd)?.();
  inUse.set(fd, stop);
}
