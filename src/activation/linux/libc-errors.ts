import { procText } from "../environment.ts";
import { quote } from "../error.ts";

/** In bytes: with less than 2.3 GB of address space or 2.5 GB of data, Bun 1.4 has no JIT. */
const ENOUGH = 4e9;

const LIMITS = [
  { name: "address space", setting: "LimitAS= (ulimit -v)" },
  { name: "data size", setting: "LimitDATA= (ulimit -d)" },
];

/** Returns the message for libc that cannot be called, by the reason of bun:ffi. */
export function whyNoLibc(reason: string): string {
  const advice = reason.includes("libc.so.6") ? "use 64-bit Linux with glibc" : remedy();
  return `cannot call libc, ${reason}: ${advice}`;
}

/** Returns what to do if there is no JIT. */
function remedy(): string {
  const useJIT = process.env["BUN_JSC_useJIT"] ?? "1";
  if (!["1", "true", "yes"].includes(useJIT))
    return `unset BUN_JSC_useJIT (it is ${quote(useJIT)})`;
  const limits = procText("/proc/self/limits");
  for (const { name, setting } of LIMITS) {
    const bytes = Number(RegExp(`^Max ${name} +(\\d+)`, "m").exec(limits)?.[1] ?? Infinity);
    if (bytes < ENOUGH)
      return `raise ${setting} from ${Math.round(bytes / 1e6)} MB to ${ENOUGH / 1e6} MB or more`;
  }
  // A process cannot see this restriction.
  return "allow memory that is writable and executable (MemoryDenyWriteExecute=no)";
}

/** Returns what to do about a call that failed, after a colon; empty if this file knows nothing. */
export function remedyForCall(call: string, code: string): string {
  if (code === "EMFILE") return ": raise LimitNOFILE= (ulimit -n)";
  if (code === "EAFNOSUPPORT") return ": allow AF_UNIX (RestrictAddressFamilies=)";
  // Of these calls, the kernel itself denies only one: sendmsg for another process.
  if (code === "EPERM" && call !== "sendmsg") return `: allow ${call} (SystemCallFilter=)`;
  return "";
}
