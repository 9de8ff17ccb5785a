/* Descriptors 0 to 2, which children have as their own standard input, output and errors. */
import { expect, test } from "bun:test";
import { readlinkSync } from "node:fs";
import { join, resolve } from "node:path";

import { release, replaceClosed, wasTaken } from "../../src/activation/adopt/handover.ts";
import { descriptors, nothingLeft } from "../support/checks.ts";
import { scratch } from "../support/daemon.ts";

import { client, listening, text } from "../support/listening.ts";
import * as sockets from "../support/sockets.ts";
import { AF_INET, SOCK_DGRAM } from "../support/sockets.ts";
import { until } from "../support/until.ts";

const SOURCE = resolve(import.meta.dir, "../../src/activation");
const MODULE = JSON.stringify(`${SOURCE}/index.ts`);
const HANDOVER = JSON.stringify(`${SOURCE}/adopt/handover.ts`);

/** Starts a program whose standard input is `fd`; `inherited()` is that of a child of it. */
function withInput(fd: number, program: string, env: Record<string, string> = {}) {
  const script = `
    import { adoptConnection, listen, serve, udpSocket } from ${MODULE};
    const inherited = () => {
      const child = Bun.spawnSync(["readlink", "/proc/self/fd/0"], { stdin: "inherit" });
      return child.stdout.toString();
    };
    ${program}`;
  const child = Bun.spawn([process.execPath, "-e", script], {
    env: { ...process.env, ...env },
    stdio: [fd, "pipe", "inherit"],
  });
  sockets.close(fd);
  return child;
}

test("/dev/null replaces a standard descriptor that was closed, and nothing else", async () => {
  const input = () => readlinkSync("/proc/self/fd/0");
  const own = input();
  const before = descriptors();
  {
    using _ = sockets.asStdin(undefined);
    replaceClosed(3);
    expect(sockets.isOpen(0)).toBe(false);
    replaceClosed(0);
    expect(input()).toBe("/dev/null");
  }
  // Another thread was faster.
  replaceClosed(0);
  expect(input()).toBe(own);
  await nothingLeft(before);
});

test("a descriptor that Bun has a duplicate of is closed, but /dev/null replaces a standard one", async () => {
  const before = descriptors();
  const [one, other] = sockets.socketPair();
  {
    using _ = sockets.asStdin(one);
    release(0);
    expect(readlinkSync("/proc/self/fd/0")).toBe("/dev/null");
  }
  for (const fd of [one, other]) {
    release(fd);
    expect([sockets.isOpen(fd), wasTaken(fd)]).toEqual([false, true]);
  }
  await nothingLeft(before);
});

test.each([
  ["serve", "serve({ fd: 0, fetch: () => new Response(inherited()) });"],
  ["listen", "listen({ fd: 0, socket: { open: (it) => void it.end(inherited()), data() {} } });"],
])(
  "%s on standard input leaves /dev/null there, not the next connection",
  async (name, program) => {
    using it = listening("IPv4");
    await using _ = withInput(it.fd, program);
    // The first one would have number 0.
    for (const socket of [await client(it.to), await client(it.to)]) {
      if (name === "serve") socket.write("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
      expect(await text(socket)).toEndWith("/dev/null\n");
    }
  },
);

test("listen on standard input leaves /dev/null there after stop", async () => {
  using it = listening("IPv4");
  await using child = withInput(
    it.fd,
    "listen({ fd: 0, socket: { data() {} } }).stop(); console.log(inherited());",
  );
  expect(await child.stdout.text()).toBe("/dev/null\n\n");
});

test("udpSocket on standard input leaves /dev/null there", async () => {
  const fd = sockets.bound(AF_INET, SOCK_DGRAM);
  await using child = withInput(
    fd,
    "const it = await udpSocket({ fd: 0 }); console.log(inherited()); it.close(); console.log(inherited());",
  );
  expect((await child.stdout.text()).trim().split(/\n+/)).toEqual(["/dev/null", "/dev/null"]);
});

test.each([{}, { BUN_JSC_useJIT: "0" }])(
  "a connection that ended on standard input leaves /dev/null there, with %p",
  async (env) => {
    const [peer, fd] = sockets.socketPair();
    await using child = withInput(
      fd,
      "await adoptConnection(0, { data() {}, end: (it) => void it.end(), close: () => console.log(inherited()) });",
      env,
    );
    sockets.close(peer);
    expect(await child.stdout.text()).toBe("/dev/null\n\n");
  },
);

test.each([1, 2])("a connection that ended on descriptor %d leaves /dev/null there", async (fd) => {
  const [peer, passed] = sockets.socketPair();
  using directory = scratch();
  const file = join(directory.path, "said");
  const script = `
    import { readlinkSync, writeFileSync } from "node:fs";
    import { adoptConnection } from ${MODULE};
    const close = () => {
      // A file that is opened now must not get the number.
      writeFileSync(${JSON.stringify(file)}, "");
      Bun.gc(true);
      writeFileSync(${JSON.stringify(file)}, readlinkSync("/proc/self/fd/${fd}"));
    };
    await adoptConnection(${fd}, { data() {}, end: (it) => void it.end(), close });`;
  const stdio = [null, fd === 1 ? passed : null, fd === 2 ? passed : null] as const;
  await using child = Bun.spawn([process.execPath, "-e", script], { stdio: [...stdio] });
  sockets.close(passed);
  sockets.close(peer);
  expect(await child.exited).toBe(0);
  expect(await Bun.file(file).text()).toBe("/dev/null");
});

test("the end of a connection on standard input calls close, also if /dev/null cannot be opened", async () => {
  const [peer, fd] = sockets.socketPair();
  await using child = withInput(
    fd,
    `process.on("uncaughtException", ({ code }) => (console.log(code), process.exit(3)));
    const open = (it) => void it.write("adopted");
    await adoptConnection(0, { open, data() {}, close: () => console.log("closed") });`,
  );
  await until("it is adopted", 10, () => sockets.peek(peer) === "adopted");
  // No descriptor is allowed any more.
  Bun.spawnSync(["prlimit", "--nofile=0:", "--pid", String(child.pid)], { stderr: "inherit" });
  sockets.close(peer);
  expect([await child.stdout.text(), await child.exited]).toEqual(["closed\nEMFILE\n", 3]);
});

test("standard input stays as it is if /dev/null cannot be opened in its place", async () => {
  const [peer, fd] = sockets.socketPair();
  await using child = withInput(
    fd,
    `import { readlinkSync, writeSync } from "node:fs";
    import { release } from ${HANDOVER};
    const before = readlinkSync("/proc/self/fd/0");
    process.on("SIGUSR1", () => {
      try { release(0); } catch ({ code }) { console.log(code); }
      console.log(readlinkSync("/proc/self/fd/0") === before);
      process.exit();
    });
    setInterval(() => {}, 1000);
    writeSync(0, "ready");`,
  );
  await until("it is ready", 10, () => sockets.peek(peer) === "ready");
  // No descriptor is allowed any more.
  Bun.spawnSync(["prlimit", "--nofile=0:", "--pid", String(child.pid)], { stderr: "inherit" });
  child.kill("SIGUSR1");
  expect(await child.stdout.text()).toBe("EMFILE\ntrue\n");
  sockets.close(peer);
});

test("an error leaves the socket on standard input", async () => {
  using it = listening("IPv4");
  await using child = withInput(
    it.fd,
    `for (const options of [{ fetch: 1 }, { fetch() {}, tls: { key: "none", cert: "none" } }])
      try { serve({ fd: 0, ...options }); } catch {}
    try { listen({ fd: 0 }); } catch {}
    console.log(inherited());`,
  );
  expect(await child.stdout.text()).toMatch(/^socket:/);
});
