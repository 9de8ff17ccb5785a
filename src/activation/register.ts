/**
 * A preload that runs a program which was not written for systemd on passed sockets:
 *
 *     ExecStart=/usr/local/bin/bun --no-install --preload /srv/app/node_modules/socket-service/register.js index.ts
 *
 * With nothing to do, it loads nothing else: see Start in src/README.md.
 *
 * @module
 */
import type * as Main from "./register/main.ts";

const { LISTEN_PID, NOTIFY_SOCKET } = process.env;
if ((LISTEN_PID !== undefined || NOTIFY_SOCKET !== undefined) && Bun.isMainThread) {
  const main: typeof Main = require("./register/main.js");
  main.run();
}
