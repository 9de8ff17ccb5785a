/** What the Debian package of `make deb` does on a machine: with dpkg, apt and a booted systemd. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { rmSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { version } from "../../package.json";
import { scratch } from "../support/daemon.ts";
import { lacks } from "../support/needs.ts";
import { must } from "../support/project.ts";
import { until } from "../support/until.ts";
import { cannotRun, Clients, greeting, nothingFailed, SOCKETS } from "./harness.ts";
import { SERVICES } from "../support/services.ts";
import { CHECKOUT, Machine, ROOT } from "../support/machine.ts";

const DIST = resolve(import.meta.dir, "../../dist");
const VERSION = version.replaceAll("-", "~");
const arch = process.arch === "x64" ? "amd64" : "arm64";
const built = `socket-service_${VERSION}_${arch}.deb`;
const SERVICE = "socket-service.service";
const UNIT = `/usr/lib/systemd/system/${SERVICE}`;
const DROP_IN = `/etc/systemd/system/${SERVICE}.d/override.conf`;

setDefaultTimeout(180_000);

/** Runs a command on this machine: its standard output. */
const here = (...command: string[]) => must(command, { cwd: DIST });

describe.skipIf(cannotRun || lacks("dh", "dpkg-parsechangelog", "xz"))("the package", () => {
  let machine: Machine;
  const newer = "newer.deb";
  const changed = "changed.deb";
  /** This machine's lintian, whatever the root is: once is enough. It runs for ten seconds, beside the tests. */
  let lintian: Bun.Subprocess<"ignore", "pipe", "pipe"> | undefined;
  const lacksLintian = lacks("lintian");
  beforeAll(async () => {
    // By an ordinary user, from a copy of what it is made of, unless it is up to date.
    const parts =
      "Makefile package.json bun.lock LICENSE src units test/setup.sh node_modules dist/socket-service*[a-z]";
    const deb = `set -e; t=$(mktemp -d) && trap 'rm -rf $t' EXIT && mkdir "$t/a clone" && cd .. &&
      cp -a --parents ${parts} "$t/a clone" && chown -R nobody $t && cd "$t/a clone" &&
      mv dist ../disk && ln -s ../disk dist && setpriv --reuid=nobody --clear-groups make --silent SETUP=no deb &&
      cp dist/*.deb $OLDPWD/dist`;
    here("make", "--silent", "-C", "..");
    here("sh", "-c", deb);
    if (ROOT === "/" && !lacksLintian)
      // The check that is left out takes as long as all others. It finds no error and no warning.
      lintian = Bun.spawn(
        ["lintian", "--fail-on=error,warning", "--dont-check-part=binaries/spelling", built],
        { cwd: DIST, stdin: "ignore", stdout: "pipe", stderr: "pipe" },
      );
    // The same with a higher version, and one whose units have other addresses and another option. Not
    // compressed, they are packed and unpacked sooner.
    const edit = `cd p/usr/lib/systemd/system && sed -i 's/:4000$/:4010/' socket-service.socket &&
      sed -i 's/:4002$/:4012/' socket-service-inet.socket &&
      sed -i 's/^\\[Socket\\]$/&\\nBacklog=77/' socket-service-accepted.socket && cd $t`;
    const pack = (version: string, name: string) =>
      `sed -i 's/^Version: .*/Version: ${version}/' p/DEBIAN/control &&
      dpkg-deb --root-owner-group -Znone -b p ${join(DIST, name)}`;
    const others = `set -e; t=$(mktemp -d) && trap 'rm -r $t' EXIT && cd $t &&
      dpkg-deb -R ${join(DIST, built)} p && ${pack(`${VERSION}+1`, newer)} && ${edit} && ${pack(`${VERSION}+2`, changed)}`;
    here("sh", "-c", others);
    machine = await Machine.boot();
    // A container's image may have one, which keeps packages from starting anything.
    await machine.must("rm", "-f", "/usr/sbin/policy-rc.d");
    // So that man-db reads not all pages again after each of the installations: 20 s and more.
    await machine.must("rm", "-f", "/var/lib/man-db/auto-update");
    // Nothing is installed from elsewhere, and apt would read all lists for each command.
    await machine.must("find", "/var/lib/apt/lists", "-type", "f", "-delete");
  });
  afterAll(async () => {
    lintian?.kill();
    for (const name of [newer, changed]) rmSync(join(DIST, name), { force: true });
    await nothingFailed(machine);
  });

  const apt = (...args: string[]) =>
    machine.must("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--yes", "-qq", ...args);
  const install = (name: string, ...options: string[]) =>
    apt("install", ...options, `${CHECKOUT}/dist/${name}`);

  /** What a package leaves traces in, and the units that systemd knows. */
  async function left(): Promise<string[]> {
    const found = await machine.must("find", "/etc", "/usr/bin", "/usr/lib", "/usr/share");
    const state = await machine.must("find", "/var/lib", "-name", "*socket-service*");
    const units = await machine.must("systemctl", "list-unit-files", "--no-legend", "--full");
    return [found, state, units].flatMap((lines) => lines.split("\n").map((line) => line.trim()));
  }
  let before: string[];

  const enteredAt = (sockets: readonly string[]) =>
    Promise.all(sockets.map((socket) => machine.show(socket, "ActiveEnterTimestampMonotonic")));

  async function greetsThreeTimes(): Promise<void> {
    for (const { port } of SERVICES)
      expect(await greeting(machine, port)).toMatchObject({ served: 1, lost: {} });
  }

  test("has 60 MB at most, the version of package.json, and needs libc and a tested systemd", () => {
    expect(Bun.file(join(DIST, built)).size).toBeLessThan(60e6);
    expect(here("dpkg-deb", "--field", built, "Version").trim()).toBe(VERSION);
    const needs = here("dpkg-deb", "--field", built, "Depends").trim();
    expect(needs).toBe("libc6 (>= 2.17), systemd (>= 252)");
  });

  test("without git, its files have the date of package.json, so that two builds are the same", () => {
    using copy = scratch();
    const script = `set -e
      cp -r --parents Makefile package.json bun.lock LICENSE units ${copy.path}
      cd ${copy.path}
      mkdir src dist
      ln -s ${dirname(DIST)}/node_modules .
      for name in ${SERVICES.map(({ name }) => name).join(" ")}; do install /bin/true dist/$name; done
      touch --date=@1000000000 package.json
      units/debian/build.sh ${VERSION} ${arch}`;
    must(["sh", "-c", script]);
    const list = ["dpkg-deb", "--contents", join(copy.path, "dist", built)];
    const files = must(list, { env: { TZ: "UTC" } })
      .trimEnd()
      .split("\n");
    expect(files.length).toBeGreaterThan(20);
    expect(files.filter((line) => !line.includes(" 2001-09-09 01:46 "))).toEqual([]);
  });

  test("apt-get install, and with no further command three greetings", async () => {
    before = await left();
    await install(built);
    await greetsThreeTimes();
    for (const socket of SOCKETS)
      expect(await machine.must("systemctl", "is-enabled", socket)).toBe("enabled");
    expect(UNIT).toEndWith(await machine.show(SERVICE, "FragmentPath"));
    for (const { name } of SERVICES)
      await machine.must("cmp", `/usr/bin/${name}`, `${CHECKOUT}/dist/${name}`);
  });

  test.skipIf(lacks("man"))("man socket-service and systemctl help show the page", async () => {
    for (const command of [
      ["man", "socket-service"],
      ["systemctl", "help", SERVICE],
    ])
      expect(await machine.must(...command)).toContain("--idle-timeout");
  });

  test("an upgrade under a load of 64 clients restarts the service, and loses none", async () => {
    // With pauses, so that they leave the processors to dpkg.
    await using all = new Clients(machine, "pulse", 4000, 64, 20);
    await using each = new Clients(machine, "pulse", 4001, 4, 100);
    const goesOn = async () => {
      const { begun } = await all.tally();
      await until("the load goes on", 20, async () => (await all.tally()).begun > begun + 200);
    };
    await goesOn();
    const main = await machine.show(SERVICE, "MainPID");
    const since = await enteredAt(SOCKETS);
    await install(newer);
    await goesOn();
    for (const clients of [all, each]) {
      const { begun, served, lost } = await clients.finish();
      console.log(`an upgrade under ${begun} connections`);
      expect(lost).toEqual({});
      expect(served).toBe(begun);
    }
    const version = ["dpkg-query", "--show", "--showformat=${Version}", "socket-service"];
    expect(await machine.must(...version)).toEndWith("+1");
    const next = await machine.show(SERVICE, "MainPID");
    expect(next).not.toBe(main);
    expect(await machine.must("readlink", `/proc/${next}/exe`)).toBe("/usr/bin/socket-service");
    expect(await enteredAt(SOCKETS)).toEqual(since);
  });

  for (const [name, from, to] of [
    [changed, 4000, 4010],
    [newer, 4010, 4000],
  ] as const)
    test(`an upgrade from port ${from} to ${to} opens that, and the other ports stay open`, async () => {
      const answer = (port: number) =>
        machine.must("sh", "-c", `nc -w 5 127.0.0.1 ${port} </dev/null`);
      const since = () => machine.show("socket-service-accepted.socket", "ActiveEnterTimestamp");
      // The service may run or not.
      if (to === 4000) await answer(from);
      // One is started and not enabled, one stopped.
      await machine.must("systemctl", "disable", "socket-service.socket");
      await machine.must("systemctl", "disable", "--now", "socket-service-inet.socket");
      const before = await since();
      await using clients = new Clients(machine, "pulse", 4001, 2, 100);
      await install(name, "--allow-downgrades");
      expect(await answer(to)).toBe("This is a test");
      expect(await machine.must("ss", "-Hltn", `sport = ${from}`)).toBe("");
      expect(await machine.show("socket-service-inet.socket", "ActiveState")).toBe("inactive");
      const { begun, served, lost } = await clients.finish();
      console.log(`an upgrade under ${begun} connections`);
      expect({ served, lost }).toEqual({ served: begun, lost: {} });
      // An option is no reason to close a port.
      const backlog = await machine.show("socket-service-accepted.socket", "Backlog");
      expect([backlog === "77", await since()]).toEqual([to === 4010, before]);
      expect((await machine.run("ls", "/run/socket-service.before")).status).not.toBe(0);
      await machine.must("systemctl", "enable", "--now", ...SOCKETS);
    });

  test("units in /usr/local hide those of the package", async () => {
    const local = `/usr/local/lib/systemd/system/${SERVICE}`;
    await machine.must("install", "-D", "-m", "644", UNIT, local);
    await machine.must("systemctl", "daemon-reload");
    expect(await machine.show(SERVICE, "FragmentPath")).toBe(local);
    await machine.must("rm", local);
    await machine.must("systemctl", "daemon-reload");
  });

  test("a reinstallation restores a unit, and leaves a drop-in and a disabled socket", async () => {
    await machine.write(DROP_IN, "[Service]\nNice=5\n");
    await machine.must("sed", "-i", "s/^Description=.*/Description=Changed/", UNIT);
    await machine.must("systemctl", "disable", "--now", "socket-service-inet.socket");
    await machine.must("systemctl", "daemon-reload");
    expect(await machine.show(SERVICE, "Description")).toBe("Changed");
    await install(newer, "--reinstall");
    expect(await machine.show(SERVICE, "Description")).toStartWith("socket-service: ");
    expect(await machine.show(SERVICE, "Nice")).toBe("5");
    expect(await machine.show("socket-service-inet.socket", "ActiveState")).toBe("inactive");
    await machine.must("systemctl", "enable", "--now", "socket-service-inet.socket");
    await greetsThreeTimes();
    await machine.must("rm", "-r", dirname(DROP_IN));
  });

  test("an upgrade where no systemd runs asks none, as in the making of an image", async () => {
    const script = "/var/lib/dpkg/info/socket-service";
    const upgrade = `mount -t tmpfs tmpfs /run && ${script}.preinst upgrade && ${script}.postinst configure && ls /run`;
    expect(await machine.must("unshare", "--mount", "sh", "-c", upgrade)).toBe("");
  });

  test("apt-get remove closes the ports, and purge leaves nothing", async () => {
    // A client that comes meanwhile must not start the service again.
    await using _ = new Clients(machine, "pulse", 4000, 64, 100);
    await apt("remove", "socket-service");
    expect(await machine.must("ss", "-Hltn", "sport >= 4000 and sport <= 4002")).toBe("");
    expect((await machine.run("pidof", "socket-service")).stdout).toBe("");
    await apt("purge", "socket-service");
    const [then, now] = [new Set(before), new Set(await left())];
    expect([...now].filter((file) => !then.has(file))).toEqual([]);
    expect([...then].filter((file) => !now.has(file))).toEqual([]);
  });

  if (ROOT === "/")
    test.skipIf(lacksLintian)("lintian finds neither an error nor a warning", async () => {
      const said = [lintian?.stdout.text(), lintian?.stderr.text(), lintian?.exited];
      const [stdout, stderr, status] = await Promise.all(said);
      expect([stdout, status, status === 0 ? "" : stderr]).toEqual(["", 0, ""]);
    });
});
