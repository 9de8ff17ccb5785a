import { afterEach, describe, expect, spyOn, test } from "bun:test";
import fs from "node:fs";

import { notPassed, stdinSocket, unitsOf } from "../../src/activation/receive/not-passed.ts";
import { errorText } from "../support/checks.ts";
import { AF_INET, asStdin, close, listening } from "../support/sockets.ts";

const SYSTEM = "systemctl";
const USER = "systemctl --user";
const A = [SYSTEM, "a.service", "a.socket"] as const;
const INSTANCE = "one@0-127.0.0.1:4000-127.0.0.1:5.service";
const CONTROLLERS = "12:cpu:/other.service\n1:name=systemd:/system.slice/a.service\n";
const MANAGER = "/user.slice/user-1.slice/user@1.service/app.slice";

test.each([
  ["0::/system.slice/hello.service\n", SYSTEM, "hello.service", "hello.socket"],
  // Delegate= and DelegateSubgroup=, a slice of its own, a machine in a service.
  ["0::/system.slice/hello.service/work\n", SYSTEM, "hello.service", "hello.socket"],
  ["0::/a.slice/a-b.slice/hello.service\n", SYSTEM, "hello.service", "hello.socket"],
  ["0::/system.slice/nspawn@m.service/payload/system.slice/a.service\n", ...A],
  ["0::/system.slice/system-web.slice/web@1.service\n", SYSTEM, "web@1.service", "web@1.socket"],
  // An instance for a connection, as systemd numbers them.
  [`0::/system.slice/${INSTANCE}\n`, SYSTEM, INSTANCE, "one.socket"],
  ["0::/system.slice/_cpu.service\n", SYSTEM, "cpu.service", "cpu.socket"],
  // Controllers of their own hierarchies.
  [`${CONTROLLERS}0::/system.slice/a.service\n`, ...A],
  ["1:name=systemd:/\n0::/system.slice/a.service\n", ...A],
  [CONTROLLERS, ...A],
  [`0::${MANAGER}/a.service\n`, USER, "a.service", "a.socket"],
  [`0::${MANAGER}/a.scope\n`, USER, "this service", "its socket unit"],
  // A namespace of control groups, and no /proc.
  ["0::/\n", SYSTEM, "this service", "its socket unit"],
  ["", SYSTEM, "this service", "its socket unit"],
] as const)("the units of a process in %j", (groups, systemctl, service, socket) => {
  expect(unitsOf(groups, "socket")).toEqual({ systemctl, service, socket });
});

test("the socket unit of a service for one connection has the name before the @", () => {
  const { service, socket } = unitsOf("0::/system.slice/one@by-hand.service\n", "connection");
  expect([service, socket]).toEqual(["one@by-hand.service", "one.socket"]);
});

describe("an error for a program that was passed nothing", () => {
  const reason = "LISTEN_PID is not set";
  afterEach(() => void delete process.env["SYSTEMD_EXEC_PID"]);

  test("says to start it from a socket unit, unless systemd itself has started it", () => {
    // A child of a service inherits the variable, which is its parent's then.
    for (const pid of [undefined, "1"]) {
      process.env["SYSTEMD_EXEC_PID"] = pid;
      expect(errorText(notPassed({ reason }, "socket"))).toMatch(
        /^78: .*is not set: start the program from a socket unit or with systemd-socket-activate$/,
      );
      expect(errorText(notPassed({ reason }, "connection"))).toMatch(
        /^78: .*: start the program from a socket unit with Accept=yes or with systemd-socket-activate -/,
      );
    }
  });

  test("names the unit to restart if systemd has started it", () => {
    process.env["SYSTEMD_EXEC_PID"] = String(process.pid);
    expect(errorText(notPassed({ reason }, "socket"))).toMatch(
      /^78: .* by systemd to .*: name .* in Requires= .*, then run systemctl( --user)? stop .* start /,
    );
    expect(errorText(notPassed({ reason }, "connection"))).toMatch(
      /^78: .* by systemd to .*: do not start the service itself, but run .* and let a client connect$/,
    );
    using read = spyOn(fs, "readFileSync");
    // A shell would take the backslash for its own.
    read.mockReturnValue("0::/system.slice/a\\x2db.service\n");
    expect(errorText(notPassed({ reason }, "socket"))).toEndWith(
      "systemctl stop 'a\\x2db.socket' && systemctl start 'a\\x2db.socket'",
    );
    // Without /proc it knows no name.
    read.mockImplementation(() => {
      throw new Error("there is no /proc");
    });
    expect(errorText(notPassed({ reason }, "socket"))).toMatch(
      /^78: .* to this service, .*: name its socket unit in .*, then run systemctl stop its .* && systemctl start its /,
    );
  });

  test("gives a remedy that the reason implies", () => {
    expect(notPassed({ reason, remedy: "set it" }, "socket").message).toBe(
      `no socket was passed, because ${reason}: set it`,
    );
  });

  test("says that a socket is standard input", () => {
    const passed = listening(AF_INET, 5);
    using _ = asStdin(passed);
    expect(stdinSocket()).toMatchObject({ kind: "socket", family: "IPv4", listening: true });
    expect(errorText(notPassed({ reason }, "socket"))).toMatch(
      /^78: .*: remove StandardInput=socket, which passes the socket as standard input instead of descriptor 3$/,
    );
    close(passed);
  });
});
