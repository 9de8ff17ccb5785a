import { misconfigured, quote } from "./error.ts";
import type { PassedDescriptor } from "./listen-fds.ts";

/** How many descriptors of a name there are: exactly one, at most one, at least one, or any number. */
export type Quantity = "one" | "optional" | "some" | "any";

type Of<Wanted extends Quantity> = Wanted extends "one"
  ? number
  : Wanted extends "optional"
    ? number | undefined
    : readonly number[];

/** The descriptors of each name: a number for `one`, a number or none for `optional`, or a list. */
export type Picked<Wanted extends Readonly<Record<string, Quantity>>> = {
  readonly [Name in keyof Wanted]: Of<Wanted[Name]>;
};

/**
 * Picks descriptors by their names (`FileDescriptorName=`, or `FDNAME=` of the descriptor store).
 *
 * @param passed What {@link listenFds} returned.
 * @param wanted How many there are of each name.
 * @returns The descriptors of each name, in the order in which they were passed.
 * @throws {ActivationError} (78) if there are more or fewer of a name, or one of another name.
 *
 * @example
 * ```ts
 * const { http, admin } = pick(listenFds(), { http: "some", admin: "optional" });
 * for (const fd of http) serve({ fd, fetch });
 * serve({ fd: admin, port: 4001, fetch });
 * ```
 */
export function pick<const Wanted extends Readonly<Record<string, Quantity>>>(
  passed: readonly PassedDescriptor[],
  wanted: Wanted,
): Picked<Wanted>;
export function pick(
  passed: readonly PassedDescriptor[],
  wanted: Readonly<Record<string, Quantity>>,
): Readonly<Record<string, number | undefined | readonly number[]>> {
  const byName = new Map(Object.keys(wanted).map((name): [string, number[]] => [name, []]));
  for (const { fd, name } of passed) {
    const fds = byName.get(name);
    if (fds === undefined)
      throw misconfigured(
        `descriptor ${fd} is named ${quote(name)}: set FileDescriptorName= to ${[...byName.keys()].join(" or ")}`,
      );
    fds.push(fd);
  }
  const picked = Array.from(byName, ([name, fds]) => {
    const quantity = wanted[name];
    const single = quantity === "one" || quantity === "optional";
    const needed = quantity === "one" || quantity === "some";
    if (fds.length === 0 ? needed : single && fds.length > 1)
      throw misconfigured(
        `${fds.length} descriptors are named ${quote(name)}, where ${quantity} is wanted: set FileDescriptorName=${name} in as many socket units`,
      );
    return [name, single ? fds[0] : fds] as const;
  });
  // Unlike an assignment, this makes a property of the name __proto__ too.
  return Object.fromEntries(picked);
}
