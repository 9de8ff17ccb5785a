import { afterEach, expect, mock, spyOn, test } from "bun:test";
import fs from "node:fs";

import { booted } from "../../src/activation/index.ts";

afterEach(() => mock.restore());

test.each([true, false])("booted is %j as /run/systemd/system is there or not", (isThere) => {
  const existsSync = spyOn(fs, "existsSync").mockReturnValue(isThere);
  expect(booted()).toBe(isThere);
  expect(existsSync.mock.calls).toEqual([["/run/systemd/system/"]]);
});
