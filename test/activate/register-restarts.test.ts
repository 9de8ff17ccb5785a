/* Unchanged programs, with the preload, lose no request in restarts. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";

import {
  BUN_SERVE,
  ENDS,
  KEEPING,
  NODE_HTTP,
  SLOW_ANSWERS,
  startsServices,
} from "../support/unchanged.ts";

setDefaultTimeout(60_000);

const { started } = startsServices();

const PROGRAMS = {
  "Bun.serve": BUN_SERVE,
  "node:http": NODE_HTTP,
  "node:http that says keep-alive": KEEPING,
};

describe.concurrent.each(Object.entries(PROGRAMS))("a program of %s", (_, source) => {
  test.each(Object.entries(ENDS))(
    "that ends by %s loses no request in five restarts",
    async (end, handler) => {
      const { it } = await started(source + handler);
      const { lost, answered, statuses } = await it.restarts(5, () => it.start("program.ts"));
      const status = end.includes("143") ? 143 : 0;
      expect({ lost, statuses }).toEqual({
        lost: {},
        statuses: Array.from({ length: 5 }, () => status),
      });
      expect(answered).toBeGreaterThan(100);
    },
  );
});

test.concurrent.each(Object.entries(SLOW_ANSWERS))(
  "a program of %s whose answers take 800 ms loses none if it exits at SIGTERM",
  async (_, source) => {
    const { it } = await started(source + ENDS["process.exit()"]);
    const { lost, answered } = await it.restarts(3, () => it.start("program.ts"));
    expect(lost).toEqual({});
    expect(answered).toBeGreaterThan(32);
  },
);
