import { procText } from "../environment.ts";
import { log, LogLevel } from "../journal/log.ts";

/** The names of process 1 of a machine, which is no wrapper. A name that is hidden is empty. */
const INIT = ["systemd", "init", ""];

/**
 * Warns if the process `pid`, to which the sockets were passed, is an ancestor of this one, as with
 * `ExecStart=bun run start`, npm or a shell, or with process 1 of a container. Such an ancestor may be
 * outside of the PID namespace.
 *
 * @returns The remedy, if it is one.
 */
export function warnIfWrapped(pid: number): string | undefined {
  let ancestor = process.ppid;
  while (ancestor > 1 && ancestor !== pid) ancestor = stat(ancestor).parent;
  const isOutside = process.pid === 1 && pid > 1;
  if (ancestor !== pid && !isOutside) return undefined;
  const name = isOutside ? "" : stat(pid).name;
  if (pid === 1 && INIT.includes(name)) return undefined;
  const place = pid === 1 ? "the command of the container" : "ExecStart=";
  const remedy = isOutside
    ? "start the program without a PID namespace of its own"
    : `write the program itself in ${place}, or put exec before it in the shell`;
  const relation = isOutside ? "outside of the PID namespace of" : "which started";
  log(
    LogLevel.warning,
    `the sockets were passed to process ${pid}${name && ` (${name})`}, ${relation} this process (${process.pid}), so this process gets none: ${remedy}`,
  );
  return remedy;
}

/** The name of a process and the id of its parent: 0 if it has none, or is hidden, or has ended. */
function stat(pid: number): { name: string; parent: number } {
  // proc_pid_stat(5): "pid (name) state ppid ...", and the name may hold parentheses.
  const [, name = "", parent = 0] = /\((.*)\) \S (\d+)/s.exec(procText(`/proc/${pid}/stat`)) ?? [];
  return { name, parent: Number(parent) };
}
