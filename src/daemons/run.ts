import { version } from "../../package.json";
import { ActivationError, ExitStatus, messageOf } from "../activation/error.ts";
import { LogLevel, logLine } from "../activation/log.ts";

/** A daemon: what `--help` says of it, and what it does. */
export interface Daemon {
  readonly name: string;
  /** What it does, in a sentence or two. */
  readonly about: string;
  /** Its options, each of which takes a value: the text for `--help`, from the value's name on. */
  readonly options?: Readonly<Record<string, string>>;
  /** @param values The options given. */
  readonly run: (values: Values) => unknown;
}

export type Values = Readonly<Record<string, string | boolean | undefined>>;

/** Runs a daemon. Its errors end here: one line on stderr, and the exit status it maps to. */
export async function run(daemon: Daemon): Promise<void> {
  try {
    // Most runs have no arguments, and need not load what parses them.
    await daemon.run(Bun.argv.length > 2 ? parse(daemon) : {});
  } catch (error) {
    logLine(LogLevel.error, `${daemon.name}: ${messageOf(error)}`);
    process.exit(error instanceof ActivationError ? error.status : ExitStatus.systemCall);
  }
}

/** An error in how the daemon was called. */
export function misused(message: string): ActivationError {
  return new ActivationError(ExitStatus.usage, `${message}: see --help`);
}

function parse({ name, about, options = {} }: Daemon): Values {
  const { parseArgs } = process.getBuiltinModule("node:util");
  const strings = Object.keys(options).map((option) => [option, { type: "string" }] as const);
  const flag = { type: "boolean" } as const;
  let values: Values;
  try {
    const config = { ...Object.fromEntries(strings), help: flag, version: flag };
    ({ values } = parseArgs({ args: Bun.argv.slice(2), options: config }));
  } catch (error) {
    throw misused(messageOf(error));
  }
  if (values["help"] === true) {
    const own = Object.entries(options).map(([option, text]) => `  --${option}=${text}\n`);
    console.log(
      `Usage: ${name} [OPTION]...\n\n${about}\n\n${own.join("")}` +
        "  --help                  print this and exit\n" +
        "  --version               print the version and exit",
    );
    process.exit();
  }
  if (values["version"] === true) {
    console.log(`${name} ${version}`);
    process.exit();
  }
  return values;
}
