import { describe, type Descriptor } from "./describe.ts";
import { procText } from "../environment.ts";
import { type ActivationError, misconfigured } from "../error.ts";
import { SO } from "../linux/layout.ts";
import { canCallLibc, socketOption } from "../linux/libc.ts";

/** Why nothing was passed, and a remedy if the reason implies one. */
export interface NotPassed {
  readonly reason: string;
  readonly remedy?: string;
}

/** The kind of descriptor that the caller needs. */
export type Needed = "socket" | "connection";

/** Returns the error for a program that needs what was not passed. */
export function notPassed({ reason, remedy }: NotPassed, needed: Needed): ActivationError {
  const error = (advice: string, to = "") =>
    misconfigured(`no ${needed} was passed${to}, because ${reason}: ${advice}`);
  if (remedy !== undefined) return error(remedy);
  if (stdinSocket() !== undefined)
    return error(
      `remove StandardInput=socket, which passes the ${needed} as standard input instead of descriptor 3`,
    );
  if (process.env["SYSTEMD_EXEC_PID"] !== String(process.pid))
    return error(
      needed === "connection"
        ? "start the program from a socket unit with Accept=yes or with systemd-socket-activate --accept"
        : "start the program from a socket unit or with systemd-socket-activate",
    );
  const { service, socket, systemctl } = unitsOf(procText("/proc/self/cgroup"), needed);
  // Not restart: some versions of systemd then say "Address already in use".
  const again = `run ${systemctl} stop ${quoted(socket)} && ${systemctl} start ${quoted(socket)}`;
  return error(
    needed === "connection"
      ? `do not start the service itself, but ${again} and let a client connect`
      : `name ${socket} in Requires= of the service (also in Sockets=, if the socket has another name), then ${again}`,
    ` by systemd to ${service}`,
  );
}

/** The name of a unit for a shell: it may hold a backslash. */
function quoted(unit: string): string {
  return unit.includes("\\") ? `'${unit}'` : unit;
}

/**
 * Returns standard input if systemd or inetd(8) put a socket there (`StandardInput=socket`): it has an
 * address, and the end of a socketpair has none. Undefined without FFI.
 */
export function stdinSocket(): Extract<Descriptor, { kind: "socket" }> | undefined {
  // `describe` would load node:fs for anything but a socket.
  if (!canCallLibc() || socketOption(0, SO.TYPE) === undefined) return undefined;
  const it = describe(0);
  if (it.kind !== "socket") return undefined;
  const hasAddress = "path" in it ? it.path !== "" : !("port" in it) || it.port !== 0;
  return hasAddress ? it : undefined;
}

/**
 * Returns the service of a process, by its /proc/PID/cgroup, the socket unit that has that name, and the
 * command for its manager. A service for one connection is an instance: its socket unit has the name
 * before the `@`.
 */
export function unitsOf(cgroup: string, needed: Needed) {
  // A hybrid hierarchy has both lines, and one of them is "/" in a container.
  const path = /^(?:0:|\d+:name=systemd):(.*\.service.*)$/m.exec(cgroup)?.[1] ?? "";
  const [, user, below = path] = /^(.*\/user@\d+\.service)(\/.*)$/.exec(path) ?? [];
  const systemctl = user === undefined ? "systemctl" : "systemctl --user";
  // systemd puts an underscore before a name that the kernel could take for a file of its own.
  const name = /^.*\/_?([^/]+)\.service(?:\/|$)/.exec(below)?.[1];
  if (name === undefined) return { systemctl, service: "this service", socket: "its socket unit" };
  const isInstance = needed === "connection" || /@\d+-/.test(name);
  const socket = `${isInstance ? name.replace(/@.*/, "") : name}.socket`;
  return { systemctl, service: `${name}.service`, socket };
}
