/**
 * systemd's protocols for Bun: sockets that the service manager passes, readiness, watchdog.
 *
 * @example
 * ```ts
 * import { listen, listenFds, notify } from "socket-service/activation";
 *
 * for (const { fd } of listenFds())
 *   listen(fd, { socket: { open: (socket) => void socket.end("Hello\n") } });
 * notify({ ready: true });
 * ```
 *
 * @module
 */
export { notifyBarrier } from "./barrier.ts";
export { booted } from "./booted.ts";
export { acceptedFd, adoptConnection } from "./connection.ts";
export {
  describe,
  type Descriptor,
  endpoint,
  type File,
  type InetSocket,
  type OtherSocket,
  phrase,
  type SocketType,
  type UnixSocket,
} from "./describe.ts";
export { ActivationError, ExitStatus } from "./error.ts";
export { listen, type ListenOptions } from "./listen.ts";
export {
  LISTEN_FDS_START,
  listenFds,
  type PassedDescriptor,
  requireListenFds,
} from "./listen-fds.ts";
export { log, LogLevel } from "./log.ts";
export { notify, notifyEnabled, type Notification, type NotifyOptions } from "./notify.ts";
export { startWatchdog, watchdogEnabled } from "./watchdog.ts";
