import { afterEach, beforeEach } from "bun:test";

import { descriptors, nothingLeft } from "./checks.ts";

const servers: { stop(force: true): unknown }[] = [];
const ends: (() => unknown)[] = [];

/** Has something happen at the end of this test, when its servers have stopped: see `cleansUp`. */
export function atEnd(end: () => unknown): void {
  ends.push(end);
}

/** Has a server, or a listener, stop at the end of this test. */
export function started<S extends { stop(force: true): unknown }>(server: S): S {
  servers.push(server);
  return server;
}

/** Ends the servers of each test of a file, and checks that nothing is left open. */
export function cleansUp(): void {
  let before: Map<string, number>;
  beforeEach(() => void (before = descriptors()));
  afterEach(async () => {
    for (const server of servers.splice(0)) await server.stop(true);
    for (const end of ends.splice(0)) await end();
    await nothingLeft(before);
  });
}
