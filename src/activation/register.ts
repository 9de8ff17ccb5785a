/**
 * A preload that runs a program which was not written for systemd on passed sockets:
 *
 *     ExecStart=/usr/local/bin/bun --no-install --preload /srv/app/node_modules/socket-service/register.js index.ts
 *
 * @module
 */
import { messageOf, ActivationError, ExitStatus } from "./error.ts";
import { LogLevel, logLine } from "./journal/log.ts";
import { register } from "./register/unchanged.ts";

const { LISTEN_PID, NOTIFY_SOCKET } = process.env;
if (Bun.isMainThread && (LISTEN_PID !== undefined || NOTIFY_SOCKET !== undefined))
  try {
    register();
  } catch (error) {
    logLine(LogLevel.error, `socket-service/register: ${messageOf(error)}`);
    process.exit(error instanceof ActivationError ? error.status : ExitStatus.systemCall);
  }
