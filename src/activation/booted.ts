import { requireBun } from "./runtime.ts";

/**
 * Whether this machine was booted with systemd, as sd_booted(3): whether /run/systemd/system is
 * there. Says nothing about who started this process.
 */
export function booted(): boolean {
  requireBun();
  // Loaded by the call that needs it: node:fs takes 2 to 4 ms.
  const { existsSync } = process.getBuiltinModule("node:fs");
  return existsSync("/run/systemd/system/");
}
