/** `make install`, `make uninstall` and the like: their files, and that the services run. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { dirname } from "node:path";
import { until } from "../support/until.ts";
import { cannotRun, Clients, greeting, lacksInside } from "./harness.ts";
import { nothingFailed, SOCKETS, userOf } from "./harness.ts";
import { SERVICES } from "../support/services.ts";
import { CHECKOUT, Machine } from "../support/machine.ts";

const UNITS = "usr/local/lib/systemd/system";
const MANUAL = "usr/local/share/man";
const NAMES = SERVICES.map(({ name }) => name);
const EXECUTABLES = NAMES.map((name) => `usr/local/bin/${name}`);
const INSTALLED = [
  ...EXECUTABLES,
  ...NAMES.map((name) => `${UNITS}/${name}.socket`),
  ...SERVICES.flatMap(({ unit }) => [unit, `${unit}.d/50-hardening.conf`]).map(
    (path) => `${UNITS}/${path}`,
  ),
  ...NAMES.map((name) => `${MANUAL}/man8/${name}.8`),
  `${MANUAL}/man7/socket-service.units.7`,
].toSorted();

setDefaultTimeout(60_000);

describe.skipIf(cannotRun)("installation", () => {
  let machine: Machine;
  beforeAll(async () => void (machine = await Machine.boot()));
  afterAll(() => nothingFailed(machine));

  const make = (...args: string[]) => machine.must("make", "-C", CHECKOUT, ...args);
  const files = async (directory: string) => {
    const found = await machine.must("find", directory, "-type", "f", "-printf", "%P\n");
    return found
      .split("\n")
      .filter((path) => path !== "")
      .toSorted();
  };

  async function greetsThreeTimes(): Promise<void> {
    for (const { port } of SERVICES)
      expect(await greeting(machine, port)).toMatchObject({ served: 1, lost: {} });
  }

  // The executables have 109 MB each. For the places of the files and for failures, 1 MB each is enough.
  describe("of small executables:", () => {
    const dist = `${CHECKOUT}/dist`;
    beforeAll(async () => {
      await machine.must("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", dist);
      for (const name of NAMES)
        await machine.must("sh", "-c", `head -c 1000000 /dev/urandom >${dist}/${name}`);
    });
    afterAll(async () => void (await machine.must("umount", dist)));

    test("make install with DESTDIR writes there and nowhere else", async () => {
      // /tmp is a file system of its own, so it stays writable.
      const script = `mount -o remount,bind,ro / && make -C ${CHECKOUT} install DESTDIR=/tmp/package`;
      const first = await machine.must(
        "unshare",
        "--mount",
        "sh",
        "-c",
        `export CDPATH=. && umask 077 && ${script}`,
      );
      expect(first).not.toContain("changed");
      // No service runs that could be restarted.
      expect(first).not.toContain("try-restart");
      expect(await make("install", "DESTDIR=/tmp/package")).toContain("try-restart");
      expect(await files("/tmp/package")).toEqual(INSTALLED);
      const closed = ["find", "/tmp/package/usr", "-type", "d", "-not", "-perm", "755"];
      expect(await machine.must(...closed)).toBe("");
    });

    test("with PREFIX=/usr/ the units are where systemd looks for that prefix", async () => {
      await make("install", "DESTDIR=/tmp/usr", "PREFIX=/usr/");
      expect(await files("/tmp/usr")).toEqual(INSTALLED.map((path) => path.replace("/local", "")));
      expect(
        await machine.must("cat", "/tmp/usr/usr/lib/systemd/system/socket-service.service"),
      ).toContain("\nExecStart=/usr/bin/socket-service\n");
    });

    test("with BINDIR, UNITDIR and MANDIR each is where it was asked for", async () => {
      const directories = ["BINDIR=/opt/s/bin", "UNITDIR=/etc/systemd/system", "MANDIR=/opt/s/man"];
      await make("install", "DESTDIR=/tmp/dirs", ...directories);
      expect(await files("/tmp/dirs")).toEqual(
        INSTALLED.map((path) =>
          path
            .replace("usr/local/bin", "opt/s/bin")
            .replace(UNITS, "etc/systemd/system")
            .replace(MANUAL, "opt/s/man"),
        ).toSorted(),
      );
      const unit = "/tmp/dirs/etc/systemd/system/socket-service-inet@.service";
      expect(await machine.must("cat", unit)).toContain(
        "\nExecStart=/opt/s/bin/socket-service-inet\n",
      );
      const page = await machine.must("cat", "/tmp/dirs/opt/s/man/man8/socket-service.8");
      expect(page).toContain("\n.It Pa /opt/s/bin/socket-service-inet\n");
    });

    test("a BINDIR that cannot stand in a unit is refused, a relative directory too, and nothing is installed", async () => {
      for (const [variable, directory] of [
        ["BINDIR", "relative/bin"],
        ["BINDIR", "/with space/bin"],
        ["BINDIR", "/50%/bin"],
        ["BINDIR", "/home/someone/bin"],
        ["BINDIR", "/root"],
        ["BINDIR", "/tmp/bin"],
        ["BINDIR", ""],
        ["UNITDIR", "relative/units"],
        ["MANDIR", ""],
      ]) {
        const { status, stderr } = await machine.run(
          ...[
            "make",
            "-C",
            CHECKOUT,
            "install",
            "DESTDIR=/tmp/refused",
            `${variable}=${directory}`,
          ],
        );
        expect(status).not.toBe(0);
        expect(stderr).toMatch(
          RegExp(`^${variable === "BINDIR" ? "BINDIR" : "UNITDIR and"} .*"${directory}"`, "m"),
        );
      }
      expect((await machine.run("ls", "/tmp/refused")).status).not.toBe(0);
    });

    test("a prefix that systemd does not look under is refused at once, and the error names a remedy", async () => {
      const install = ["make", "-C", CHECKOUT, "install", "DESTDIR=/tmp/refused", "PREFIX=/opt/x"];
      // With -B, all is to be built.
      const { status, stdout, stderr } = await machine.run(...install, "-B");
      expect([status, stdout.replace(/^make: .*\n/gm, "")]).toEqual([2, ""]);
      expect(stderr).toContain(
        "PREFIX=/opt/x: set UNITDIR, for example UNITDIR=/etc/systemd/system",
      );
      expect((await machine.run("ls", "/tmp/refused")).status).not.toBe(0);

      await make("install", "DESTDIR=/tmp/prefix", "PREFIX=/opt/x", "UNITDIR=/lib/systemd/system");
      expect((await files("/tmp/prefix"))[0]).toBe(
        "lib/systemd/system/socket-service-accepted.socket",
      );
      await machine.must("rm", "-r", "/tmp/prefix");
    });

    for (const target of ["install-user", "uninstall-user"])
      test(`sudo make ${target} says whose home it would change, and changes nothing`, async () => {
        const sudo = [
          "env",
          "HOME=/tmp/root",
          "SUDO_USER=alice",
          "make",
          "-C",
          CHECKOUT,
          "-B",
          target,
        ];
        await machine.write("/tmp/root/.local/bin/socket-service", "an executable");
        const { status, stdout, stderr } = await machine.run(...sudo);
        expect([status, stdout.replace(/^make: .*\n/gm, "")]).toEqual([2, ""]);
        expect(stderr).toContain(
          "as root this would change /tmp/root: run it as alice, without sudo",
        );
        expect(await files("/tmp/root")).toEqual([".local/bin/socket-service"]);
        const homeless = ["env", "-u", "HOME", "make", "-C", CHECKOUT, target];
        expect((await machine.run(...homeless)).stderr).toContain("HOME is not set");
      });

    /** A `make install` into /tmp/failed, as a shell calls it: it has to fail. Returns the files that it left. */
    async function failed(shell: string, says: RegExp): Promise<string[]> {
      const install = `make -C ${CHECKOUT} install DESTDIR=/tmp/failed`;
      const script = `rm -rf /tmp/failed && mkdir /tmp/failed && ${shell.replace("INSTALL", install)}`;
      const { status, stdout, stderr } = await machine.run("sh", "-c", script);
      expect([status, stdout.includes("systemctl")]).toEqual([2, false]);
      expect(stderr).toMatch(says);
      return await files("/tmp/failed");
    }

    test("on a full disk make install fails, and leaves no unit and no half of a file", async () => {
      const mount = "mount -t tmpfs -o size=1500k tmpfs /tmp/failed";
      const left = await failed(`${mount} && INSTALL`, /No space left on device/);
      await machine.must("umount", "/tmp/failed");
      expect(left).toHaveLength(1);
      expect(EXECUTABLES).toEqual(expect.arrayContaining(left));
    });

    for (const [where, shell, says] of [
      ["above the limit on the size of files", "ulimit -f 500 &&", /File size limit exceeded/],
      ["without permission", "setpriv --reuid=nobody --clear-groups", /Permission denied/],
    ] as const)
      test(`${where} make install fails, and leaves nothing`, async () => {
        expect(await failed(`${shell} INSTALL`, says)).toEqual([]);
      });

    for (const path of EXECUTABLES.flatMap((path) => [path, `${path}.new`]))
      test(`with a directory at ${path} make install fails, and leaves no unit`, async () => {
        const left = await failed(`mkdir -p /tmp/failed/${path} && INSTALL`, /directory/i);
        expect(left.filter((path) => !EXECUTABLES.includes(path))).toEqual([]);
      });

    test("with a directory where a service goes make install fails, and leaves no socket", async () => {
      const path = `${UNITS}/socket-service.service`;
      const left = await failed(`mkdir -p /tmp/failed/${path}/x && INSTALL`, /directory/i);
      expect(left).toEqual(expect.arrayContaining(EXECUTABLES));
      expect(left.filter((path) => /\.(new|socket)$/.test(path))).toEqual([]);
    });

    for (const signal of ["HUP", "INT", "TERM", "KILL"])
      test(`SIG${signal} in the middle of make install, and make uninstall: nothing is left`, async () => {
        // One file is cut off in the middle.
        const cat = `#!/bin/sh
        case $1 in *-inet) echo half; kill -${signal} $PPID;; *) exec /bin/cat "$@";; esac`;
        await machine.write("/tmp/cut/cat", cat);
        await machine.must("chmod", "755", "/tmp/cut/cat");
        const left = await failed('PATH="/tmp/cut:$PATH" INSTALL', /./);
        expect(left.filter((path) => path.endsWith(".new"))).toHaveLength(
          signal === "KILL" ? 1 : 0,
        );
        expect(left).not.toEqual([]);
        await make("uninstall", "DESTDIR=/tmp/failed");
        expect(await files("/tmp/failed")).toEqual([]);
      });

    test("make uninstall removes the files of make install, and no others", async () => {
      const drop = `/tmp/package/${UNITS}/socket-service.service.d/mine.conf`;
      await machine.write(drop, "[Service]\n");
      await make("uninstall", "DESTDIR=/tmp/package");
      expect(await files("/tmp/package")).toEqual([drop.replace("/tmp/package/", "")]);
      const drops = ["find", "/tmp/package", "-name", "*.d"];
      expect(await machine.must(...drops)).toBe(drop.replace("/mine.conf", ""));
    });

    test("make uninstall removes them where no systemd runs, as in a chroot", async () => {
      await make("install");
      // systemctl cannot connect, and there is no /run/systemd/system.
      const script = `mount -t tmpfs tmpfs /run && make -C ${CHECKOUT} uninstall`;
      await machine.must("unshare", "--mount", "sh", "-c", script);
      expect(await machine.must("find", "/usr/local", "-name", "socket-service*")).toBe("");
    });

    test("make uninstall removes them in a chroot, though systemctl says there that all are active", async () => {
      await make("install");
      // Another root with the same folders.
      const script = `mount -t tmpfs tmpfs /mnt && cd / && for path in *; do
          if [ -L $path ] || [ ! -d $path ]; then cp -a $path /mnt; continue; fi
          mkdir /mnt/$path
          [ $path = mnt ] || mount --rbind /$path /mnt/$path
        done
        chroot /mnt make -C ${CHECKOUT} uninstall`;
      await machine.must("unshare", "--mount", "sh", "-c", script);
      expect(await machine.must("find", "/usr/local", "-name", "socket-service*")).toBe("");
    });

    test("make install replaces a link that has the name of its new file, and not the file behind it", async () => {
      await machine.write("/tmp/other", "of another\n");
      const unit = `/tmp/linked/${UNITS}/socket-service.socket`;
      await machine.must("mkdir", "-p", dirname(unit));
      await machine.must("ln", "-s", "/tmp/other", `${unit}.new`);
      await make("install", "DESTDIR=/tmp/linked");
      expect(await machine.must("cat", "/tmp/other")).toBe("of another");
      expect(await machine.must("stat", "--format=%F", unit)).toBe("regular file");
      await machine.must("rm", "-r", "/tmp/linked");
    });

    test("make uninstall fails where it may not remove a file", async () => {
      await make("install", "DESTDIR=/tmp/package");
      const nobody = ["setpriv", "--reuid=nobody", "--clear-groups"];
      const uninstall = ["make", "-C", CHECKOUT, "uninstall", "DESTDIR=/tmp/package"];
      expect((await machine.run(...nobody, ...uninstall)).status).toBe(2);
      await machine.must(...uninstall);
    });
  });

  test("make install, systemctl enable --now, one client each: three greetings", async () => {
    await make("install");
    await machine.systemctl("daemon-reload");
    // Enabling a service enables its socket.
    await machine.systemctl("enable", "socket-service.service");
    await machine.systemctl("is-enabled", "socket-service.socket");
    await machine.systemctl("enable", "--now", ...SOCKETS);
    const wanted = await machine.must("ls", "/etc/systemd/system/sockets.target.wants");
    expect(wanted.split("\n")).toEqual(expect.arrayContaining(SOCKETS));
    await greetsThreeTimes();
  });

  test("the executables are whole and have mode 755, the units 644", async () => {
    for (const { name } of SERVICES) {
      await machine.must("cmp", `/usr/local/bin/${name}`, `${CHECKOUT}/dist/${name}`);
    }
    const paths = INSTALLED.map((path) => `/${path}`);
    const modes = (await machine.must("stat", "--format=%a %U", ...paths)).split("\n");
    expect(modes).toEqual(paths.map((path) => (path.includes("/bin/") ? "755 root" : "644 root")));
  });

  test("systemd-analyze verify finds nothing to say about the units", async () => {
    const units = SERVICES.flatMap(({ name, unit }) => [`${name}.socket`, unit]);
    // With man, that the pages of Documentation= are there too.
    const man = lacksInside("man") ? "--man=no" : "--man=yes";
    const verify = ["systemd-analyze", "--recursive-errors=yes", man, "verify"];
    expect(await machine.run(...verify, ...units.map((unit) => `/${UNITS}/${unit}`))).toEqual({
      status: 0,
      stdout: "",
      stderr: "",
    });
  });

  test("each unit names its service and its manual pages", async () => {
    for (const { name, unit } of SERVICES)
      for (const file of [`${name}.socket`, unit]) {
        const text = await machine.systemctl("cat", file);
        expect(text).toContain(`\nDescription=${name}: `);
        expect(text).toContain(`\nDocumentation=man:${name}(8) man:socket-service.units(7)\n`);
      }
  });

  const pages = ["units.7", "8"].map((page) => `socket-service.${page}`);
  for (const page of pages)
    test.skipIf(lacksInside("mandoc"))(
      `mandoc -T lint has nothing to say about ${page}`,
      async () => {
        const path = `/${MANUAL}/man${page.slice(-1)}/${page}`;
        const { stdout, stderr } = await machine.run("mandoc", "-T", "lint", path);
        // It looks for the pages that this one refers to in a database of its own.
        const others =
          /^mandoc: (\S+ STYLE: referenced manual not found:|outdated mandoc.db) .*\n/gm;
        expect((stdout + stderr).replace(others, "")).toBe("");
      },
    );

  test.skipIf(lacksInside("man"))(
    "man shows each page under each of its names, and warns of nothing",
    async () => {
      const man = ["env", "LC_ALL=C.UTF-8", "MANWIDTH=80", "man", "--warnings"];
      for (const [name, line] of [
        ...SERVICES.map(
          ({ name }) =>
            [name, "socket-service, socket-service-accepted, socket-service-inet"] as const,
        ),
        ["socket-service.units", "socket-service.units"],
      ] as const) {
        const { status, stdout, stderr } = await machine.run(...man, name);
        expect([status, stderr]).toEqual([0, ""]);
        // Debian's groff of 2026 fills lines with spaces, and has a dash twice as long.
        expect(stdout.replaceAll(/\s+/g, " ")).toMatch(new RegExp(` NAME ${line} —+ `));
      }
      const help = await machine.systemctl("help", "socket-service.service");
      expect(help).toContain("--idle-timeout");
    },
  );

  for (const { unit, name } of SERVICES) {
    const most = unit.includes("@") ? 1.5 : 0.5;
    test(`systemd-analyze security gives ${name} an exposure of ${most} at most`, async () => {
      const { stdout } = await machine.run("systemd-analyze", "security", unit.replace("@", "@1"));
      const exposure = Number(/Overall exposure level for .*: ([\d.]+)/.exec(stdout)?.[1]);
      console.log(`${name}: exposure ${exposure}`);
      expect(exposure).toBeLessThanOrEqual(most);
    });
  }

  test("make install replaces running executables, and loses no client meanwhile", async () => {
    // Each connection to the second socket is a start of its executable.
    const clients = [new Clients(machine, "load", 4000, 4), new Clients(machine, "load", 4001, 4)];
    for (let i = 0; i < 3; i += 1) await make("install");
    for (const running of clients) {
      const { begun, served, lost } = await running.finish();
      expect(lost).toEqual({});
      expect(served).toBe(begun);
    }
    const main = await machine.show("socket-service.service", "MainPID");
    // The running one is the one from before, until it is restarted.
    expect(await machine.must("readlink", `/proc/${main}/exe`)).toEndWith(" (deleted)");
  });

  test("upgrading as the README says it restarts the service, and clients are served", async () => {
    const said = await make("install");
    expect(said).toContain(": systemctl daemon-reload\n");
    expect(said).toContain(": systemctl try-restart socket-service.service\n");
    await machine.systemctl("daemon-reload");
    // It may have been idle, and have ended.
    await greeting(machine, 4000);
    const main = () => machine.show("socket-service.service", "MainPID");
    const before = await main();
    await machine.systemctl("try-restart", "socket-service.service");
    expect(await main()).not.toBe(before);
    await greetsThreeTimes();
  });

  const since = (socket: string) => machine.show(socket, "ActiveEnterTimestampMonotonic");

  test("make install says which sockets to stop and start, and the other ports stay open", async () => {
    // The one before had another address.
    const socket = `/${UNITS}/socket-service.socket`;
    await machine.must("sed", "-i", "s/:4000$/:4010/", socket);
    // A service that has changed as well is not named.
    await machine.must("sed", "-i", "s/^After=.*//", `/${UNITS}/socket-service.service`);
    await machine.systemctl("daemon-reload");
    await machine.systemctl("stop", "socket-service.socket");
    await machine.systemctl("start", "socket-service.socket");
    const others = SOCKETS.slice(1);
    const open = await Promise.all(others.map(since));
    await using clients = new Clients(machine, "load", 4001, 4);

    const said = (await make("install")).split("\n");
    const [reload = "", commands = "", enable = ""] = said
      .slice(-4)
      .map((line) => line.split(": ")[1]);
    expect(commands).toBe(
      "systemctl stop socket-service.socket; systemctl start socket-service.socket",
    );
    expect(enable).toBe(`systemctl enable --now ${SOCKETS.toSorted().join(" ")}`);
    for (const command of [reload, commands, enable]) await machine.must("sh", "-c", command);
    expect(await greeting(machine, 4000)).toMatchObject({ served: 1, lost: {} });
    const { begun, served, lost } = await clients.finish();
    expect({ served, lost }).toEqual({ served: begun, lost: {} });
    expect(await Promise.all(others.map(since))).toEqual(open);

    expect(await make("install")).not.toContain("systemctl stop");
  });

  test("make uninstall names the sockets to disable first, and removes nothing before", async () => {
    const uninstall = ["make", "-C", CHECKOUT, "uninstall"];
    const refused = { status: 2, stdout: expect.not.stringContaining("removed") };
    const says = `First: systemctl disable --now`;
    // A socket that listens, and one that is only enabled.
    for (const action of [
      ["disable", "--now", ...SOCKETS.slice(1)],
      ["enable", "--now", SOCKETS[0] ?? ""],
      ["stop", SOCKETS[0] ?? ""],
    ]) {
      await machine.systemctl(...action);
      expect(await machine.run(...uninstall)).toMatchObject({
        ...refused,
        stderr: expect.stringContaining(says),
      });
    }
    await machine.systemctl("disable", ...SOCKETS);
    await machine.systemctl("start", SOCKETS[0] ?? "");
    expect(await machine.run(...uninstall)).toMatchObject(refused);
    await machine.systemctl("enable", "--now", ...SOCKETS);
    // Those of another machine are not asked about.
    await make("uninstall", "DESTDIR=/tmp/package");
  });

  test("removing as the README says it leaves nothing behind", async () => {
    await machine.systemctl("disable", "--now", ...SOCKETS);
    expect(await make("uninstall")).toContain("where the services ran: systemctl daemon-reload\n");
    await machine.systemctl("daemon-reload");
    const found = ["find", "/usr/local", "/etc/systemd", "/run/systemd/system"];
    expect(await machine.must(...found, "-name", "socket-service*")).toBe("");
    // Of a unit that is gone, systemd may remember the name for a while: as "not-found".
    const list = ["systemctl", "list-units", "--all", "--state=loaded", "--no-legend"];
    const units = [...list, "socket-service*"];
    await until("systemd knows none", 10, async () => (await machine.must(...units)) === "");
  });

  const manages = test.skipIf(lacksInside("pam_systemd.so", "dbus.socket"));
  manages("an ordinary user installs and runs all three under the user's own manager", async () => {
    await using user = await userOf(machine, "someone");
    // As with sudo -u someone.
    await user.must("env", "SUDO_USER=root", "make", "-C", CHECKOUT, "install-user");
    expect(await files("/home/someone/.local/bin")).toEqual(NAMES);
    const units = await files("/home/someone/.config/systemd/user");
    expect(units).toHaveLength(6);
    expect(await files("/home/someone/.local/share/man")).toHaveLength(4);
    await user.must("systemctl", "--user", "daemon-reload");
    await user.must("systemctl", "--user", "enable", "--now", ...SOCKETS);
    await greetsThreeTimes();
    const status = await user.must("systemctl", "--user", "status", "socket-service.service");
    expect(status).toContain("Active: active (running)");
    expect(status).toContain('Status: "Socket accepted');
    const uninstall = user.must("make", "-C", CHECKOUT, "uninstall-user");
    await expect(uninstall).rejects.toThrow("First: systemctl --user disable --now");
    // As with sudo -u someone, from a session of another user.
    const elsewhere = ["env", "-u", "XDG_RUNTIME_DIR", "-u", "DBUS_SESSION_BUS_ADDRESS"];
    const unheard = user.must(...elsewhere, "make", "-C", CHECKOUT, "uninstall-user");
    await expect(unheard).rejects.toThrow(
      "systemctl --user cannot tell whether the sockets are in use",
    );
    await user.must("systemctl", "--user", "disable", "--now", ...SOCKETS);
    expect(await machine.must("ss", "-Hltn", "sport >= 4000 and sport <= 4002")).toBe("");
    expect((await machine.run("pidof", "socket-service")).stdout).toBe("");
    await user.must("make", "-C", CHECKOUT, "uninstall-user");
    const left = ["find", "/home/someone", "-name", "socket-service*"];
    expect(await machine.must(...left)).toBe("");
  });
});
