/* Clients of HTTP/2. */
import type { ClientHttp2Session } from "node:http2";

/** The codes of a request that was not sent, because the session has ended or is about to. */
export const GOAWAY = /^ERR_HTTP2_(GOAWAY|INVALID)_SESSION$/;

/** Sends a request, and returns the body of the answer. */
export async function getHTTP2(session: ClientHttp2Session, path = "/"): Promise<string> {
  let body = "";
  for await (const chunk of session.request({ ":path": path }).setEncoding("latin1"))
    body += String(chunk);
  return body;
}

/** Sends one request after the other while the body of the answer is this, and returns the first other result. */
export async function untilGoaway(session: ClientHttp2Session, body: string): Promise<string> {
  let result: string;
  do result = await getHTTP2(session).catch(({ code }) => String(code));
  while (result === body);
  return result;
}
