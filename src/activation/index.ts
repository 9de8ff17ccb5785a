/**
 * systemd's protocols for Bun: passed sockets, readiness, watchdog, journal.
 *
 * A passed socket takes these steps, each with its file:
 *
 * 1. receive/listen-fds.ts reads the environment (environment.ts) and returns the descriptors.
 *    receive/pick.ts picks them by name. receive/not-passed.ts explains why nothing was passed, and
 *    receive/wrapper.ts warns if the sockets are for an ancestor.
 * 2. receive/describe.ts returns what each descriptor is.
 * 3. adopt/serve.ts, listen.ts, udp.ts and connection.ts make a Bun server, listener or socket of it.
 *    adopt/event-loop.ts puts it into Bun's event loop. adopt/drain.ts ends a server.
 *
 * The program speaks to systemd through notify/, and to the journal through journal/.
 * src/README.md in the repository has the whole map.
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

// The passed descriptors
export { listenFds, requireListenFds, passedFd, acceptedFd } from "./receive/listen-fds.ts";
export { type PassedDescriptor, LISTEN_FDS_START } from "./receive/listen-fds.ts";
export { pick, type Quantity, type Picked } from "./receive/pick.ts";

// The kind of a descriptor
export { describe, formatAddress, formatDescriptor } from "./receive/describe.ts";
export type { Descriptor, InetSocket, UnixSocket, OtherSocket } from "./receive/describe.ts";
export type { AnySocket, SocketType, NonSocket } from "./receive/describe.ts";

// Bun on a descriptor
export { serve, type ServeOptions } from "./adopt/serve.ts";
export { drain, type DrainOptions, draining } from "./adopt/drain.ts";
export { whenIdle, type IdleOptions } from "./adopt/idle.ts";
export { listen, type ListenOptions } from "./adopt/listen.ts";
export type { Listener } from "./bun.ts";
export { udpSocket, type UdpSocketOptions } from "./adopt/udp.ts";
export { freeDescriptors } from "./linux/libc.ts";
export { adoptConnection } from "./adopt/connection.ts";

// Telling systemd
export { notify, type Assignments, type NotifyOptions, notifyEnabled } from "./notify/notify.ts";
export { notifyBarrier } from "./notify/barrier.ts";
export { watchdogEnabled, startWatchdog } from "./notify/watchdog.ts";
export { booted } from "./environment.ts";

// Logging and errors
export { log, LogLevel, stderrIsJournal } from "./journal/log.ts";
export { type LogFields, type FieldValue } from "./journal/entry.ts";
export { ActivationError, ExitStatus, printable } from "./error.ts";
export { exitOnError } from "./journal/exit-on-error.ts";
