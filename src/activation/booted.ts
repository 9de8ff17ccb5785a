/**
 * Whether this machine was booted with systemd, as sd_booted(3): whether /run/systemd/system is
 * there. Says nothing about who started this process.
 */
export function booted(): boolean {
  const { existsSync } = process.getBuiltinModule("node:fs");
  return existsSync("/run/systemd/system/");
}
