const SIGTERM = "SIGTERM";

/** A handler of a signal, and whether it is called only once. */
interface Handler {
  readonly call: Function;
  readonly isOnce: boolean;
}

/** The methods of `process` by which a program adds a handler: whether it is called first, and once. */
const ADD = [
  { name: "on", isFirst: false, isOnce: false },
  { name: "addListener", isFirst: false, isOnce: false },
  { name: "once", isFirst: false, isOnce: true },
  { name: "prependListener", isFirst: true, isOnce: false },
  { name: "prependOnceListener", isFirst: true, isOnce: true },
] as const;

/**
 * Holds SIGTERM back from the handlers of the program until `before` has ended. They get a second SIGTERM
 * at once.
 *
 * Bun calls the handlers that `process` has when the signal comes, and does not use `emit`. So the handlers
 * of the program are kept here instead. This does not use `node:events`: a program of `Bun.serve` does
 * without that, which saves 1 ms.
 *
 * @param otherwise Called if the program has no handler.
 * @returns A function that does the same as a first SIGTERM, and nothing after one.
 */
export function holdSigterm(before: () => Promise<void>, otherwise: () => void): () => void {
  // A preload of bunfig.toml may have added some. Bun does not tell which of them are called once.
  const earlier = process.listeners(SIGTERM);
  const held: Handler[] = earlier.map((call) => ({ call, isOnce: false }));
  const removeAt = (at: number) => {
    if (at >= 0) held.splice(at, 1);
  };
  const callHandlers = (args: unknown[], onError: (error: unknown) => void) => {
    const handlers = [...held];
    for (const handler of handlers) {
      // Another handler may have removed it.
      if (handler.isOnce) removeAt(held.indexOf(handler));
      try {
        Reflect.apply(handler.call, process, args);
      } catch (error) {
        onError(error);
      }
    }
    return handlers.length > 0;
  };

  let isReleased = false;
  const release = (...args: unknown[]) => {
    isReleased = true;
    // As Bun does: an error is an uncaught exception, and the next handler is called.
    if (!callHandlers(args, reportError)) otherwise();
  };
  let isHeld = false;
  const onSigterm = (...args: unknown[]) => {
    if (isHeld) return release(...args);
    isHeld = true;
    const releaseOnce = () => void (isReleased || release(...args));
    before().then(releaseOnce, releaseOnce);
  };
  const listenNatively = process.on.bind(process);
  listenNatively(SIGTERM, onSigterm);
  for (const handler of earlier) process.off(SIGTERM, handler);

  for (const { name, isFirst, isOnce } of ADD) {
    const native: Function = process[name];
    replace(name, (handler: unknown) => {
      // Bun ignores it, or throws the error.
      if (typeof handler !== "function") return Reflect.apply(native, process, [SIGTERM, handler]);
      held.splice(isFirst ? 0 : held.length, 0, { call: handler, isOnce });
      return process;
    });
  }
  const removeLast = (handler: unknown) => {
    removeAt(held.findLastIndex(({ call }) => call === handler));
    return process;
  };
  replace("off", removeLast);
  replace("removeListener", removeLast);
  const list = () => held.map(({ call }) => call);
  replace("listeners", list);
  replace("rawListeners", list);
  replace("listenerCount", (handler: unknown) =>
    handler === undefined ? held.length : list().filter((one) => one === handler).length,
  );
  const rethrow = (error: unknown) => {
    throw error;
  };
  replace("emit", (...args) => callHandlers(args, rethrow));
  const { removeAllListeners } = process;
  Object.assign(process, {
    removeAllListeners(...events: [string?]) {
      if (events.length === 0 || events[0] === SIGTERM) held.length = 0;
      if (events[0] !== SIGTERM) removeAllListeners.apply(process, events);
      if (events.length === 0) listenNatively(SIGTERM, onSigterm);
      return process;
    },
  });
  return () => void (isHeld || onSigterm(SIGTERM, 15));
}

/** Replaces a method of `process` if it is called for SIGTERM. */
function replace(name: string, instead: (...args: unknown[]) => unknown): void {
  const native: unknown = Reflect.get(process, name);
  if (typeof native !== "function") return;
  const method = (event: unknown, ...args: unknown[]): unknown =>
    event === SIGTERM ? instead(...args) : Reflect.apply(native, process, [event, ...args]);
  Object.assign(process, { [name]: method });
}
