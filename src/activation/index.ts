/**
 * systemd's protocols for Bun: sockets that the service manager passes, readiness, watchdog.
 *
 * @example
 * ```ts
 * import { notify, passedFd, serve } from "socket-service/activation";
 *
 * serve({ fd: passedFd(), port: 4000, fetch: () => new Response("Hello\n") });
 * notify({ ready: true });
 * ```
 *
 * @module
 */
export { notifyBarrier } from "./barrier.ts";
export { booted } from "./booted.ts";
export { adoptConnection } from "./connection.ts";
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
export { drain, type DrainOptions } from "./drain.ts";
export { ActivationError, ExitStatus } from "./error.ts";
export { listen, type ListenOptions } from "./listen.ts";
export {
  acceptedFd,
  LISTEN_FDS_START,
  listenFds,
  type PassedDescriptor,
  passedFd,
  requireListenFds,
} from "./listen-fds.ts";
export { type FieldValue, type LogFields } from "./journal.ts";
export { log, LogLevel, stderrIsJournal } from "./log.ts";
export { notify, notifyEnabled, type Notification, type NotifyOptions } from "./notify.ts";
export { pick, type Picked, type Quantity } from "./pick.ts";
export type { Listener } from "./runtime.ts";
export { serve, type ServeOptions } from "./serve.ts";
export { udpSocket, type UdpSocketOptions } from "./udp.ts";
export { startWatchdog, watchdogEnabled } from "./watchdog.ts";
