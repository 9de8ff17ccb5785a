/* The Makefile, test/setup.sh, the scripts of package.json, and CI. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { chmodSync, cpSync, existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";

import { devDependencies, version } from "../../package.json";
import { build } from "../support/build.ts";
import { scratch } from "../support/daemon.ts";
import { lacksNpm } from "../support/needs.ts";
import { ROOT } from "../support/pages.ts";

setDefaultTimeout(60_000);

const PATH = process.env["PATH"] ?? "";

const PAGES = readdirSync(join(ROOT, "units/man")).map((name) => `units/man/${name}`);

const noNpm = lacksNpm();

type Environment = Readonly<Record<string, string>>;

/** Runs a command to its end, with few variables and those of `env`. */
async function run(command: readonly string[], env: Environment = {}, cwd = ROOT) {
  await using child = Bun.spawn([...command], {
    cwd,
    env: { HOME: process.env["HOME"] ?? "/", PATH, ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr, status] = await Promise.all([
    child.stdout.text(),
    child.stderr.text(),
    child.exited,
  ]);
  return { status, stdout, stderr };
}

/** Writes an executable script. */
function script(path: string, text: string): void {
  writeFileSync(path, `#!/bin/sh\n${text}\n`);
  chmodSync(path, 0o755);
}

describe("test/setup.sh", () => {
  const ALL =
    "curl dbus-user-session debhelper dpkg-dev iproute2 libpam-systemd libsystemd0 lintian man-db " +
    "mandoc mount netcat-openbsd nginx-light npm procps systemd systemd-container telnet util-linux xz-utils";
  const INSTALL = `apt-get install --no-install-recommends ${ALL}`;

  /** Makes the files that an installation brings. */
  const BRING = `mkdir -p ../bin ../lib/x/security ../usr/lib/systemd/user && touch ../bin/kill \
    ../lib/x/libsystemd.so.0 ../lib/x/security/pam_systemd.so ../usr/lib/systemd/user/dbus.socket &&
    for name in curl dh dpkg-parsechangelog ip lintian man mandoc mount nc nginx npm nsenter setpriv ss systemd-nspawn \
    systemd-socket-activate telnet unshare xz; do ln -s /bin/true $name; done`;

  /**
   * Runs it on a machine that has none of the programs, with an apt-get that writes down its calls
   * and then runs `aptGet`, or with none. Returns the calls too, and the output of a second run.
   */
  async function setUp(
    mode: string,
    uid: number,
    aptGet: string | undefined,
    env: Environment = {},
    has = ["proc/self/stat"],
  ) {
    using machine = scratch();
    const bin = join(machine.path, "programs");
    const setup = join(machine.path, "test/setup.sh");
    for (const path of [bin, dirname(setup)]) mkdirSync(path);
    for (const path of has) {
      mkdirSync(join(machine.path, dirname(path)), { recursive: true });
      script(join(machine.path, path), "");
    }
    for (const name of "cat cut dirname ln mkdir paste sed sh sort touch".split(" "))
      symlinkSync(`/bin/${name}`, join(bin, name));
    script(join(bin, "id"), `echo ${uid}`);
    if (aptGet !== undefined)
      script(
        join(bin, "apt-get"),
        `echo "$@" >> called\n[ $1 = update ] || { cd ${bin}; ${aptGet}\n}`,
      );
    const text = readFileSync(join(ROOT, "test/setup.sh"), "utf8");
    // All its files are this machine's.
    script(setup, text.replaceAll(/(?<=[ :])\/(?=\w)/g, `${machine.path}/`));
    const result = await run([setup, ...mode.split(" ")], { PATH: bin, ...env });
    const again = (await run([setup, ...mode.split(" ")], { PATH: bin, ...env })).stdout;
    const called = join(machine.path, "called");
    return { ...result, again, called: existsSync(called) ? readFileSync(called, "utf8") : "" };
  }

  test("as root on Debian installs what is missing at once, and says so in one line", async () => {
    const { status, stdout, stderr, called, again } = await setUp("test", 0, BRING);
    expect([status, stderr, again]).toEqual([0, "", ""]);
    expect(stdout).toBe(`setup  ${INSTALL} (SETUP=no leaves the machine alone)\n`);
    const quietly = INSTALL.replace("apt-get install --no-install-recommends", "-y -qq");
    expect(called).toBe(`update -qq\ninstall --no-install-recommends ${quietly}\n`);
  });

  for (const [who, uid, env] of [
    ["an ordinary user", 1000, {}],
    ["root, with SETUP=no,", 0, { SETUP: "no" }],
  ] as const)
    test(`as ${who} prints the command that installs it, and leaves the machine alone`, async () => {
      const { status, stdout, stderr, called } = await setUp("test", uid, BRING, env);
      expect([status, stderr, called]).toEqual([0, "", ""]);
      expect(stdout).toBe(`make test lacks some programs. As root on Debian: ${INSTALL}\n`);
    });

  test("says what apt-get said where that fails, and goes on", async () => {
    const { status, stdout, stderr } = await setUp("test", 0, "echo 'No such package'; exit 100");
    expect([status, stderr]).toEqual([0, "No such package\n"]);
    expect(stdout.trim().split("\n").at(-1)).toEndWith(INSTALL);
  });

  const HAS = ["proc/self/stat"];
  test.each([
    ["demo", HAS, "npm systemd"],
    ["demo", [...HAS, "programs/bun"], "systemd"],
    ["demo", [...HAS, "node_modules/.bun-1.4.5"], "systemd"],
    ["check", HAS, "npm shellcheck"],
  ])("for the %s, on a machine that has %j, asks for %s", async (mode, has, packages) => {
    const { stdout } = await setUp(mode, 1000, BRING, {}, has);
    expect(stdout).toEndWith(`: apt-get install --no-install-recommends ${packages}\n`);
  });

  test("has a root need debootstrap, and names what it has inside", async () => {
    const { status, stdout } = await setUp("debian-root", 1000, BRING);
    expect(status).toBe(1);
    expect(stdout).toEndWith(": apt-get install --no-install-recommends debootstrap util-linux\n");
    const inside = (await setUp("inside", 1000, BRING)).stdout.trim().split(",");
    expect(inside).toEqual(expect.arrayContaining(["dbus", "make", "systemd"]));
    expect(inside).not.toContain("npm");
  });

  test("has the tests of another architecture need an emulator", async () => {
    const { stdout } = await setUp("test arm64", 1000, BRING);
    const words = ["libc6-arm64-cross", "qemu-user-static", ...ALL.split(" ")].sort();
    expect(stdout).toEndWith(`--no-install-recommends ${words.join(" ")}\n`);
  });

  test("fails for a package without what builds it, also after other modes, and for no other", async () => {
    const hint = "lacks some programs. As root on Debian: apt-get install --no-install-recommends ";
    const { status, stdout, stderr } = await setUp("deb", 1000, BRING);
    expect([status, stderr]).toEqual([1, ""]);
    expect(stdout).toBe(`make deb ${hint}debhelper dpkg-dev xz-utils\n`);
    expect((await setUp("demo deb", 1000, BRING)).status).toBe(1);
    expect((await setUp("deb", 0, BRING)).status).toBe(0);
    // It needs no systemd.
    expect((await setUp("demo", 1000, BRING)).status).toBe(0);
  });

  test("as root where there is no apt-get prints the command, and leaves the machine alone", async () => {
    const { status, stdout, stderr } = await setUp("test", 0, undefined);
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout).toBe(`make test lacks some programs. As root on Debian: ${INSTALL}\n`);
  });

  test("says how to mount /proc, without which Bun does not start", async () => {
    const { status, stderr, called } = await setUp("test", 0, BRING, {}, []);
    expect([status, called]).toEqual([1, ""]);
    expect(stderr).toMatch(/: mount -t proc proc \S*\/proc\n$/);
  });
});

/** The variables that a service manager sets for a service. */
const VARIABLES = [
  ...["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET"],
  ...["WATCHDOG_PID", "WATCHDOG_USEC", "JOURNAL_STREAM"],
];

describe("make", () => {
  /** A checkout of its own, with these further files and folders. Its path has a space. */
  function checkout(...more: string[]) {
    const directory = scratch("a clone-");
    const own = ["Makefile", "package.json", "bun.lock", "bunfig.toml", "src", "units", "test"];
    for (const name of [...own, ...more])
      cpSync(join(ROOT, name), join(directory.path, name), {
        recursive: true,
        verbatimSymlinks: true,
        filter: (path) => !/node_modules\/\.(bun-|installed)/.test(path),
      });
    return directory;
  }

  test("-B -j2 fetches bun, installs and builds; make test ends with what was skipped", async () => {
    using directory = checkout("node_modules");
    const { path } = directory;
    // The registry is not asked: this npm copies the files of a fetch.
    const bin = join(path, "bin");
    mkdirSync(bin);
    const packages = join(ROOT, "node_modules");
    const copies = `mkdir node_modules && cp -a "${packages}/bun" "${packages}/@oven" node_modules`;
    const stubs = "cd node_modules/bun/bin && rm -f bun.exe bunx.exe && touch bun.exe bunx.exe";
    script(join(bin, "npm"), `echo "$@" >> "${bin}/called"\n${copies}\n${stubs}`);
    const env = { PATH: `${bin}:${PATH}` };
    for (let i = 0; i < 2; i++) {
      const { status, stderr } = await run(["make", "-B", "-j2"], env, path);
      expect([status, stderr]).toEqual([0, ""]);
    }
    const called = readFileSync(join(bin, "called"), "utf8").trim().split("\n");
    expect(called.length).toBe(2);
    expect(called[0]).toMatch(/ --prefer-offline .* bun@/);
    expect(called[0]).toEndWith(` bun@${devDependencies.bun}`);
    for (const name of ["bun", "bunx"]) {
      const { stdout } = await run([join(path, "node_modules/.bin", name), "--version"]);
      expect(stdout).toBe(`${devDependencies.bun}\n`);
    }
    expect((await run([join(path, "dist/socket-service-inet")])).stdout).toStartWith("This socket");

    const small = `import { test } from "bun:test";
      import { skipped } from "./support/needs.ts";
      skipped("a test", "for no reason");
      test("sees no service manager", () => {
        const seen = ${JSON.stringify(VARIABLES)}.filter((name) => name in process.env);
        if (seen.length > 0) throw new Error(String(seen));
      });`;
    writeFileSync(join(path, "test/small.test.ts"), small);
    const manager = Object.fromEntries(VARIABLES.map((name) => [name, "1"]));
    const make = ["make", "test", "SETUP=no", "ARGS=test/small.test.ts"];
    const { status, stdout, stderr } = await run(make, { ...env, ...manager }, path);
    expect([status, status === 0 ? "" : stdout + stderr]).toEqual([0, ""]);
    expect(stdout).toMatch(/Skipped:\n  a test: for no reason\n(make test lacks .*\n)?$/);
    const bun = [process.execPath, "test", "test/small.test.ts"];
    const bare = await run(bun, { ...env, ...manager }, path);
    expect(bare.status).toBe(0);
    expect(bare.stdout).toContain("Skipped:\n  a test: for no reason\n");
  });

  test("builds and packs the same in another directory, with other modes and language", async () => {
    using directory = checkout("LICENSE", "tsconfig.json");
    const { path } = directory;
    // One link to all of node_modules would have make touch .installed there, and build anew here.
    const modules = `mkdir node_modules && ln -s ${ROOT}/node_modules/* ${ROOT}/${BUN} node_modules`;
    // Some have the place for it elsewhere.
    const elsewhere = "mkdir -p large/disk && ln -s large/disk dist";
    const build = `${elsewhere} && touch node_modules/.installed && umask 077 && make && make pack`;
    const commands = `${modules} && chmod -R go= . && ${build}`;
    const env = { TZ: "Asia/Tokyo", LC_ALL: "tr_TR.UTF-8" };
    const { status, stderr } = await run(["sh", "-c", commands], env, path);
    expect([status, stderr]).toEqual([0, ""]);
    expect((await run(["make", "all", "pack"])).status).toBe(0);
    const built = readdirSync(join(path, "dist")).filter((name) => name !== "package");
    // Three executables, the preload and its directory, the package.
    expect(built).toHaveLength(6);
    for (const name of built) {
      const both = [join(path, "dist", name), join(ROOT, "dist", name)];
      const { stdout } = await run(["diff", "--recursive", ...both]);
      expect(stdout).toBe("");
    }
  });

  test("demo runs what it can, and ends with what was skipped and what to install", async () => {
    build();
    using bin = scratch();
    for (const name of ["cat", "cut", "dirname", "id", "sed", "sh", "sort"])
      symlinkSync(`/bin/${name}`, join(bin.path, name));
    const demo = [process.execPath, join(ROOT, "test/demo.ts")];
    const { status, stdout } = await run(demo, { PATH: bin.path });
    expect(status).toBe(0);
    const line = JSON.stringify("This socket was passed on stdin/stdout\n");
    expect(stdout).toStartWith(`$ dist/socket-service-inet | cat\n  received ${line}\n`);
    expect(stdout).toMatch(
      / {2}what needs systemd-socket-activate: it is missing\n.*: apt-get .*\n$/,
    );
  });

  test.skipIf(noNpm)(
    "fetches and installs the same, whatever a user has set for npm and bun",
    async () => {
      using directory = checkout("tsconfig.json", "LICENSE");
      const { path } = directory;
      const settings = `[install]\nlinker = "isolated"\nproduction = true\n`;
      writeFileSync(join(path, ".bunfig.toml"), settings);
      const npm = { npm_config_omit: "optional", npm_config_install_strategy: "linked" };
      const env = { ...npm, npm_config_global: "true", XDG_CONFIG_HOME: path };
      const { status, stderr } = await run(["make", "pack"], env, path);
      expect([status, status === 0 ? "" : stderr]).toEqual([0, ""]);
    },
  );

  test.skipIf(noNpm)("says why bun cannot be fetched, in npm's words, within seconds", async () => {
    using directory = checkout();
    const registry = { npm_config_registry: "http://127.0.0.1:9/", npm_config_cache: "npm-cache" };
    const began = performance.now();
    const { status, stderr } = await run(["make"], registry, directory.path);
    expect(status).toBe(2);
    expect(stderr).toMatch(/^npm \S+ code ECONNREFUSED$/m);
    expect(performance.now() - began).toBeLessThan(20_000);
  });

  test("says what is needed where neither npm nor bun is there", async () => {
    using directory = checkout();
    const bin = join(directory.path, "bin");
    mkdirSync(bin);
    for (const name of ["cat", "find", "id", "make", "mkdir", "rm", "sed", "sh", "uname"])
      symlinkSync(`/bin/${name}`, join(bin, name));
    const { status, stderr } = await run(["make"], { PATH: bin }, directory.path);
    expect(status).toBe(2);
    expect(stderr).toContain(`npm or bun is needed to fetch bun ${devDependencies.bun}`);
  });
});

// Dry runs: make prints the recipes.
const BUN = `node_modules/.bun-${devDependencies.bun}`;
const DRY = { MAKEFLAGS: "-n -B" };

for (const manager of ["npm", process.execPath])
  test.skipIf(noNpm && manager === "npm")(`${basename(manager)} run test, build work`, async () => {
    for (const [name, recipe] of Object.entries({
      test: `${BUN} test/run.ts`,
      build: `${BUN}" build`,
    })) {
      const { status, stdout } = await run([manager, "run", name], DRY);
      expect(status).toBe(0);
      expect(stdout).toContain(recipe);
    }
  });

for (const target of ["demo", "test", "check", "debian-root", "deb"])
  test(`make ${target} sets up before all else`, async () => {
    const { stdout } = await run(["make", target], DRY);
    expect(stdout).toStartWith(`test/setup.sh ${target}\n`);
  });

test("make deb stops at what test/setup.sh says is missing", async () => {
  using directory = scratch();
  const { path } = directory;
  for (const name of ["package.json", "bun.lock", "src", "units", "LICENSE"])
    symlinkSync(join(ROOT, name), join(path, name));
  cpSync(join(ROOT, "Makefile"), join(path, "Makefile"));
  for (const name of ["test", "node_modules"]) mkdirSync(join(path, name));
  script(join(path, "test/setup.sh"), 'echo "make $1 lacks some programs."; exit 1');
  script(join(path, BUN), 'echo "$@" >> called');
  writeFileSync(join(path, "node_modules/.installed"), "");
  const { status, stdout } = await run(["make", "deb"], {}, path);
  expect([status, stdout]).toEqual([2, "make deb lacks some programs.\n"]);
  expect(existsSync(join(path, "called"))).toBe(false);
});

test("make test sums what each run says of itself, not what a failure quotes", async () => {
  using directory = scratch();
  const file = join(directory.path, "quotes.test.ts");
  const quoted = String.raw`status 1\n 7 pass\n 5 skip\n 9 fail\n`;
  writeFileSync(
    file,
    `import { test } from "bun:test";
    test("passes", () => {});
    test("quotes", () => { throw new Error("${quoted}"); });`,
  );
  const { status, stdout } = await run([process.execPath, join(ROOT, "test/run.ts"), file]);
  expect(status).toBe(1);
  expect(stdout).toEndWith("\n\n 1 pass\n 0 skip\n 1 fail\n");
});

test("make test says if something failed, but no test", async () => {
  using directory = scratch();
  const file = join(directory.path, "covers-little.test.ts");
  const module = JSON.stringify(join(ROOT, "src/activation/index.ts"));
  writeFileSync(
    file,
    `import { test } from "bun:test"; import ${module}; test("passes", () => {});`,
  );
  const runner = [process.execPath, join(ROOT, "test/run.ts"), file];
  expect((await run(runner)).status).toBe(0);
  const { status, stdout } = await run([...runner, "--coverage"]);
  expect(status).toBe(1);
  expect(stdout).toContain("\n 0 fail\nno test failed: too little coverage, or a crash: ");
});

test("a changed bun.lock or package.json has make install again", async () => {
  using directory = scratch();
  const { path } = directory;
  mkdirSync(join(path, "node_modules/bun/bin"), { recursive: true });
  for (const name of ["src", "units"]) symlinkSync(join(ROOT, name), join(path, name));
  for (const name of ["Makefile", "package.json", "bun.lock"])
    cpSync(join(ROOT, name), join(path, name));
  const bun = join(path, "node_modules/@oven/bun/bin/bun");
  mkdirSync(dirname(bun), { recursive: true });
  script(bun, 'echo "$@" >> called');
  symlinkSync(bun, join(path, BUN));
  const hoursAgo = (hours: number, name: string) => {
    const time = Date.now() / 1000 - 3600 * hours;
    utimesSync(join(path, name), time, time);
  };
  for (const [changed, expected] of [[], ["bun.lock", 1], ["package.json", 1]] as const) {
    writeFileSync(join(path, "node_modules/.installed"), "");
    hoursAgo(1, "node_modules/.installed");
    for (const name of ["package.json", "bun.lock"]) hoursAgo(name === changed ? 0 : 2, name);
    writeFileSync(join(path, "called"), "");
    const { stderr } = await run(["make", "node_modules/.installed"], {}, path);
    const installs = readFileSync(join(path, "called"), "utf8").match(/^install /gm);
    expect([changed, stderr, installs?.length]).toEqual([changed, "", expected]);
  }
});

test("make test ARCH= sets up, builds and tests for another architecture", async () => {
  const other = process.arch === "arm64" ? "amd64" : "arm64";
  const { stdout } = await run(["make", "test", `ARCH=${other}`], DRY);
  expect(stdout).toStartWith(`test/setup.sh test ${other}\n`);
  expect(stdout).toContain(`\ncd dist/${other} && `);
  expect(stdout).toContain(`test/emulate.sh run ${BUN}-${other} test/run.ts`);
  expect((await run(["make", "ARCH=mips"], DRY)).stderr).toContain('amd64 or arm64, not "mips"');
});

test("make builds without setting up, and tests a part if told so", async () => {
  expect((await run(["make", "all", "unit"], DRY)).stdout).not.toContain("setup.sh");
  const { stdout } = await run(["make", "test", "ARGS=test/x.test.ts"], DRY);
  expect(stdout).toContain(`${BUN} test/run.ts test/x.test.ts\n`);
});

test("a release edits package.json and the README's changes, and no other file", () => {
  const text = (name: string) => readFileSync(join(ROOT, name), "utf8");
  expect(text("README.md")).toContain(`\n## Changes\n\n**${version}**`);
  expect(text("README.md").split(version)).toHaveLength(2);
  for (const name of ["src/activation/README.md", "src/activation/REFERENCE.md", ...PAGES])
    // Another project's 1.0.0-next.1 is not ours.
    expect(text(name)).not.toMatch(new RegExp(`${version.replaceAll(".", "\\.")}(?!-)`));
});

test("a build that fails leaves no half of an executable", async () => {
  using directory = scratch();
  for (const name of ["Makefile", "package.json", "bun.lock", "src", "units"])
    symlinkSync(join(ROOT, name), join(directory.path, name));
  mkdirSync(join(directory.path, "node_modules"));
  script(
    join(directory.path, BUN),
    'for file; do :; done; echo half > "$file"; echo > left; exit 1',
  );
  writeFileSync(join(directory.path, "node_modules/.installed"), "");
  const { status } = await run(["make"], {}, directory.path);
  // Bun leaves one where it runs, if it is interrupted.
  expect([status, readdirSync(join(directory.path, "dist"))]).toEqual([2, ["left"]]);
});

describe(".ci/run", () => {
  /** Runs it with a make of which one target may fail, and of whose `tests` some may be skipped. */
  async function ci(uid: number, fails = "", skips = "", tests = "test") {
    using bin = scratch();
    script(join(bin.path, "id"), `echo ${uid}`);
    const says = `[ $1 != ${tests} ] || printf ' 5 pass\\n${skips} 0 fail\\n'`;
    script(join(bin.path, "make"), `echo "make $*"\n${says}\n[ "$*" != "${fails}" ]`);
    const { status, stdout, stderr } = await run([join(ROOT, ".ci/run")], {
      PATH: `${bin.path}:${PATH}`,
    });
    const [before = ""] = stdout.split("\nThese failed:\n");
    const called = before.match(/^make .*$/gm) ?? [];
    return { status, called, stderr, stdout, last: stdout.trim().split("\n").at(-1) };
  }

  test("says that it has to be root", async () => {
    const { status, called, stderr } = await ci(1000);
    expect([status, called]).toEqual([1, []]);
    expect(stderr).toContain("has to run as root");
  });

  test("calls the README's commands, and counts", async () => {
    const { called, ...result } = await ci(0);
    expect(result).toMatchObject({ status: 0, stderr: "", last: "15 passed, 0 failed, 0 skipped" });
    expect(result.stdout).not.toMatch(/^These/m);
    const readme = readFileSync(join(ROOT, "README.md"), "utf8");
    for (const command of called) expect(readme).toMatch(new RegExp(`^    ${command}( |$)`, "m"));
    expect(called).toContain("make test");
  });

  const runs = ["test", "test ROOT=dist/roots/trixie", "test ARCH=arm64"];
  for (const fails of ["demo", "check", ...runs, "test-frameworks", "test-bun"])
    test(`fails where make ${fails} does`, async () => {
      const { status, called, last } = await ci(0, fails);
      expect([status, last]).toEqual([1, "15 passed, 1 failed, 0 skipped"]);
      expect(called).toHaveLength(8);
    });

  test.each([
    ["a failure", "error: why\\n(fail) it works\\n", "error: why\n(fail) it works\n"],
    ["a failure in a machine", "> (fail) it works\\n", "> (fail) it works\n"],
    ["a run without one", "error: why\\n", "error: why\n 0 fail\n"],
  ])("repeats %s at the end", async (_, says, repeated) => {
    const { stdout } = await ci(0, "test", says);
    const [, end] = stdout.split("\nThese failed:\n");
    expect(end).toStartWith("(make test)\n");
    expect(end).toContain(repeated);
  });

  test("names the tests that passed at the second attempt", async () => {
    const line = "(pass) it works (attempt 2) [1ms]\n";
    const { status, stdout } = await ci(0, "", line.replace("\n", "\\n"));
    expect(status).toBe(0);
    expect(stdout).toContain(`\nThese passed at the second attempt:\n${line}`);
  });

  test("fails where there is no other root", async () => {
    const { status, called, last } = await ci(0, "debian-root");
    expect([status, last]).toEqual([1, "10 passed, 1 failed, 0 skipped"]);
    expect(called).toHaveLength(7);
  });

  test.each([
    ["a test is skipped", "test", " 2 skip\\n", "15 passed, 0 failed, 6 skipped"],
    ["a check is skipped", "check", "Skipped:\\n  a check\\n", "5 passed, 0 failed, 1 skipped"],
    ["a run skips a part", "test", "Skipped:\\n  IPv6\\n", "15 passed, 0 failed, 3 skipped"],
  ])("fails where %s", async (_, tests, skips, result) => {
    expect(await ci(0, "", skips, tests)).toMatchObject({ status: 1, last: result });
  });
});
