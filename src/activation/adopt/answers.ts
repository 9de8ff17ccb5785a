import { derive } from "../bun.ts";

/** The options that answer requests. */
export interface Answers {
  readonly routes?: object | undefined;
  readonly static?: object | undefined;
  readonly fetch?: Function | null | undefined;
  readonly error?: Function | null | undefined;
  readonly websocket?: object | null | undefined;
  /** Of `node:http`. */
  readonly onNodeHTTPRequest?: Function | undefined;
}

/** The same options with other answers: `handler` maps each function of `fetch` and the routes, `value` the rest. */
export function mapAnswers(
  options: Answers,
  handler: (answer: Function) => Function,
  value = (answer: unknown): unknown => answer,
): Answers {
  const { routes, static: files, fetch } = options;
  const route = (answer: unknown): unknown => {
    if (typeof answer === "function") return handler(answer);
    const byMethod = Object.entries(answer ?? {});
    // Bun ignores properties that are no methods.
    return byMethod.some(([name]) => /^[A-Z-]+$/.test(name)) ? mapped(byMethod) : value(answer);
  };
  const mapped = (answers: readonly [string, unknown][]) =>
    Object.fromEntries(answers.map(([name, answer]) => [name, route(answer)]));
  return derive(options, {
    // Bun ignores an array, which Hono has.
    ...(routes && !Array.isArray(routes) && { routes: mapped(Object.entries(routes)) }),
    ...(files && { static: mapped(Object.entries(files)) }),
    ...(fetch && { fetch: handler(fetch) }),
  });
}

/** The routes that are functions, also those for one method. */
function functionsOf(routes: unknown): object | undefined {
  if (typeof routes !== "object" || routes === null || Array.isArray(routes)) return undefined;
  const kept = Object.entries(routes).flatMap(([name, answer]: [string, unknown]) => {
    const functions = typeof answer === "function" ? answer : functionsOf(answer);
    return functions ? [[name, functions] as const] : [];
  });
  return kept.length > 0 ? Object.fromEntries(kept) : undefined;
}

/**
 * The options that Bun uses after a `reload`: it keeps what is not given, or is null. Of the routes, it
 * keeps only functions.
 */
export function reloaded(before: Answers, given: Answers): Answers {
  const routes = Array.isArray(given.routes) ? undefined : given.routes;
  const from =
    (routes ?? given.static)
      ? { routes, static: given.static }
      : { routes: functionsOf(before.routes), static: functionsOf(before.static) };
  return derive(given, {
    ...from,
    fetch: given.fetch ?? before.fetch,
    error: given.error ?? before.error,
    websocket: given.websocket ?? before.websocket,
    onNodeHTTPRequest: given.onNodeHTTPRequest ?? before.onNodeHTTPRequest,
  });
}
