/* State that survives `bun --hot`, which evaluates every module anew in the same process. */

const KEY = Symbol.for("socket-service/activation");
const holder: { [KEY]?: Map<string, unknown> } & Partial<typeof globalThis> = globalThis;
const states = (holder[KEY] ??= new Map<string, unknown>());

/** Returns the state of that name. The first evaluation of its one owner has created it. */
export function perProcess<State>(name: string, create: () => State): State {
  if (!states.has(name)) states.set(name, create());
  // Nobody but the owner of the name has set it.
  return states.get(name) as State;
}

/** Whether this program is evaluated again after an edit. */
export function isHot(): boolean {
  return process.execArgv.includes("--hot");
}
