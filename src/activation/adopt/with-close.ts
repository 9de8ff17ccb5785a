import { derive } from "../bun.ts";
import { type Answers, mapAnswers } from "./answers.ts";
import { withNodeClose } from "./node-http.ts";
import { PATIENCE, type Requests } from "./requests.ts";

/** The same options, but each response ends its connection, and upgrades get 503. */
export function withClose(options: Answers, requests: Requests): Answers {
  const { fetch, error, onNodeHTTPRequest } = options;
  if (onNodeHTTPRequest)
    return derive(options, { onNodeHTTPRequest: withNodeClose(onNodeHTTPRequest, requests) });
  const handler = (answer: Function) =>
    async function (this: unknown, request: Request, ...others: unknown[]): Promise<unknown> {
      if (request.headers.get("upgrade")?.toLowerCase() === "websocket")
        return sayClose(new Response(null, { status: 503 }));
      // The address is null once the response is sent. Over AF_UNIX it always is.
      const isSending = () => Object(others[0]).requestIP(request) !== null;
      const end = requests.begin(() => !request.signal.aborted, isSending);
      const hasCome = watchBody(request);
      try {
        let response: unknown;
        try {
          response = Reflect.apply(answer, this, [request, ...others]);
          // Bun treats a returned error like a thrown one, unless a promise resolves to it.
          if (response instanceof Error) throw response;
          response = await response;
        } catch (problem) {
          response = await handleError(this, problem);
        }
        // Bun closes at once. A client that still sends would be reset.
        if (await hasCome()) return sayClose(response);
        requests.noteEarly();
        return response;
      } finally {
        end();
      }
    };
  const handleError = async (self: unknown, problem: unknown): Promise<unknown> => {
    try {
      const response: unknown = await Reflect.apply(error ?? failed, self, [problem]);
      return response instanceof Response ? response : failed(problem);
    } catch (another) {
      return failed(another);
    }
  };
  const value = (answer: unknown): unknown => {
    if (answer instanceof Response) return sayClose(answer.clone());
    return answer instanceof Blob ? sayClose(new Response(answer)) : answer;
  };
  return mapAnswers(derive(options, { fetch: fetch ?? notFound }), handler, value);
}

/**
 * Returns a function to call after the handler. It returns whether all of the request's body has come, for
 * which it waits.
 */
function watchBody(request: Request): () => boolean | Promise<boolean> {
  const { headers } = request;
  if (!headers.has("transfer-encoding") && !(Number(headers.get("content-length")) > 0))
    return () => true;
  // Before the handler, which may read it in any way, or not at all.
  const all = readAll(request.clone().body);
  return async () => await Promise.race([all, Bun.sleep(PATIENCE).then(() => false)]);
}

/** Returns whether the body came to its end. */
async function readAll(body: Request["body"]): Promise<boolean> {
  try {
    for await (const _ of body ?? []);
    return true;
  } catch {
    return false;
  }
}

function sayClose(answer: unknown): unknown {
  if (answer instanceof Response) answer.headers.set("Connection", "close");
  return answer;
}

/** Bun's answers to a request that has no handler, or whose handler fails. */
const notFound = () => new Response(null, { status: 404 });
function failed(problem: unknown): Response {
  console.error(problem);
  return new Response("Something went wrong!", { status: 500 });
}
