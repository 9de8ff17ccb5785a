import { copyFileSync, existsSync, realpathSync } from "node:fs";
import { join } from "node:path";

/** How a service is given its socket: listening as fd 3, accepted as fd 3, accepted as stdin/stdout. */
export type Style = "listen" | "accepted" | "inet";
export const styles: readonly Style[] = ["listen", "accepted", "inet"];

/** Our executable of each style. */
export const services: Record<Style, string> = {
  listen: "socket-service",
  accepted: "socket-service-accepted",
  inet: "socket-service-inet",
};

/** The flags that the services are built with, and so the floor too. */
export const buildFlags = [
  "build",
  "--compile",
  "--bytecode",
  "--format=esm",
  "--minify",
  "--no-compile-autoload-dotenv",
  "--no-compile-autoload-bunfig",
];

export const greetings: Record<Style, string> = {
  listen: "This is a test",
  accepted: "This socket was already accepted",
  inet: "This socket was passed on stdin/stdout",
};

/** One program that does the job in all three styles. */
export interface Contender {
  readonly name: string;
  /** The program and its arguments, with an absolute path. */
  readonly command: (style: Style) => string[];
  /** What it can be passed. */
  readonly styles: readonly Style[];
}

export interface Field {
  readonly contenders: Contender[];
  /** A line for each peer that this machine cannot run, with the Debian package that brings it. */
  readonly missing: string[];
  readonly activator: string;
  readonly load: string;
  /** The executables of all contenders. */
  readonly files: string[];
}

/**
 * Whose turn it is in a round: from the second on in a random order, because whoever comes after a large
 * program finds the processor's caches full of it. The first is the order of the tables.
 */
export function turns<T>(items: readonly T[], round: number): readonly T[] {
  if (round <= 0) return items;
  return items
    .map((item) => ({ item, at: Math.random() }))
    .toSorted((a, b) => a.at - b.at)
    .map(({ item }) => item);
}

/** Those that can be passed a socket in this way. */
export const able = (contenders: readonly Contender[], style: Style): Contender[] =>
  contenders.filter(({ styles }) => styles.includes(style));

export const ours = "ours";
export const bunFloor = "smallest Bun";
/** The floor with a socket of its own, and systemd-socket-proxyd in front of it. */
export const proxied = "proxyd";
export const PROXYD = "/lib/systemd/systemd-socket-proxyd";

const here = import.meta.dir;
const peers = join(here, "peers");
const dist = join(here, "../../dist");

/** The PATH of a system service: a version manager's wrapper in a developer's PATH is not the peer. */
const servicePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** An installed program, past its symbolic links, or undefined where there is none. */
export function find(program: string): string | undefined {
  const path = Bun.which(program, { PATH: servicePath }) ?? Bun.which(program);
  return path === null ? undefined : realpathSync(path);
}

/**
 * Builds everything that is measured into `directory`, our own executables as copies: so all lie
 * on the same file system, and a build that runs meanwhile changes nothing.
 *
 * @throws {Error} when gcc is missing or a program does not build, or ours are not built yet.
 */
export function assemble(directory: string): Field {
  const gcc = find("gcc");
  if (gcc === undefined)
    throw new Error("nothing can be measured without gcc (Debian package gcc)");
  const absent = Object.values(services).filter((name) => !existsSync(join(dist, name)));
  if (absent.length > 0) throw new Error(`dist/${absent[0]} is not built: run make first`);

  const compileC = (source: string, output: string): string => {
    const path = join(directory, output);
    run([gcc, "-O2", "-o", path, source]);
    return path;
  };
  const contenders: Contender[] = [];
  const missing: string[] = [];
  const add = (name: string, command: (style: Style) => string[], can = styles): void => {
    contenders.push({ name, command, styles: can });
  };
  /** An installed program, or undefined and a line about its Debian package. */
  const installed = (name: string, program: string, hint: string): string | undefined => {
    const path = find(program);
    if (path === undefined) missing.push(`${name}: not installed (Debian package ${hint})`);
    return path;
  };

  for (const name of Object.values(services)) copyFileSync(join(dist, name), join(directory, name));
  add(ours, (style) => [join(directory, services[style])]);

  const bun = build(join(peers, "floor.ts"), join(directory, "bun-floor"));
  add(bunFloor, (style) => [bun, style]);

  const c = compileC(join(peers, "peer.c"), "peer-c");
  add("C", (style) => [c, style]);

  const proxyd = installed(proxied, PROXYD, "systemd");
  if (proxyd !== undefined) {
    const behind = compileC(join(peers, "behind.c"), "behind");
    add(proxied, () => [behind, proxyd, bun, "unix"], ["listen"]);
  }
  const go = installed("Go", "go", "golang-go");
  if (go !== undefined) {
    const path = join(directory, "peer-go");
    const env = { ...process.env, GO111MODULE: "off", CGO_ENABLED: "0", GOFLAGS: "" };
    run([go, "build", "-o", path, join(peers, "peer.go")], { env });
    add("Go", (style) => [path, style]);
  }
  const node = installed("Node", "node", "nodejs");
  if (node !== undefined) add("Node", (style) => [node, join(peers, "peer.cjs"), style]);

  const files = contenders.flatMap(({ command, styles }) =>
    // The program, and a program behind it.
    styles.flatMap((style) => command(style).filter((word) => word.startsWith("/"))),
  );
  return {
    contenders,
    missing,
    files: [...new Set(files)],
    activator: compileC(join(here, "activator.c"), "activator"),
    load: compileC(join(here, "load.c"), "load"),
  };
}

/** Compiles a Bun program as the services are, and returns `outfile`. */
export function build(source: string, outfile: string): string {
  run([process.execPath, ...buildFlags, source, "--outfile", outfile]);
  return outfile;
}

/** @throws {Error} if the command fails, with its output on stderr. */
export function run(
  command: string[],
  options: { cwd?: string; env?: Record<string, string | undefined> } = {},
): void {
  const { exitCode, stderr } = Bun.spawnSync(command, {
    ...options,
    stdout: "ignore",
    stderr: "pipe",
  });
  if (exitCode !== 0) throw new Error(`${command.join(" ")} failed:\n${stderr.toString()}`);
}
