import {
  describe,
  formatAddress,
  freeDescriptors,
  listen,
  type Listener,
  notify,
  notifyEnabled,
  type PassedDescriptor,
  printable,
  requireListenFds,
  startWatchdog,
  whenIdle,
} from "../activation/index.ts";
import { Greeter } from "./greeter.ts";
import { misused, run } from "./run.ts";

/** In seconds. */
const IDLE_TIMEOUT = 30;
/** In milliseconds: how often the status may change. */
const STATUS_INTERVAL = 1000;
/** In characters: how much of the status the addresses may take. */
const LONGEST_LIST = 256;
/** Descriptors that are left to the process itself, beside one for each socket. */
const RESERVE = 16;

await run({
  name: "socket-service",
  about: "Greets every connection to the listening sockets that systemd passes.",
  options: {
    "idle-timeout": `SECONDS  exit after this time without a connection (default: ${IDLE_TIMEOUT}; "infinity" means never)`,
  },
  run: ({ "idle-timeout": seconds }) =>
    serve(seconds === undefined ? IDLE_TIMEOUT * 1000 : parseTimeout(String(seconds))),
});

function parseTimeout(seconds: string): number {
  if (seconds === "infinity") return Number.POSITIVE_INFINITY;
  const milliseconds = /^[0-9]+(\.[0-9]+)?$/.test(seconds) ? Number(seconds) * 1000 : 0;
  if (milliseconds > 0) return milliseconds;
  const given = JSON.stringify(seconds);
  throw misused(`--idle-timeout is ${given}: give a number of seconds above 0, or infinity`);
}

async function serve(idleTimeout: number): Promise<void> {
  let stopping = false;
  // True from the start, so that systemd first hears that this process listens.
  let reporting = true;
  let reported = 0;

  const greeter = new Greeter("This is a test\n", {
    opened: () => reporting || report(),
    idle: () => stopping && process.exit(),
  });
  const passed = requireListenFds();
  // Each socket has the same share: however many clients come to one, the others keep theirs.
  // Bitwise instead of Math, and a loop instead of `map`: see Start.
  const share = ((freeDescriptors() - RESERVE) / passed.length - 1) | 0;
  const options = { socket: greeter.handlers, maxConnections: share > 1 ? share : 1 };
  const listeners: Listener[] = [];
  for (const { fd } of passed) listeners.push(listen({ fd, ...options }));
  startWatchdog();
  process.on("SIGTERM", stop);
  process.on("SIGINT", stop);
  // The client that waits is greeted first: see Start.
  await Bun.sleep(1);
  void whenIdle(listeners, { timeout: idleTimeout }).then(stop);
  if (notifyEnabled()) announce();

  /** Tells systemd that this process listens. It tries until that could be sent: systemd waits for it. */
  function announce(): void {
    if (stopping) return;
    if (notify({ ready: true, status: `Listening on ${list(passed)}` })) report();
    else setTimeout(announce, STATUS_INTERVAL);
  }

  /** Open connections finish, at their deadline at the latest, and the last one ends the process. */
  function stop(): void {
    if (stopping) process.exit();
    stopping = true;
    notify({ stopping: true });
    for (const listener of listeners) listener.stop();
    if (greeter.open === 0) process.exit();
  }

  /** Reports how many clients were served: at once, and again after each interval in which more came. */
  function report(): void {
    reporting = reported !== greeter.accepted;
    if (!reporting) return;
    reported = greeter.accepted;
    notify({ status: `Socket accepted, connections served: ${reported}` });
    setTimeout(report, STATUS_INTERVAL);
  }
}

/** Lists where sockets listen: "A, B and 58 more", because systemd reads at most 4,096 bytes. */
function list(passed: readonly PassedDescriptor[]): string {
  let text = "";
  for (const [index, { fd }] of passed.entries()) {
    // A name may hold anything, and systemctl shows a status in a terminal as it is.
    const where = printable(formatAddress(describe(fd)), "?");
    if (index > 0 && text.length + where.length > LONGEST_LIST)
      return `${text} and ${passed.length - index} more`;
    text += index === 0 ? where : `, ${where}`;
  }
  return text;
}
