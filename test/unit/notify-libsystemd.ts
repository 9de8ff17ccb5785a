/* Sends the notifications in the file named by the first argument as libsystemd.so.0 does. */
import { dlopen, ptr } from "bun:ffi";
import { readFileSync } from "node:fs";

const { symbols: sd } = dlopen("libsystemd.so.0", {
  sd_notify: { args: ["i32", "buffer"], returns: "i32" },
  sd_notify_barrier: { args: ["i32", "u64"], returns: "i32" },
  sd_pid_notify_with_fds: { args: ["i32", "i32", "buffer", "ptr", "u32"], returns: "i32" },
});

const cases: { state: string; fds: number[] }[] = JSON.parse(
  readFileSync(process.argv[2] ?? "", "utf8"),
);
for (const { state, fds } of cases) {
  const text = new TextEncoder().encode(`${state}\0`);
  const result =
    fds.length === 0
      ? sd.sd_notify(0, text)
      : sd.sd_pid_notify_with_fds(0, 0, text, ptr(Int32Array.from(fds)), fds.length);
  if (result <= 0) throw new Error(`sd_notify gave ${result}`);
}
const result = sd.sd_notify_barrier(0, 10_000_000n);
if (result <= 0) throw new Error(`sd_notify_barrier gave ${result}`);
