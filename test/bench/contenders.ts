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
  /** Does less than the job: a floor to measure from, not a peer. */
  readonly floor: boolean;
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

export const ours = "ours";
export const bunFloor = "Bun floor";

const here = import.meta.dir;
const peers = join(here, "peers");
const dist = join(here, "../../dist");

/** The PATH of a system service: a version manager's wrapper in a developer's PATH is not the peer. */
const servicePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** An installed program, past its symbolic links, or undefined where there is none. */
function find(program: string): string | undefined {
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
  const add = (name: string, command: (style: Style) => string[], floor = false): void => {
    contenders.push({ name, command, floor });
  };

  for (const name of Object.values(services)) copyFileSync(join(dist, name), join(directory, name));
  add(ours, (style) => [join(directory, services[style])]);

  const bun = join(directory, "bun-floor");
  run([process.execPath, ...buildFlags, join(peers, "floor.ts"), "--outfile", bun]);
  add(bunFloor, (style) => [bun, style], true);

  const c = compileC(join(peers, "peer.c"), "peer-c");
  add("C", (style) => [c, style]);
  add("C write-only", (style) => [c, style, "floor"], true);

  const go = find("go");
  if (go === undefined) missing.push("Go: not installed (Debian package golang-go)");
  else {
    const path = join(directory, "peer-go");
    const env = { ...process.env, GO111MODULE: "off", CGO_ENABLED: "0", GOFLAGS: "" };
    run([go, "build", "-o", path, join(peers, "peer.go")], env);
    add("Go", (style) => [path, style]);
  }
  const node = find("node");
  if (node === undefined) missing.push("Node: not installed (Debian package nodejs)");
  else add("Node", (style) => [node, join(peers, "peer.cjs"), style]);

  const python = find("python3");
  if (python === undefined) missing.push("Python: not installed (Debian package python3)");
  else add("Python", (style) => [python, join(peers, "peer.py"), style]);

  const files = contenders.flatMap(({ command }) => styles.map((style) => command(style)[0] ?? ""));
  return {
    contenders,
    missing,
    files: [...new Set(files)],
    activator: compileC(join(here, "activator.c"), "activator"),
    load: compileC(join(here, "load.c"), "load"),
  };
}

/** @throws {Error} with what the command printed when it fails. */
export function run(
  command: string[],
  env: Record<string, string | undefined> = process.env,
): void {
  const { exitCode, stderr } = Bun.spawnSync(command, { env, stdout: "ignore", stderr: "pipe" });
  if (exitCode !== 0) throw new Error(`${command.join(" ")} failed:\n${stderr.toString()}`);
}
