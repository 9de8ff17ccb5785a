import { expect, test } from "bun:test";

import { withNodeClose } from "../../src/activation/adopt/node-http.ts";
import { Requests } from "../../src/activation/adopt/requests.ts";
import { rejection, thrown } from "../support/checks.ts";

test("a request counts until it is answered, and not after an error of its handler", async () => {
  const requests = new Requests();
  const problem = new Error("on purpose");
  const fails = withNodeClose(() => {
    throw problem;
  }, requests);
  expect(thrown(() => fails())).toBe(problem);
  expect(requests.open).toBe(0);
  const { promise, resolve } = Promise.withResolvers<void>();
  const answers = withNodeClose(() => promise, requests);
  const rejects = withNodeClose(() => Promise.reject(problem), requests);
  const given: unknown[] = [answers(), answers(), rejects()];
  expect(requests.open).toBe(3);
  // It has no second rejection, which nobody would handle.
  expect(await rejection(given[2])).toBe("Error: on purpose");
  expect(requests.open).toBe(2);
  resolve();
  await promise;
  expect(requests.open).toBe(0);
});
