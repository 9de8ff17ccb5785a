/**
 * A real systemd for a test file: a container booted by systemd-nspawn on this machine's own files,
 * or on those of another root (`make test ROOT=DIR`). What is written in it is gone when it ends, and
 * it has a network of its own, so that the units' fixed ports are free. It boots in about a second.
 *
 *     const machine = await Machine.boot();
 *     await machine.must("make", "-C", CHECKOUT, "install");
 *     await machine.must("systemctl", "start", "socket-service.socket");
 *     const client = machine.client(join(import.meta.dir, "client.ts"), "once", "4000", "1");
 *     await machine.shutdown();
 */
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, readlink, rmdir, unlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";

import { build } from "./build.ts";
import { lacks } from "./needs.ts";
import { until } from "./until.ts";

/** The programs that are needed outside and inside. */
const PROGRAMS = "systemd-nspawn nsenter unshare setpriv mount ip ss /bin/kill".split(" ");

/**
 * Seconds in which a machine has to be up. With the 25 seconds after which systemctl gives up, that is
 * less than the tests' hooks have.
 */
const BOOT = 30;

const DIES_WITH_US = ["setpriv", "--pdeathsig"];

/** The root whose files machines have: that of `make test ROOT=DIR`, or this machine's own. */
export const ROOT = process.env["ROOT"] || "/";

/**
 * Becomes a machine's init, after $1: removes what was added to Debian's own files, so that no unit,
 * drop-in or executable of the machine outside changes a test. All of it is in the overlay.
 */
const INIT = String.raw`set -e
  eval "$1"
  if [ -e /var/lib/dpkg/info/socket-service.list ]; then
    dpkg --purge --no-triggers socket-service >/dev/null
  fi
  # Links there are mostly Debian's own: dbus.service may be one.
  find /etc/systemd \( -type f -o -name 'socket-service*' \) -delete
  rm -rf /usr/local/lib/systemd
  find /usr/local/bin /usr/local/man /usr/local/share/man/ -name 'socket-service*' -delete
  # The manager of a user who lingers has units of its own.
  rm -rf /var/lib/systemd/linger
  unset PWD
  # basic.target has sockets, logins by systemctl and users' managers, and none of the services that
  # this machine happens to have.
  exec /lib/systemd/systemd systemd.unit=basic.target`;

/** Where a machine has this checkout, read-only. */
export const CHECKOUT = "/srv/socket-service";

/** The bun that runs these tests, as a machine has it. */
export const BUN = `${CHECKOUT}/node_modules/${process.execPath.split("/node_modules/").pop()}`;

/** Has the programs in /srv/programs find this checkout as `socket-service`. */
export async function linkModule(machine: Machine): Promise<void> {
  await machine.must("install", "-d", "/srv/programs/node_modules");
  await machine.must("ln", "-sfn", CHECKOUT, "/srv/programs/node_modules/socket-service");
}

/** The options of a boot. */
export interface Boot {
  /** In which it has to be up. */
  readonly seconds?: number;
  /** The directory that it has its files from. */
  readonly files?: string;
  /** Commands of a shell that change these files first, as an administrator would. */
  readonly before?: string;
  /** More options of systemd-nspawn. */
  readonly options?: readonly string[];
}

export interface Output {
  status: number;
  stdout: string;
  stderr: string;
}

export class Machine implements AsyncDisposable {
  readonly #nspawn: Bun.Subprocess;
  /** The machine's init, by its number outside. */
  readonly init: number;
  readonly #directory: string;
  /** The version of its systemd, such as 257. */
  systemd = 0;
  /** The processes that were started in the machine and have not ended. */
  readonly #running = new Set<Bun.Subprocess>();

  private constructor(nspawn: Bun.Subprocess, init: number, directory: string) {
    this.#nspawn = nspawn;
    this.init = init;
    this.#directory = directory;
  }

  /** A name that no other machine has: all that belongs to this one outside bears it. */
  get name(): string {
    return basename(this.#directory);
  }

  /**
   * Why no machine can be booted here, or undefined if one can: finds out by booting one, which `look`
   * may look at.
   */
  static async obstacle(
    { seconds = 20, ...boot }: Boot = {},
    look: (machine: Machine) => Promise<void> = async () => {},
  ): Promise<string | undefined> {
    if (process.platform !== "linux") return "Linux is needed";
    if (process.geteuid?.() !== 0) return "it boots a systemd, for which root is needed";
    if (lacks(...PROGRAMS)) return "it boots a systemd, for which a program is missing";
    try {
      await using machine = await Machine.boot({ seconds, ...boot });
      await look(machine);
      return undefined;
    } catch (error) {
      return error instanceof Error ? error.message : String(error);
    }
  }

  /**
   * Returns when systemd says that it is up, whether or not all of this machine's own units are, and
   * throws if that takes longer than `seconds`.
   */
  static async boot(boot: Boot = {}): Promise<Machine> {
    const { seconds = BOOT, files = ROOT, before = ":", options = [] } = boot;
    // In the machine the checkout is read-only.
    build();
    const deadline = performance.now() + 1000 * seconds;
    const left = () => (deadline - performance.now()) / 1000;
    const directory = await mkdtemp(join(tmpdir(), "machine-"));
    const console = Bun.file(join(directory, "console"));
    await Bun.write(console, "");
    const root = join(directory, "root");
    await mkdir(root);
    const name = basename(directory);
    const [group] = await groups(name);
    // The bind mount is in a mount namespace of its own and so goes with it.
    const script =
      'mkdir "$1" && echo $$ > "$1/cgroup.procs" && mount --bind "$2" "$3" && shift 3 && exec "$@"';
    const apart = [...DIES_WITH_US, "TERM", "unshare", "--mount", "--propagation=private"];
    const checkout = resolve(import.meta.dir, "../..").replaceAll(":", "\\:");
    const container = [
      ...["systemd-nspawn", `--directory=${root}`, `--machine=${name}`, "--volatile=overlay"],
      ...[`--bind-ro=${checkout}:${CHECKOUT}`, "--private-network", "--console=passive"],
      ...["--register=no", "--keep-unit", "--link-journal=no"],
      // A machine does not need the files of root's home.
      "--tmpfs=/root:mode=700",
      // With bpf(2), IPAddressDeny= and DevicePolicy= are in force as on a real machine.
      ...["--capability=CAP_BPF", "--system-call-filter=bpf"],
      ...options,
      // The init that --boot starts, and the signal that it sends, but for INIT.
      ...["--kill-signal=SIGRTMIN+3", "sh", "-c", INIT, "sh", before],
    ];
    const args = [group, resolve(files), root, ...container];
    const nspawn = Bun.spawn([...apart, "sh", "-c", script, "sh", ...args], {
      env: { PATH: process.env["PATH"] ?? "", SYSTEMD_NSPAWN_UNIFIED_HIERARCHY: "1" },
      stdin: "ignore",
      stdout: console,
      stderr: console,
    });
    try {
      const init = await until("systemd-nspawn has started its init", left(), async () => {
        if (nspawn.exitCode !== null) throw new Error("the container ended");
        return initOf(nspawn.pid);
      });
      const machine = new Machine(nspawn, init, directory);
      await until("systemd is up", left(), async () => {
        const { stdout } = await machine.run("systemctl", "is-system-running");
        return ["running", "degraded"].includes(stdout.trim());
      });
      // From here on a failed unit is the doing of a test.
      await machine.systemctl("reset-failed");
      await machine.must("ip", "link", "set", "lo", "up");
      const version = await machine.systemctl("--version");
      machine.systemd = Number(/^systemd (\d+)/.exec(version)?.[1]);
      return machine;
    } catch (error) {
      // It would outlive systemd-nspawn.
      const init = await insideOf(nspawn.pid);
      if (init !== undefined) process.kill(init, "SIGKILL");
      nspawn.kill("SIGKILL");
      await nspawn.exited;
      const said = await console.text();
      await remove(directory);
      const why = error instanceof Error ? error.message : String(error);
      throw new Error(`no systemd can be booted here, ${why}: ${said.trim()}`);
    }
  }

  /** Runs a command as root inside, with no input. */
  async run(...command: string[]): Promise<Output> {
    const started = Bun.spawn([...this.#enter("--all"), ...command], {
      cwd: "/",
      env: {
        PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        LANG: "C.UTF-8",
      },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    });
    this.#running.add(started);
    const [stdout, stderr, status] = await Promise.all([
      started.stdout.text(),
      started.stderr.text(),
      started.exited,
    ]);
    this.#running.delete(started);
    return { status, stdout, stderr };
  }

  /** The same for a command that must succeed: its standard output, trimmed. */
  async must(...command: string[]): Promise<string> {
    const { status, stdout, stderr } = await this.run(...command);
    if (status !== 0) throw new Error(`${command.join(" ")}: status ${status}\n${stdout}${stderr}`);
    return stdout.trim();
  }

  /** Runs systemctl, which must succeed. */
  systemctl(...args: string[]): Promise<string> {
    return this.must("systemctl", ...args);
  }

  /**
   * Returns whether systemd can filter addresses, for which it needs bpf(2): it counts what a unit
   * receives by the same means.
   */
  async canFilterAddresses(): Promise<boolean> {
    const unit = "counts.service";
    const options = ["--property=IPAccounting=yes", "--property=RemainAfterExit=yes"];
    await this.must("systemd-run", "--quiet", `--unit=${unit}`, ...options, "true");
    const received = await this.show(unit, "IPIngressBytes");
    await this.systemctl("stop", unit);
    return received !== "[no data]";
  }

  /** One property of a unit, as `systemctl show` has it. */
  show(unit: string, property: string): Promise<string> {
    return this.systemctl("show", "--property", property, "--value", unit);
  }

  /** Waits until a property of a unit has a value. */
  async becomes(unit: string, property: string, value: string, seconds = 10): Promise<void> {
    await until(`${property} of ${unit} is ${value}`, seconds, async () => {
      return (await this.show(unit, property)) === value;
    });
  }

  /** Writes a file inside, with the directories above it. */
  async write(path: string, text: string): Promise<void> {
    await this.must("install", "-d", dirname(path));
    await this.must("sh", "-c", 'printf %s "$2" > "$1"', "sh", path, text);
  }

  /**
   * Starts a Bun program of this checkout in the machine's network, and only that: it is a process
   * of the machine outside, with its files, but ends with this one. Output and input are pipes.
   */
  client(script: string, ...args: string[]): Bun.Subprocess<"pipe", "pipe", "inherit"> {
    const client = Bun.spawn([...this.#enter("--net"), process.execPath, script, ...args], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "inherit",
    });
    this.#running.add(client);
    void client.exited.then(() => this.#running.delete(client));
    return client;
  }

  /**
   * nsenter stops itself when its command is stopped, as a shutdown does, and a stopped one that
   * nobody ends would keep its machine from ever ending: so it dies with the test.
   */
  #enter(namespaces: "--all" | "--net"): string[] {
    return [...DIES_WITH_US, "KILL", "nsenter", "--target", String(this.init), namespaces];
  }

  /** Ends all of it: afterwards no process, mount or file of the machine is left. */
  async shutdown(): Promise<void> {
    for (const process of this.#running) process.kill("SIGKILL");
    await Promise.all([...this.#running].map((process) => process.exited));
    this.#nspawn.kill("SIGTERM");
    const patience = setTimeout(() => process.kill(this.init, "SIGKILL"), 20_000);
    await this.#nspawn.exited;
    clearTimeout(patience);
    await remove(this.#directory);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.shutdown();
  }
}

/** Nothing here is recursive: were the bind mount of the root still there, rmdir would refuse. */
async function remove(directory: string): Promise<void> {
  await rmdir(join(directory, "root"));
  // The second is systemd-nspawn's lock, which only a killed one leaves behind.
  for (const name of ["console", ".#root.lck"]) {
    await unlink(join(directory, name)).catch(() => undefined);
  }
  await rmdir(directory);
  // systemd-nspawn leaves this one behind where /run is not a tmpfs.
  await rmdir(`/run/systemd/nspawn/propagate/${basename(directory)}`).catch(() => undefined);
  for (const group of await groups(basename(directory)))
    // A boot that failed early has none.
    if (existsSync(group)) await removeCgroup(group);
}

/**
 * The control group for a machine, below this process's own: two machines in one would be two managers
 * of the same groups, each of which kills the processes of the other. If the hierarchies are hybrid,
 * systemd-nspawn makes one of the same path in systemd's own, too.
 */
async function groups(name: string): Promise<[string, ...string[]]> {
  const [mounts, own] = await Promise.all([
    readFile("/proc/self/mounts", "utf8"),
    readFile("/proc/self/cgroup", "utf8"),
  ]);
  const path = join(/^0::(.*)$/m.exec(own)?.[1] ?? "/", name);
  const unified = / (\S+) cgroup2 /.exec(mounts)?.[1] ?? "/sys/fs/cgroup";
  const systemd = / (\S+) cgroup \S*\bname=systemd\b/.exec(mounts)?.[1];
  return [join(unified, path), ...(systemd === undefined ? [] : [join(systemd, path)])];
}

/** A control group has directories, which can be removed, and files, which cannot and need not. */
async function removeCgroup(path: string): Promise<void> {
  for (const entry of await readdir(path, { withFileTypes: true }))
    if (entry.isDirectory()) await removeCgroup(join(path, entry.name));
  await rmdir(path);
}

/** The child of systemd-nspawn that is the init of another pid namespace, once there is one. */
async function insideOf(nspawn: number): Promise<number | undefined> {
  const children = await readFile(`/proc/${nspawn}/task/${nspawn}/children`, "utf8").catch(
    () => "",
  );
  const child = Number.parseInt(children, 10);
  if (Number.isNaN(child)) return undefined;
  // systemd-nspawn's first child is a helper outside. Entering its namespaces would be to run the
  // test's commands on the real machine.
  const [inside, outside] = await Promise.all([
    readlink(`/proc/${child}/ns/pid`).catch(() => undefined),
    readlink("/proc/self/ns/pid"),
  ]);
  return inside !== undefined && inside !== outside ? child : undefined;
}

/** The same, once it is systemd. */
async function initOf(nspawn: number): Promise<number | undefined> {
  const child = await insideOf(nspawn);
  const name = await readFile(`/proc/${child}/comm`, "utf8").catch(() => "");
  return name === "systemd\n" ? child : undefined;
}
