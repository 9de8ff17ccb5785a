/* State that all copies of this module share: the evaluations of bun --hot, the preload and the program. */

const KEY = Symbol.for("socket-service/activation");
const holder: { [KEY]?: Map<string, unknown> } & Partial<typeof globalThis> = globalThis;
const states = (holder[KEY] ??= new Map<string, unknown>());

/** Returns the state of that name. The first copy of its owner has created it. */
export function perProcess<State>(name: string, create: () => State): State {
  if (!states.has(name)) states.set(name, create());
  // Only copies of the owner of the name have set it.
  return states.get(name) as State;
}

/** Whether this program is evaluated again after an edit. */
export function isHot(): boolean {
  return process.execArgv.includes("--hot");
}
