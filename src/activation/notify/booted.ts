import { requireBun } from "../bun.ts";

/**
 * Returns whether this machine was booted with systemd, like sd_booted(3): whether
 * /run/systemd/system is there. It says nothing about who started this process.
 */
export function booted(): boolean {
  requireBun();
  // Loaded by the call that needs it: node:fs takes 2 to 4 ms.
  const { existsSync } = process.getBuiltinModule("node:fs");
  return existsSync("/run/systemd/system/");
}
