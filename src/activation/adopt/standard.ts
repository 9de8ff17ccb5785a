import { close } from "../linux/libc.ts";

/** The highest of the standard descriptors: input, output and errors. */
const STANDARD_ERROR = 2;

/**
 * Whether a descriptor is standard input, output or errors. The number of one that is closed goes to
 * the next file or connection, and children would have that as their own: so /dev/null replaces it
 * (daemon(3)).
 */
export function isStandard(fd: number): boolean {
  return fd <= STANDARD_ERROR;
}

/** Closes a descriptor. */
export function release(fd: number): void {
  close(fd);
  replaceClosed(fd);
}

/** Opens /dev/null on a descriptor that was closed, if it is a standard one. Calls no libc. */
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
