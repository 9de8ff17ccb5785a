/* The executables refuse input that no service manager passes, and have options. */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";

import { version } from "../../package.json";
import { executable, execute, scratch } from "../support/daemon.ts";
import { SERVICES } from "../support/services.ts";
import * as sockets from "../support/sockets.ts";
import { AF_INET, AF_UNIX, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM } from "../support/sockets.ts";

setDefaultTimeout(20_000);

const NAME = "socket-service";

const USAGE = 64;
const SYSTEM_CALL = 71;
const CONFIGURATION = 78;

const O_RDONLY = 0;
const O_WRONLY = 1;

const directory = scratch();
afterAll(() => directory[Symbol.dispose]());

let path = 0;
const freshPath = () => join(directory.path, `${path++}`);

/** Makes the descriptors to pass, and the ends that stay here, which must see nothing. */
type Passed = () => { fds: number[]; ours?: number[] };

const nothing: Passed = () => ({ fds: [] });
const one =
  (make: () => number): Passed =>
  () => ({ fds: [make()] });
/** The second of a pair. */
const end =
  (make: () => [number, number]): Passed =>
  () => {
    const [ours, theirs] = make();
    return { fds: [theirs], ours: [ours] };
  };

const toPort = (fd: number, type?: number) =>
  sockets.connected({ family: AF_INET, port: sockets.portOf(fd) }, type) ?? -1;
const listening: Passed = () => {
  const fd = sockets.listening(AF_INET, 5);
  return { fds: [fd], ours: [toPort(fd)] };
};
const connection = end(() => sockets.socketPair());
const tcpConnection = end(() => sockets.tcpPair());
const writeEnd = end(() => sockets.pipe());
const udp = one(() => sockets.bound(AF_INET, SOCK_DGRAM));

const WRONG_FOR_ALL: Record<string, Passed> = {
  "a directory": one(() => sockets.open("/", O_RDONLY)),
  "a file open for reading only": one(() => sockets.open(import.meta.path, O_RDONLY)),
  "a pipe's read end": () => ({ fds: [sockets.pipe()[0]] }),
  "a UDP socket": udp,
  "a connected UDP socket": end(() => {
    const ours = sockets.bound(AF_INET, SOCK_DGRAM);
    return [ours, toPort(ours, SOCK_DGRAM)];
  }),
  "a Unix datagram socket": one(() => sockets.bound(AF_UNIX, SOCK_DGRAM, freshPath())),
  "a connected Unix datagram socket": end(() => sockets.socketPair(SOCK_DGRAM)),
  "a Unix seqpacket socket": one(() => sockets.bound(AF_UNIX, SOCK_SEQPACKET, freshPath())),
  "a connected Unix seqpacket socket": end(() => sockets.socketPair(SOCK_SEQPACKET)),
  "a bound TCP socket that does not listen": one(() => sockets.bound(AF_INET, SOCK_STREAM)),
  "a bound Unix socket that does not listen": one(() =>
    sockets.bound(AF_UNIX, SOCK_STREAM, freshPath()),
  ),
};
const WRONG_FOR_LISTENER: Record<string, Passed> = {
  ...WRONG_FOR_ALL,
  "a character device": one(() => sockets.open("/dev/null", O_WRONLY)),
  "a pipe's write end": writeEnd,
  "a connected Unix socket": connection,
  "a connected TCP socket": tcpConnection,
};
const WRONG_FOR_CONNECTION: Record<string, Passed> = {
  ...WRONG_FOR_ALL,
  "a listening TCP socket": listening,
  "a listening Unix socket": one(() => sockets.listening(AF_UNIX, 5, freshPath())),
};

interface Case {
  readonly passed?: Passed;
  readonly env?: Record<string, string | undefined>;
  readonly args?: string[];
  readonly status?: number;
  /** The line on stderr, after the service's name. */
  readonly says: RegExp;
  /** Started in place of the service itself. */
  readonly script?: string;
}

/** Runs a service with bad input: it writes one line, with the fault and the remedy, and no more. */
async function expectRefusal(name: string, { passed = nothing, ...input }: Case) {
  const { fds, ours = [] } = passed();
  await using service = execute(input.script ?? name, fds, input.env, input.args);
  fds.forEach(sockets.close);
  expect(await service.status()).toBe(input.status ?? CONFIGURATION);
  expect(service.stderr).toMatch(RegExp(`^${name}: ${input.says.source}[^\n]*: [^\n]+\n$`));
  expect(await service.process.stdout.text()).toBe("");
  for (const fd of ours) {
    expect(sockets.peek(fd)).toBe("");
    sockets.close(fd);
  }
}

// The values that are no number, name or process id are in test/unit/environment.test.ts.
for (const [name, passed] of [
  ["socket-service", listening],
  ["socket-service-accepted", connection],
] as const)
  describe(`${name} refuses`, () => {
    const VARIABLES: Record<string, [Case["env"], RegExp]> = {
      "to start by itself": [
        { LISTEN_PID: undefined, LISTEN_FDS: undefined },
        /no (socket|connection) was passed, because LISTEN_PID is not set/,
      ],
      "sockets for another process": [
        { LISTEN_PID: "2147483647" },
        /no (socket|connection) was passed, because LISTEN_PID is 2147483647 and this is process \d+/,
      ],
      "a malformed LISTEN_FDS": [{ LISTEN_FDS: "1x" }, /LISTEN_FDS is "1x"/],
      "more names than descriptors": [{ LISTEN_FDNAMES: "a:b" }, /LISTEN_FDNAMES "a:b"/],
      "more descriptors than were passed": [
        { LISTEN_FDS: "3" },
        /(descriptor 4 is|LISTEN_FDS is 3)/,
      ],
    };
    test.each(Object.entries(VARIABLES))("%s", (_, [env, says]) =>
      expectRefusal(name, { passed, env: env ?? {}, says }),
    );

    test("a descriptor that is not open", () =>
      expectRefusal(name, {
        env: { LISTEN_FDS: "1" },
        says: /descriptor 3 is not (open|a socket)/,
      }));
  });

describe("socket-service refuses", () => {
  test.each(Object.entries(WRONG_FOR_LISTENER))("%s", (_, passed) =>
    expectRefusal(NAME, { passed, says: /descriptor 3 is an? .*listening/ }),
  );

  test("a wrong descriptor after a right one, which serves nobody", () =>
    expectRefusal(NAME, {
      passed: () => {
        const first = listening();
        return { ...first, fds: [...first.fds, ...udp().fds] };
      },
      says: /descriptor 4 is an? .*datagram/,
    }));

  test("a malformed WATCHDOG_USEC, before it serves anybody", () =>
    expectRefusal(NAME, {
      passed: listening,
      env: { WATCHDOG_USEC: "soon" },
      says: /WATCHDOG_USEC is "soon"/,
    }));
});

test("socket-service with too few descriptors says which limit to raise", async () => {
  const { fds, ours = [] } = listening();
  await using service = execute("../test/activate/limited.sh", fds, {}, ["7"]);
  [...fds, ...ours].forEach(sockets.close);
  expect(await service.status()).toBe(SYSTEM_CALL);
  expect(service.stderr).toMatch(
    /^socket-service: [a-z]+ failed, too many open files \(EMFILE\): raise LimitNOFILE= \(ulimit -n\)\n$/,
  );
});

describe("socket-service-accepted refuses", () => {
  test.each(Object.entries(WRONG_FOR_CONNECTION))("%s", (_, passed) =>
    expectRefusal("socket-service-accepted", { passed, says: /descriptor 3 is/ }),
  );

  test("several connections", () =>
    expectRefusal("socket-service-accepted", {
      passed: () => {
        const [first, second] = [connection(), connection()];
        return { ...first, fds: [...first.fds, ...second.fds] };
      },
      says: /LISTEN_FDS is 2/,
    }));
});

describe("socket-service-inet refuses", () => {
  const script = "../test/activate/stdout.sh";
  const says = /descriptor 1 is/;

  test("to run with stdout closed", () =>
    expectRefusal("socket-service-inet", { script, args: [">&-"], says }));

  test.each(Object.entries(WRONG_FOR_CONNECTION))("%s as stdout", (_, passed) =>
    expectRefusal("socket-service-inet", { script, passed, args: [">&3"], says }),
  );
});

describe("socket-service-accepted and socket-service-inet print the greeting", () => {
  test("to a pipe", async () => {
    const { fds, ours: [read = -1] = [] } = writeEnd();
    await using service = execute("socket-service-accepted", fds);
    fds.forEach(sockets.close);
    expect(await service.status()).toBe(0);
    expect(await Bun.file(read).text()).toBe("This socket was already accepted\n");
  });

  test("to a file, after its text", async () => {
    const file = freshPath();
    const script = `(echo before; "$0"; echo after) >"$1"`;
    const command = ["sh", "-c", script, executable("socket-service-inet"), file];
    expect(await Bun.spawn(command, { stdin: "ignore" }).exited).toBe(0);
    expect(await Bun.file(file).text()).toBe(
      "before\nThis socket was passed on stdin/stdout\nafter\n",
    );
  });

  test("to a reader that has gone, which is normal", async () => {
    const { fds, ours = [] } = writeEnd();
    ours.forEach(sockets.close);
    await using service = execute("socket-service-accepted", fds);
    fds.forEach(sockets.close);
    expect(await service.status()).toBe(0);
    expect(service.stderr).toBe("");
  });

  test("and say that a full disk is one", () =>
    expectRefusal("socket-service-accepted", {
      passed: one(() => sockets.open("/dev/full", O_WRONLY)),
      status: SYSTEM_CALL,
      says: /ENOSPC/,
    }));
});

test.each(SERVICES)(
  "$name in a deleted directory does not start, with status 1",
  async ({ name }) => {
    const script = 'mkdir "$1" && cd "$1" && rmdir "$1" && exec "$0"';
    const command = ["/bin/sh", "-c", script, executable(name), freshPath()];
    const child = Bun.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
    expect([await child.exited, await child.stdout.text()]).toEqual([1, ""]);
    expect(await child.stderr.text()).toMatch(
      /^error: The current working directory was deleted[^\n]*\n$/,
    );
  },
);

test.each(SERVICES)("$name reads no file in the working directory", async ({ name }) => {
  using directory = scratch();
  const outcome = async () => {
    const env = { LISTEN_PID: undefined, LISTEN_FDS: undefined };
    await using service = execute(name, [], env, [], directory.path);
    return { status: await service.status(), stderr: service.stderr };
  };
  const before = await outcome();
  const write = (file: string, text: string) => writeFileSync(join(directory.path, file), text);
  write(".env", "LISTEN_PID=malformed\nLISTEN_FDS=1\n");
  write("bunfig.toml", 'preload = ["./loaded.ts"]\n');
  write("loaded.ts", 'throw new Error("loaded");\n');
  expect(await outcome()).toEqual(before);
});

test("an error has its level before it if stderr is the journal, and only then", async () => {
  await using journal = execute("../test/activate/journal.sh", [], {}, ["socket-service"]);
  expect(await journal.status()).toBe(CONFIGURATION);
  expect(journal.stderr).toMatch(/^<3>socket-service: LISTEN_FDS is "0"[^\n]*\n$/);
  await expectRefusal(NAME, { env: { JOURNAL_STREAM: "1:1" }, says: /LISTEN_FDS/ });
});

const OPTIONS: Record<string, string[]> = {
  "an unknown option": ["--idle"],
  "an unknown short option": ["-v"],
  "an argument": ["4000"],
  "a value for --help": ["--help=yes"],
};
const TIMEOUTS = ["", "0", "0.0", "-1", "1e3", "0x10", " 1", "1 ", ".5", "5.", "1,5", "Infinity"];

describe("options:", () => {
  for (const { name } of SERVICES) {
    test.each(Object.entries(OPTIONS))(`${name} refuses %s`, (_, args) =>
      expectRefusal(name, { args, status: USAGE, says: RegExp(`.*'${args[0]?.split("=")[0]}`) }),
    );

    test.each([
      ["--help", `Usage: ${name} [OPTION]...\n`],
      ["--version", `${name} ${version}\n`],
    ])(`${name} %s prints it and exits`, async (option, begin) => {
      await using service = execute(name, [], { LISTEN_FDS: undefined }, [option]);
      expect(await service.process.stdout.text()).toStartWith(begin);
      expect(await service.status()).toBe(0);
      expect(service.stderr).toBe("");
    });
  }

  test.each(TIMEOUTS)("socket-service refuses --idle-timeout=%j", (value) =>
    expectRefusal(NAME, {
      passed: listening,
      args: [`--idle-timeout=${value}`],
      status: USAGE,
      says: /--idle-timeout is "/,
    }),
  );

  test("socket-service refuses --idle-timeout without a value", () =>
    expectRefusal(NAME, { args: ["--idle-timeout"], status: USAGE, says: /.*--idle-timeout/ }));

  test("socket-service --help names the default of --idle-timeout, 30 seconds", async () => {
    await using service = execute(NAME, [], {}, ["--help"]);
    expect(await service.process.stdout.text()).toMatch(
      /^  --idle-timeout=SECONDS .* \(default: 30; "infinity" means never\)$/m,
    );
  });
});
