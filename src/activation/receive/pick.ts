import { isName } from "../environment.ts";
import { misconfigured, quote } from "../error.ts";
import { type PassedDescriptor, throwIfNothingPassed } from "./listen-fds.ts";

/** How many descriptors of a name there are: exactly one, at most one, at least one, or any number. */
export type Quantity = "one" | "optional" | "some" | "any";

/** The quantities in words for a message. */
const QUANTITIES: Readonly<Record<Quantity, string>> = {
  one: "one",
  optional: "at most one",
  some: "at least one",
  any: "any number",
};

type Of<Wanted extends Quantity> = Wanted extends "one"
  ? number
  : Wanted extends "optional"
    ? number | undefined
    : readonly number[];

/**
 * The descriptors of each name: a number for `one`, a number or undefined for `optional`, a list of
 * numbers for `some` and `any`.
 */
export type Picked<Wanted extends Readonly<Record<string, Quantity>>> = {
  readonly [Name in keyof Wanted]: Of<Wanted[Name]>;
};

/**
 * Picks descriptors by their names (`FileDescriptorName=`, or `FDNAME=` of the descriptor store).
 *
 * @param passed What {@link listenFds} returned.
 * @param wanted The {@link Quantity} of each name that the program expects.
 * @returns An object with one property for each name of `wanted`. It is a number for `one`, a number
 *   or undefined for `optional`, and for `some` and `any` a list of numbers, in the order in which
 *   they were passed.
 * @throws {ActivationError} (78) if a name has more or fewer descriptors than wanted, if a descriptor
 *   has another name, or if nothing was passed although something is needed. The message has the
 *   reason.
 * @throws {TypeError} if a quantity is none of the four, or if a name is not allowed.
 *
 * @example
 * ```ts
 * const { http, admin } = pick(listenFds(), { http: "some", admin: "optional" });
 * for (const fd of http) serve({ fd, fetch });
 * serve({ fd: admin, hostname: "127.0.0.1", port: 4001, fetch });
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
  for (const [name, quantity] of Object.entries<string>(wanted)) {
    if (!Object.hasOwn(QUANTITIES, quantity))
      throw new TypeError(
        `the quantity of ${quote(name)} is ${quantity}: give "one", "optional", "some" or "any"`,
      );
    if (!isName(name))
      throw new TypeError(
        `no socket can have the name ${quote(name)}: use at most 255 printable ASCII characters, without a colon`,
      );
  }
  const byName = new Map(Object.keys(wanted).map((name): [string, number[]] => [name, []]));
  for (const { fd, name } of passed) {
    const fds = byName.get(name);
    if (fds === undefined)
      throw misconfigured(
        `descriptor ${fd} has the name ${quote(name)}, which the program does not expect: ${remedyFor(name, wanted)}`,
      );
    fds.push(fd);
  }
  const picked = Object.entries(wanted).map(([name, quantity]) => {
    const fds = byName.get(name) ?? [];
    const isSingle = quantity === "one" || quantity === "optional";
    const isNeeded = quantity === "one" || quantity === "some";
    if (isNeeded && passed.length === 0) throwIfNothingPassed();
    if (fds.length === 0 ? isNeeded : isSingle && fds.length > 1)
      throw misconfigured(
        `${fds.length} descriptors have the name ${quote(name)}, but the program expects ${QUANTITIES[quantity]}: ${
          fds.length === 0 ? "start" : "keep only one Listen...= line in"
        } the socket unit that has FileDescriptorName=${name}`,
      );
    return [name, isSingle ? fds[0] : fds] as const;
  });
  // Unlike an assignment, this makes a property of the name __proto__ too.
  return Object.fromEntries(picked);
}

/** Returns the remedy for a descriptor of a name that the program does not expect. */
function remedyFor(name: string, wanted: object): string {
  const names = Object.keys(wanted);
  if (names.length === 0) return "pass no descriptor";
  if (name === "connection") return "set Accept=no in the socket unit";
  if (name === "stored") return `store it with the fdName ${orList(names)}`;
  return `set FileDescriptorName= to ${orList(names)}`;
}

function orList(names: readonly string[]): string {
  return names.join(" or ");
}
