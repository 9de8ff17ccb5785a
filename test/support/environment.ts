import { tmpdir } from "node:os";

/** Variables of a service manager, of which the tests have their own, and of a terminal with colors. */
const OTHERS = /^(LISTEN_|NOTIFY_SOCKET$|WATCHDOG_|JOURNAL_STREAM$|SYSTEMD_EXEC_PID$|FORCE_COLOR$)/;

/** The environment of this process as the tests need it. */
export function testEnvironment(): NodeJS.ProcessEnv {
  const environment = { ...process.env };
  const names = Object.keys(environment);
  for (const name of names) if (OTHERS.test(name)) delete environment[name];
  // The servers of the tests are on the loopback, where no proxy reaches them.
  const hasProxy = names.some((name) => /^https?_proxy$/i.test(name));
  for (const name of ["no_proxy", "NO_PROXY"])
    if (hasProxy && !environment[name]?.includes("127.0.0.1"))
      environment[name] = [environment[name] ?? [], "localhost,127.0.0.1,::1,[::1]"].flat().join();
  // The path of a socket has 107 bytes at most, of which the tests need half.
  if (tmpdir().length > 50) environment["TMPDIR"] = "/tmp";
  return environment;
}
