import { version } from "../../package.json";
import { ActivationError, ExitStatus, exitOnError } from "../activation/index.ts";

type Values = Readonly<Record<string, string | boolean | undefined>>;

/** A daemon: its text for `--help`, and the function that runs it. */
interface Daemon {
  readonly name: string;
  readonly about: string;
  /** Options that take a value: the text for `--help`, from the value's name on. */
  readonly options?: Readonly<Record<string, string>>;
  readonly run: (values: Values) => unknown;
}

/** Runs a daemon. Its errors end here: one line on stderr, and the exit status it maps to. */
export async function run(daemon: Daemon): Promise<void> {
  try {
    // `node:util`, which parses arguments, is loaded only if there are any.
    await daemon.run(Bun.argv.length > 2 ? parse(daemon) : {});
  } catch (error) {
    const status = error instanceof ActivationError ? error.status : ExitStatus.systemCall;
    exitOnError(new ActivationError(status, `${daemon.name}: ${messageOf(error)}`));
  }
}

/** The message of a thrown value, which may not be an `Error`. */
function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** An error in how the daemon was called. */
export function misused(message: string): ActivationError {
  return new ActivationError(ExitStatus.usage, message);
}

function parse({ name, about, options = {} }: Daemon): Values {
  const { parseArgs } = process.getBuiltinModule("node:util");
  const strings = Object.keys(options).map((option) => [option, { type: "string" }] as const);
  const flag = { type: "boolean" } as const;
  const config = { ...Object.fromEntries(strings), help: flag, version: flag };
  let values: Values;
  try {
    ({ values } = parseArgs({ args: Bun.argv.slice(2), options: config }));
  } catch (error) {
    throw misused(`${messageOf(error)}: see --help`);
  }
  if (values["help"] === true) {
    const own = Object.entries(options).map(([option, text]) => `  --${option}=${text}\n`);
    console.log(
      `Usage: ${name} [OPTION]...\n\n${about}\nsystemd starts this program: see man socket-service\n\n${own.join("")}` +
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
