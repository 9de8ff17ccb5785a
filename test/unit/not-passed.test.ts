import { expect, test } from "bun:test";

import { unitsOf } from "../../src/activation/receive/not-passed.ts";
import { execute } from "../support/daemon.ts";
import "../support/checks.ts";

const SYSTEM = "systemctl";
const USER = "systemctl --user";

test.each([
  ["0::/system.slice/hello.service\n", SYSTEM, "hello.service", "hello.socket"],
  // Delegate= and DelegateSubgroup=, a slice of its own, a machine in a service.
  ["0::/system.slice/hello.service/work\n", SYSTEM, "hello.service", "hello.socket"],
  ["0::/a.slice/a-b.slice/hello.service\n", SYSTEM, "hello.service", "hello.socket"],
  [
    "0::/system.slice/nspawn@m.service/payload/system.slice/a.service\n",
    SYSTEM,
    "a.service",
    "a.socket",
  ],
  ["0::/system.slice/system-web.slice/web@1.service\n", SYSTEM, "web@1.service", "web@1.socket"],
  // An instance for a connection, as systemd numbers them.
  [
    "0::/system.slice/one@0-127.0.0.1:4000-127.0.0.1:5.service\n",
    SYSTEM,
    "one@0-127.0.0.1:4000-127.0.0.1:5.service",
    "one.socket",
  ],
  ["0::/system.slice/_cpu.service\n", SYSTEM, "cpu.service", "cpu.socket"],
  // Controllers of their own hierarchies.
  [
    "12:cpu:/other.service\n1:name=systemd:/system.slice/a.service\n0::/system.slice/a.service\n",
    SYSTEM,
    "a.service",
    "a.socket",
  ],
  ["1:name=systemd:/\n0::/system.slice/a.service\n", SYSTEM, "a.service", "a.socket"],
  [
    "12:cpu:/other.service\n1:name=systemd:/system.slice/a.service\n",
    SYSTEM,
    "a.service",
    "a.socket",
  ],
  [
    "0::/user.slice/user-1.slice/user@1.service/app.slice/a.service\n",
    USER,
    "a.service",
    "a.socket",
  ],
  [
    "0::/user.slice/user-1.slice/user@1.service/app.slice/a.scope\n",
    USER,
    "this service",
    "its socket unit",
  ],
  // A namespace of control groups, and no /proc.
  ["0::/\n", SYSTEM, "this service", "its socket unit"],
  ["", SYSTEM, "this service", "its socket unit"],
])("the units of a process in %j", (groups, systemctl, service, socket) => {
  expect(unitsOf(groups, "socket")).toEqual({ systemctl, service, socket });
});

test("the socket unit of a service for one connection has the name before the @", () => {
  const { service, socket } = unitsOf("0::/system.slice/one@by-hand.service\n", "connection");
  expect([service, socket]).toEqual(["one@by-hand.service", "one.socket"]);
});

test("only SYSTEMD_EXEC_PID that is the process itself tells that systemd has started it", async () => {
  for (const [pid, says] of [
    ["self", / by systemd to .*: .* was changed or stopped .*, run systemctl( --user)? restart /],
    [
      "1",
      /, LISTEN_PID is not set: start it from a socket unit or with systemd-socket-activate\n$/,
    ],
  ] as const) {
    const become = `[ "$SYSTEMD_EXEC_PID" = self ] && export SYSTEMD_EXEC_PID=$$; exec "$@"`;
    const variables = { LISTEN_PID: undefined, LISTEN_FDS: undefined, SYSTEMD_EXEC_PID: pid };
    const module = JSON.stringify(`${import.meta.dir}/../../src/activation/index.ts`);
    const program = `import { exitOnError, requireListenFds } from ${module};
      try { requireListenFds(); } catch (error) { exitOnError(error); }`;
    const args = ["-c", become, "sh", process.execPath, "-e", program];
    await using service = execute("/bin/sh", [], variables, args);
    expect([await service.status(), service.stderr]).toEqual([78, expect.stringMatching(says)]);
  }
});
