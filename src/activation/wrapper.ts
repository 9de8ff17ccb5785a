import { log, LogLevel } from "./log.ts";

/**
 * Warns if the process `pid`, to which the sockets were passed, is one that this one descends from,
 * as with `ExecStart=bun run start`, npm or a shell. Not for process 1, from which all descend.
 */
export function warnIfWrapped(pid: number): void {
  let ancestor = process.ppid;
  while (ancestor > 1 && ancestor !== pid) ancestor = stat(ancestor).parent;
  if (pid === 1 || ancestor !== pid) return;
  const message =
    `the passed sockets are for process ${pid} (${stat(pid).name}), which started this one, ${process.pid}, ` +
    "and are not taken: make ExecStart= the program itself, or put exec before it in the shell";
  log(LogLevel.warning, message);
}

/** The name of a process and the id of its parent: 0 if it has none, or is hidden, or has ended. */
function stat(pid: number): { name: string; parent: number } {
  const { readFileSync } = process.getBuiltinModule("node:fs");
  try {
    // proc_pid_stat(5): "pid (name) state ppid ...", and the name may hold parentheses.
    const text = readFileSync(`/proc/${pid}/stat`, "utf8");
    const [, name = "", parent] = /\((.*)\) \S (\d+)/s.exec(text) ?? [];
    return { name, parent: Number(parent) };
  } catch {
    return { name: "", parent: 0 };
  }
}
