/* Children and Workers are passed nothing. */
import { expect, test } from "bun:test";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { SHARE_ENV, Worker as NodeWorker, type WorkerOptions } from "node:worker_threads";

import { serve } from "../../src/activation/index.ts";
import { ask, execute, get } from "../support/daemon.ts";
import { lines } from "../support/lines.ts";
import { NotifyReceiver } from "../support/notify-receiver.ts";
import * as sockets from "../support/sockets.ts";

const MODULE = JSON.stringify(`${import.meta.dir}/../../src/activation/index.ts`);

test("no child inherits the variables or the descriptors, by process.env, node:child_process or Bun.$", async () => {
  const program = `
    import { execFileSync } from "node:child_process";
    import { listenFds, notifyEnabled, watchdogEnabled } from ${MODULE};
    if (listenFds().length !== 2 || !notifyEnabled() || !watchdogEnabled()) throw new Error("none");
    const { env } = process;
    const output = [
      Bun.spawnSync(["env"], { env }).stdout.toString(),
      await new Response(Bun.spawn(["env"], { env }).stdout).text(),
      execFileSync("env").toString(),
      await Bun.$\`env\`.text(),
    ];
    for (const text of output) console.log(text.match(/^(KEPT|LISTEN|NOTIFY|WATCHDOG)[^=]*/gm).join());
    console.log(Bun.spawnSync(["ls", "/proc/self/fd"]).stdout.toString().split("\\n").join());`;
  const passed = [openSync("/dev/null", "r"), openSync("/dev/null", "r")];
  const variables = {
    PATH: process.env["PATH"],
    KEPT: "yes",
    LISTEN_FDNAMES: "a:b",
    NOTIFY_SOCKET: "@nobody",
    WATCHDOG_USEC: "1000000",
  };
  await using child = execute(process.execPath, passed, variables, ["-e", program]);
  passed.forEach((fd) => closeSync(fd));
  const output: string[] = [];
  for await (const line of lines(child.process.stdout)) output.push(line);
  // The last descriptor is the directory that ls reads.
  expect([child.stderr, output]).toEqual(["", ["KEPT", "KEPT", "KEPT", "KEPT", "0,1,2,3,"]]);
});

test("a child of a Worker without options inherits the variables, and of one with process.env does not", async () => {
  const worker = `require("node:child_process").exec("echo \${LISTEN_FDS:-none}", (_, text) => postMessage(text))`;
  const program = `
    import { listenFds } from ${MODULE};
    listenFds();
    const url = URL.createObjectURL(new Blob([${JSON.stringify(worker)}]));
    for (const options of [undefined, { env: process.env }])
      await new Promise((resolve) => {
        new Worker(url, options).onmessage = ({ data }) => resolve(process.stdout.write(data));
      });
    process.exit();`;
  const passed = openSync("/dev/null", "r");
  const variables = { PATH: process.env["PATH"] };
  await using child = execute(process.execPath, [passed], variables, ["-e", program]);
  closeSync(passed);
  expect(await child.process.stdout.text()).toBe("1\nnone\n");
});

/** A program that reports the result of each function of the module in a Worker, as JSON. */
const PROGRAM = `
  import { parentPort } from "node:worker_threads";
  import * as activation from ${MODULE};
  const { acceptedFd, listenFds, notify, notifyBarrier, notifyEnabled } = activation;
  const { passedFd, requireListenFds, startWatchdog, watchdogEnabled } = activation;
  const failure = (call) => { try { return call(); } catch ({ status, message }) { return [status, message]; } };
  parentPort.postMessage(JSON.stringify({
    listenFds: listenFds(),
    passedFd: String(passedFd()),
    requireListenFds: failure(requireListenFds),
    acceptedFd: failure(acceptedFd),
    notifyEnabled: notifyEnabled(),
    notify: notify({ ready: true }),
    notifyBarrier: await notifyBarrier(1000),
    watchdogEnabled: String(watchdogEnabled()),
    startWatchdog: String(startWatchdog()),
    left: Object.keys(process.env).filter((name) => /^(LISTEN|NOTIFY|WATCHDOG)_/.test(name)).length,
  }));`;

async function answers(options: WorkerOptions = {}): Promise<unknown> {
  const worker = new NodeWorker(PROGRAM, { eval: true, ...options });
  try {
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    worker.once("message", resolve).once("error", reject);
    return JSON.parse(await promise);
  } finally {
    await worker.terminate();
  }
}

test("a Worker is passed nothing and notifies nobody, and leaves the environment as it is", async () => {
  using receiver = new NotifyReceiver();
  const variables = {
    LISTEN_PID: String(process.pid),
    LISTEN_FDS: "1",
    LISTEN_FDNAMES: "http",
    NOTIFY_SOCKET: receiver.address,
    WATCHDOG_USEC: "1000000",
    WATCHDOG_PID: String(process.pid),
  };
  const refused = [
    78,
    expect.stringMatching(
      /^no (socket|connection) was passed, because this is a Worker: call this function in the main thread$/,
    ),
  ];
  Object.assign(process.env, variables);
  try {
    const answered = [
      await answers(),
      await answers({ env: { ...process.env } }),
      await answers({ env: SHARE_ENV }),
    ];
    for (const answer of answered)
      expect(answer).toEqual({
        listenFds: [],
        passedFd: "undefined",
        requireListenFds: refused,
        acceptedFd: refused,
        notifyEnabled: false,
        notify: false,
        notifyBarrier: false,
        watchdogEnabled: "undefined",
        startWatchdog: "undefined",
        left: Object.keys(variables).length,
      });
  } finally {
    for (const name of Object.keys(variables)) delete process.env[name];
  }
  expect(receiver.poll()).toBeUndefined();
});

test("a Worker serves, listens and drains on descriptors it is given, while the main thread does", async () => {
  const fds = [1, 2, 3].map(() => sockets.listening(sockets.AF_INET, 5));
  const [main = 0, http = 0, tcp = 0] = fds;
  const [mainPort, httpPort, tcpPort] = fds.map(sockets.portOf);
  const server = serve({ fd: main, fetch: () => new Response("main") });
  const program = `
    import { parentPort } from "node:worker_threads";
    import { drain, listen, serve } from ${MODULE};
    const server = serve({ fd: ${http}, fetch: () => new Response("worker") });
    const open = (socket) => void socket.end("worker");
    const listener = listen({ fd: ${tcp}, maxConnections: 1, socket: { open, data() {} } });
    parentPort.on("message", async () => {
      listener.stop();
      parentPort.postMessage(await drain(server, { grace: 10 }));
    });
    parentPort.postMessage("serves");`;
  const worker = new NodeWorker(program, { eval: true });
  try {
    expect((await once(worker, "message"))[0]).toBe("serves");
    for (let n = 0; n < 5; n++) {
      for (const [port, answer] of [
        [mainPort, "main"],
        [httpPort, "worker"],
      ] as const) {
        expect(await get(port ?? 0)).toBe(answer);
      }
      expect(await ask(tcpPort ?? 0)).toBe("worker");
    }
    const drained = once(worker, "message");
    worker.postMessage("drain");
    expect(await drained).toEqual([true]);
    expect(await get(mainPort ?? 0)).toBe("main");
  } finally {
    await worker.terminate();
    await server.stop(true);
  }
});
