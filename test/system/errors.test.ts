/** Under a real systemd, the errors of a service name the fault and the repair. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";

import { until } from "../support/until.ts";
import { cannotRun, journal, lacksInside, netcat, userOf } from "./harness.ts";
import { BUN, CHECKOUT, Machine } from "../support/machine.ts";

setDefaultTimeout(60_000);

const SERVICE = `${CHECKOUT}/dist/socket-service`;
const MODULE = JSON.stringify(`${CHECKOUT}/src/activation/index.ts`);

describe.skipIf(cannotRun)("a service", () => {
  let machine: Machine;
  beforeAll(async () => void (machine = await Machine.boot()));
  afterAll(() => machine.shutdown());

  /** Writes a unit into the directory of a manager, as a section after the other. */
  const write = (unit: string, text: string, directory = "/run/systemd/system") =>
    machine.write(`${directory}/${unit}`, text);
  /** Waits for a line of a unit in the journal that matches. */
  const says = (unit: string, pattern: RegExp) =>
    until(`${unit} says ${pattern}`, 10, async () => {
      const lines = (await journal(machine, unit)).join("\n");
      return RegExp(pattern, "m").exec(lines) ?? undefined;
    });
  const receives = (port: number) => netcat(machine, `127.0.0.1 ${port}`);
  const program = async (name: string, source: string) => {
    await machine.write(`/srv/${name}.ts`, source);
    return `${BUN} /srv/${name}.ts`;
  };

  test("whose socket unit was changed while it ran names the command that repairs it", async () => {
    await write("hello.socket", "[Socket]\nListenStream=127.0.0.1:4200\n");
    await write("hello.service", `[Service]\nType=notify\nExecStart=${SERVICE}\n`);
    await machine.systemctl("daemon-reload");
    await machine.systemctl("start", "hello.socket", "hello.service");
    await write("hello.socket.d/90.conf", "[Socket]\nListenStream=\nListenStream=127.0.0.1:4201\n");
    await machine.systemctl("daemon-reload");
    expect((await machine.run("systemctl", "restart", "hello.service")).status).toBe(1);
    expect(await machine.show("hello.service", "ExecMainStatus")).toBe("78");
    const [, command = ""] = await says(
      "hello.service",
      /^3 socket-service: no socket was passed by systemd to hello\.service, because LISTEN_PID is not set: name hello\.socket in Requires= of the service \(also in Sockets=, if the socket has another name\), then run (.*)$/,
    );
    expect(command).toBe("systemctl stop hello.socket && systemctl start hello.socket");
    await machine.must("sh", "-c", command);
    expect(await receives(4201)).toBe("This is a test\n");
    await machine.systemctl("stop", "hello.socket", "hello.service");
  });

  test("whose name has a backslash names it in quotes", async () => {
    const name = "a\\x2db@1";
    await write(`${name}.socket`, "[Socket]\nListenStream=127.0.0.1:4202\n");
    await write(`${name}.service`, `[Service]\nType=notify\nExecStart=${SERVICE}\n`);
    await machine.systemctl("daemon-reload");
    expect((await machine.run("systemctl", "start", `${name}.service`)).status).toBe(1);
    const [, command = ""] = await says(`${name}.service`, /, then run (.*)$/);
    await machine.must("sh", "-c", command);
    expect(await receives(4202)).toBe("This is a test\n");
    await machine.systemctl("stop", `${name}.socket`, `${name}.service`);
  });

  test("for one connection that was started by hand says how a client starts it", async () => {
    await write("one.socket", "[Socket]\nListenStream=127.0.0.1:4203\nAccept=yes\n");
    await write("one@.service", `[Service]\nExecStart=${SERVICE}-accepted\n`);
    await machine.systemctl("daemon-reload");
    await machine.run("systemctl", "start", "one@by-hand.service");
    const [, command = ""] = await says(
      "one@by-hand.service",
      /^3 socket-service-accepted: no connection was passed by systemd to one@by-hand\.service, because LISTEN_PID is not set: do not start the service itself, but run (.*) and let a client connect$/,
    );
    await machine.must("sh", "-c", command);
    expect(await receives(4203)).toBe("This socket was already accepted\n");
    await machine.systemctl("stop", "one.socket");
  });

  test("that picks sockets by name says the same, and an uncaught error is one line", async () => {
    const start = await program(
      "picks",
      `import { exitOnError, listenFds, pick } from ${MODULE};
      process.on("uncaughtException", exitOnError);
      pick(listenFds(), { http: "one", admin: "optional" });`,
    );
    await write("picks.service", `[Service]\nExecStart=${start}\n`);
    await machine.systemctl("daemon-reload");
    await machine.run("systemctl", "start", "picks.service");
    await says(
      "picks.service",
      /^3 no socket was passed by systemd to picks\.service, .* run systemctl stop picks\.socket && systemctl start picks\.socket$/,
    );
    await machine.becomes("picks.service", "ActiveState", "failed");
    expect(await machine.show("picks.service", "ExecMainStatus")).toBe("78");
    const lines = await journal(machine, "picks.service");
    expect(lines.filter((line) => /^\d +at |^\d \d+ \| /.test(line))).toEqual([]);
  });

  test("names no command of systemd if a person starts it, from a service's shell too", async () => {
    const { status, stderr } = await machine.run(SERVICE);
    expect([status, stderr]).toEqual([
      78,
      "socket-service: no socket was passed, because LISTEN_PID is not set: start the program from a socket unit or with systemd-socket-activate\n",
    ]);
    await write("shell.service", `[Service]\nExecStart=/bin/sh -c '${SERVICE}; :'\n`);
    await machine.systemctl("daemon-reload");
    await machine.run("systemctl", "start", "shell.service");
    await says(
      "shell.service",
      /LISTEN_PID is not set: start the program from a socket unit or with systemd-/,
    );
  });

  test.skipIf(lacksInside("pam_systemd.so", "dbus.socket"))(
    "of a user names systemctl --user",
    async () => {
      await using user = await userOf(machine, "user-of-hello");
      const directory = "/home/user-of-hello/.config/systemd/user";
      await write("hello.service", `[Service]\nType=notify\nExecStart=${SERVICE}\n`, directory);
      expect((await user.run("systemctl", "--user", "start", "hello.service")).status).toBe(1);
      const names =
        /no socket was passed by systemd to hello\.service, because LISTEN_PID is not set: .*&& systemctl --user start hello\.socket$/m;
      await until("the journal has it", 10, async () => {
        const entries = await machine.must("journalctl", "--output=cat");
        return names.test(entries);
      });
    },
  );

  test("names the limit or the sandbox that denies a call", async () => {
    await write("denied.socket", "[Socket]\nListenStream=127.0.0.1:4204\n");
    for (const [setting, remedy] of [
      ["RestrictAddressFamilies=AF_INET", /allow AF_UNIX \(RestrictAddressFamilies=\)$/],
      ["SystemCallErrorNumber=EPERM\nSystemCallFilter=~bind", /allow bind \(SystemCallFilter=\)$/],
      ["LimitNOFILE=8", /raise LimitNOFILE= \(ulimit -n\)$/],
      ["LimitAS=1G", /raise LimitAS= \(ulimit -v\) from 1074 MB to 4000 MB or more$/],
      ["MemoryDenyWriteExecute=yes", /allow memory .* \(MemoryDenyWriteExecute=no\)$/],
    ] as const) {
      await write("denied.service", `[Service]\nType=notify\nExecStart=${SERVICE}\n${setting}\n`);
      await machine.systemctl("daemon-reload");
      await machine.systemctl("start", "denied.socket");
      expect((await machine.run("systemctl", "start", "denied.service")).status).toBe(1);
      expect(await machine.show("denied.service", "ExecMainStatus")).toBe("71");
      await says("denied.service", RegExp(`^3 socket-service: .*: ${remedy.source}`));
    }
    await machine.systemctl("stop", "denied.socket");
  });

  test("that may not use AF_UNIX serves a TCP socket, and the other calls say what to allow", async () => {
    const start = await program(
      "inet",
      `import { listen, notify, requireListenFds, serve } from ${MODULE};
      const [tcp, other, unix] = requireListenFds().map(({ fd }) => fd);
      const refused = (call) => { try { call(); } catch (error) { console.error(error.message); } };
      refused(() => listen({ fd: other, socket: { data() {} } }));
      refused(() => serve({ fd: unix, fetch: () => new Response() }));
      console.error(notify({ ready: true }));
      serve({ fd: tcp, fetch: () => new Response("Hello") });`,
    );
    const listens = ["127.0.0.1:4208", "127.0.0.1:4209", "/run/inet.sock"];
    const socket = listens.map((address) => `ListenStream=${address}\n`).join("");
    await write("inet.socket", `[Socket]\n${socket}`);
    const settings = "NotifyAccess=all\nRestrictAddressFamilies=AF_INET\n";
    await write("inet.service", `[Service]\nExecStart=${start}\n${settings}`);
    await machine.systemctl("daemon-reload");
    await machine.systemctl("start", "inet.socket");
    expect(await machine.must("curl", "--silent", "http://127.0.0.1:4208")).toBe("Hello");
    const said = (await journal(machine, "inet.service")).join("\n");
    expect(said.match(/allow AF_UNIX/g)).toHaveLength(3);
    expect(said).toMatch(/ false$/m);
    await machine.systemctl("stop", "inet.socket", "inet.service");
  });

  describe("with StandardInput=socket and Accept=no finds the socket with passedFd:", () => {
    const SERVES = `serve({ fd: passedFd(), port: 1, fetch: () => new Response("Hello\\n") });`;
    const ECHOES = `await udpSocket({
      fd: passedFd(),
      socket: { data: (socket, data, port, address) => void socket.send(data, port, address) },
    });`;
    const start = async (socket: string, source: string) => {
      const importing = `import { passedFd, requireListenFds, serve, udpSocket } from ${MODULE};`;
      const command = await program("stdin", `${importing}\n${source}`);
      const standard = "StandardInput=socket\nStandardOutput=journal\nStandardError=journal";
      await write("stdin.socket", `[Socket]\n${socket}\n`);
      await write("stdin.service", `[Service]\nExecStart=${command}\n${standard}\n`);
      await machine.systemctl("daemon-reload");
      await machine.systemctl("start", "stdin.socket");
    };
    const stop = () => machine.systemctl("stop", "stdin.socket", "stdin.service");

    test("one that listens", async () => {
      await start("ListenStream=127.0.0.1:4205", SERVES);
      const client = machine.client(join(import.meta.dir, "../support/http.ts"), "4205", "20", "4");
      expect(JSON.parse(await client.stdout.text())).toMatchObject({ lost: {}, last: "Hello\n" });
      await stop();
    });

    test("one for datagrams", async () => {
      await start("ListenDatagram=127.0.0.1:4206", ECHOES);
      expect(await netcat(machine, "-u 127.0.0.1 4206", "hello")).toBe("hello");
      await stop();
    });

    test("a program that needs LISTEN_FDS says which setting is at fault", async () => {
      await start("ListenStream=127.0.0.1:4207", "requireListenFds();");
      await machine.systemctl("start", "stdin.service");
      await says(
        "stdin.service",
        /because LISTEN_PID is not set: remove StandardInput=socket, which passes the socket /,
      );
      await stop();
    });
  });
});
