/** A machine of these tests is like a fresh one, whatever the one outside is like, and leaves it alone. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtemp, readdir, readFile, readlink, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { until } from "../support/until.ts";
import { cannotRun, Clients, installed } from "./harness.ts";
import { CHECKOUT, Machine } from "../support/machine.ts";

setDefaultTimeout(60_000);

describe.skipIf(cannotRun)("a machine", () => {
  /** Each process that runs now, as its number and when it started, which are not used again. */
  async function processes(): Promise<Map<number, string>> {
    const all = new Map<number, string>();
    for (const pid of await readdir("/proc")) {
      const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
      // The name, in parentheses, may hold anything. starttime is the 20th field after it.
      const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      if (stat !== "") all.set(Number(pid), `${pid} since ${fields[19]}`);
    }
    return all;
  }

  test("leaves no process, mount, file and control group when it is shut down", async () => {
    const machine = await installed();
    await using clients = new Clients(machine, "silent", 4000, 1);
    await until("there is a connection", 5, async () => (await clients.tally()).served === 1);
    // The machine's init, journal and service, and the client, which is only in its network.
    const namespaces = async (pid: number): Promise<string[]> =>
      Promise.all(["pid", "net"].map((name) => readlink(`/proc/${pid}/ns/${name}`))).catch(
        () => [],
      );
    const its = await namespaces(machine.init);
    const inside: string[] = [];
    for (const [pid, name] of await processes())
      if ((await namespaces(pid)).some((namespace) => its.includes(namespace))) inside.push(name);
    expect(inside.length).toBeGreaterThanOrEqual(4);
    await machine.shutdown();

    const left = [...(await processes()).values()];
    expect(inside.filter((name) => left.includes(name))).toEqual([]);
    expect(await readFile("/proc/self/mountinfo", "utf8")).not.toContain(machine.name);
    const places = [tmpdir(), "/run/systemd/nspawn/propagate"];
    for (const place of places)
      expect(await readdir(place).catch(() => [])).not.toContain(machine.name);
    // Its groups are gone. Other machines may have some.
    const groups = ["find", "/sys/fs/cgroup", "-name", machine.name];
    expect(Bun.spawnSync(groups).stdout.toString()).toBe("");
  });

  /** Commands of a newcomer before `make test`, who installs all of it in every way, and tunes it. */
  const TUNED = String.raw`
    cd ${CHECKOUT}
    edit() { mkdir -p "$1/$2.d" && printf '%s\n' "$3" "$4" > "$1/$2.d/override.conf"; }
    make --silent install >/dev/null
    cp units/*.socket /etc/systemd/system
    edit /usr/local/lib/systemd/system socket-.socket [Socket] ListenStream=4010
    for kind in service socket; do
      edit /etc/systemd/system socket-service.$kind [Unit] Description=Tuned
      edit /etc/systemd/system $kind [Unit] Description=Tuned
    done
    edit /etc/systemd system.conf [Manager] DefaultTimeoutStopSec=1
    systemctl --quiet enable socket-service.socket socket-service-accepted.socket
    ln -sf /dev/null /etc/systemd/system/socket-service-inet.socket
    useradd --create-home --base-dir /var lingering
    user=/var/lingering/.config/systemd/user
    mkdir -p $user/sockets.target.wants /var/lib/systemd/linger
    cp units/socket-service.service units/socket-service.socket $user
    ln -s ../socket-service.socket $user/sockets.target.wants
    touch /var/lib/systemd/linger/lingering
    mkdir -p /tmp/deb/DEBIAN /tmp/deb/usr/lib/systemd/system
    cp units/socket-service.socket /tmp/deb/usr/lib/systemd/system
    printf '%s: %s\n' Package socket-service Version 9 Architecture all Maintainer me Description x \
      > /tmp/deb/DEBIAN/control
    dpkg-deb --build /tmp/deb /tmp/tuned.deb >/dev/null && dpkg --install /tmp/tuned.deb >/dev/null
  `;

  test("has nothing that the administrator outside has installed, tuned or enabled", async () => {
    await using machine = await Machine.boot({ before: TUNED });
    const named = ["(", "-name", "socket-service*", "-o", "-name", "override.conf", ")"];
    expect(await machine.must("find", "/etc", "/usr", "/var/lib", ...named)).toBe("");
    const units = ["list-unit-files", "--no-legend", "socket-*"];
    expect((await machine.run("systemctl", ...units)).stdout).toBe("");
    expect(await machine.systemctl("show")).toMatch(/^DefaultTimeoutStopUSec=1min 30s$/m);
    expect(await machine.show("dbus.socket", "Description")).not.toBe("Tuned");
    expect((await machine.run("dpkg-query", "--show", "socket-service")).status).toBe(1);
    // It starts the managers of lingering users.
    await machine.systemctl("start", "systemd-logind.service");
    expect(await machine.systemctl("list-units", "--no-legend", "user@*")).toBe("");
    expect(await machine.must("ss", "-Hlt")).toBe("");
  });

  test("knows whether bpf(2) is denied", async () => {
    await using denied = await Machine.boot({ options: ["--system-call-filter=~bpf"] });
    expect(await denied.canFilterAddresses()).toBe(false);
  });

  test("that does not come up is given up at its deadline, and the error has its output", async () => {
    const bin = await mkdtemp(join(tmpdir(), "socket-service-"));
    const hangs = "#!/bin/sh\necho Operation not permitted >&2\nexec sleep 600\n";
    await writeFile(join(bin, "systemd-nspawn"), hangs, { mode: 0o755 });
    const ask = `import { Machine } from "${join(import.meta.dir, "../support/machine.ts")}";
      console.log(await Machine.obstacle({ seconds: 1 }));`;
    const began = performance.now();
    const env = { ...process.env, PATH: `${bin}:${process.env["PATH"]}` };
    const asked = Bun.spawn([process.execPath, "-e", ask], { env });
    expect(await asked.stdout.text()).toBe(
      "no systemd can be booted here, not in 1 s: systemd-nspawn has started its init: " +
        "Operation not permitted\n",
    );
    expect(performance.now() - began).toBeLessThan(10_000);
    await rm(bin, { recursive: true });
  });
});
