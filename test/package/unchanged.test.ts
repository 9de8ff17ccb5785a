/* Programs of frameworks that know nothing of systemd, with the preload, on a passed socket. */
import { afterEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";

import { must } from "../support/project.ts";
import { echoed, Service } from "../support/unchanged.ts";
import { HELLO, type Row, ROWS } from "./rows.ts";

setDefaultTimeout(180_000);

/** `make test-frameworks` has all of them. */
const isComplete = process.env["FRAMEWORKS"] === "all";
const rows = Object.entries(ROWS).filter(([, row]) => isComplete || row.has.includes("quick"));

const RESTARTS = 5;
/** As many again, under requests with a body. */
const POSTS = 2;
const BODY = 3000;

/** Runs Bun to its end. */
const bun = (cwd: string, ...args: string[]) =>
  must([process.execPath, ...args], {
    cwd,
    env: { NODE_ENV: undefined, NEXT_TELEMETRY_DISABLED: "1", ASTRO_TELEMETRY_DISABLED: "1" },
  });

/** Installs and builds a program into a directory of its own. */
function build(it: Service, { packages = [], builds = [], index, files = {} }: Row): void {
  const cwd = it.directory.path;
  it.write("package.json", `{ "type": "module" }`);
  if (index !== undefined) it.write("index.ts", index);
  for (const [name, text] of Object.entries(files)) it.write(name, text);
  if (packages.length > 0) bun(cwd, "add", "--ignore-scripts", "--silent", ...packages);
  for (const [name = "", ...args] of builds)
    bun(cwd, "--bun", join("node_modules/.bin", name), ...args);
}

let it: Service;
afterEach(async () => await it[Symbol.asyncDispose]());

describe.each(rows)("%s", (_, row) => {
  const { has, status = 0, program = "index.ts" } = row;

  test("serves, becomes ready, loses no request in restarts, sleeps and wakes", async () => {
    it = new Service();
    build(it, row);
    // Next is told its own host name.
    const env = { NODE_ENV: "production", HOSTNAME: "0.0.0.0" };
    const start = (more: Record<string, string> = {}) =>
      it.start(program, { env: { ...env, ...more } });

    const running = start();
    expect(await it.ready()).toBe(`READY=1\nSTATUS=Listening on 127.0.0.1:${it.port}\n`);
    expect(await it.get("/")).toContain(HELLO);
    if (has.includes("address"))
      expect(await it.get("/address")).toMatch(/^(::ffff:)?127\.0\.0\.1$/);
    if (has.includes("stream")) {
      const chunks: string[] = [];
      const response = await fetch(new URL("/stream", it.url));
      for await (const chunk of response.body ?? []) chunks.push(new TextDecoder().decode(chunk));
      expect(chunks.join("|")).toBe("one|two");
    }
    if (has.includes("socket.io"))
      for (const transport of ["polling", "websocket"])
        expect(bun(it.directory.path, "client.ts", it.url, transport)).toBe("echo\n");
    if (has.includes("socket")) expect(await echoed(`${it.url}socket`)).toBe("echo");
    if (has.includes("port")) {
      const port = RegExp(`listening on (http://127.0.0.1:)?${it.port}\\n`);
      const reader = running.process.stdout.getReader();
      const decoder = new TextDecoder();
      let said = "";
      while (!port.test(said)) said += decoder.decode((await reader.read()).value);
      reader.releaseLock();
    }
    expect(running.stderr).not.toMatch(/socket-service|[Ee]rror/);

    const { lost, statuses, answered } = await it.restarts(RESTARTS, start);
    expect(lost).toEqual({});
    expect(answered).toBeGreaterThan(500);
    expect(statuses).toEqual(Array.from({ length: RESTARTS }, () => status));

    const posts = await it.restarts(POSTS, start, 20, BODY);
    expect([posts.lost, posts.failed]).toEqual([{}, {}]);
    if (has.includes("post"))
      for (const answer of Object.keys(posts.answers)) expect(answer).toContain(`${HELLO}${BODY}`);

    await it.stop();
    const sleeping = start({ IDLE_TIMEOUT: "0.5" });
    await it.ready();
    expect(await it.get("/")).toContain(HELLO);
    expect(await sleeping.status()).toBe(status);
    const waiting = it.get("/");
    start();
    expect(await waiting).toContain(HELLO);
  });
});
