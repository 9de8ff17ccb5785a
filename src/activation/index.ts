/**
 * systemd's protocols for Bun: sockets that the service manager passes, readiness, watchdog.
 *
 * What is passed goes this way, with the file of each step:
 *
 * 1. listen-fds.ts returns the descriptors that the environment names (environment.ts), pick.ts those
 *    of a name. wrapper.ts warns if they are for an ancestor.
 * 2. describe.ts says what each descriptor is.
 * 3. serve.ts, listen.ts (with max-connections.ts), udp.ts and connection.ts make a Bun server,
 *    listener or socket of it, event-loop.ts puts it into Bun's event loop, drain.ts ends a server.
 *
 * The other way go notify.ts, barrier.ts, watchdog.ts, and log.ts with journal.ts. Under all of them:
 * libc.ts calls libc, layout.ts knows its bytes, runtime.ts what Bun accepts and does not declare,
 * hot.ts keeps what `bun --hot` needs again, error.ts. exit-on-error.ts ends a program on an error.
 *
 * @example
 * ```ts
 * import { notify, passedFd, serve } from "socket-service/activation";
 *
 * serve({
 *   fd: passedFd(),
 *   hostname: "127.0.0.1",
 *   port: 4000,
 *   fetch: () => new Response("Hello\n"),
 * });
 * notify({ ready: true });
 * ```
 *
 * @module
 */

// What was passed
export { listenFds, requireListenFds, passedFd, acceptedFd } from "./receive/listen-fds.ts";
export { type PassedDescriptor, LISTEN_FDS_START } from "./receive/listen-fds.ts";
export { pick, type Quantity, type Picked } from "./receive/pick.ts";

// What a descriptor is
export { describe, formatAddress, formatDescriptor } from "./receive/describe.ts";
export type { Descriptor, InetSocket, UnixSocket, OtherSocket } from "./receive/describe.ts";
export type { AnySocket, SocketType, NonSocket } from "./receive/describe.ts";

// Bun on a descriptor
export { serve, type ServeOptions } from "./adopt/serve.ts";
export { drain, type DrainOptions, draining } from "./adopt/drain.ts";
export { listen, type ListenOptions } from "./adopt/listen.ts";
export type { Listener } from "./bun.ts";
export { udpSocket, type UdpSocketOptions } from "./adopt/udp.ts";
export { freeDescriptors } from "./linux/libc.ts";
export { adoptConnection } from "./adopt/connection.ts";

// Telling the service manager
export { notify, type Notification, type NotifyOptions, notifyEnabled } from "./notify/notify.ts";
export { notifyBarrier } from "./notify/barrier.ts";
export { watchdogEnabled, startWatchdog } from "./notify/watchdog.ts";
export { booted } from "./environment.ts";

// Logging and errors
export { log, LogLevel, stderrIsJournal } from "./journal/log.ts";
export { type LogFields, type FieldValue } from "./journal/entry.ts";
export { ActivationError, ExitStatus, printable } from "./error.ts";
export { exitOnError } from "./journal/exit-on-error.ts";
