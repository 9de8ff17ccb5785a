import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";

import { executable, execute, scratch, SERVICES } from "../support/daemon.ts";
import * as sockets from "../support/sockets.ts";
import { AF_INET, AF_UNIX, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM } from "../support/sockets.ts";

setDefaultTimeout(20_000);

const USAGE = 64;
const CONFIGURATION = 78;

const O_RDONLY = 0;
const O_WRONLY = 1;

const directory = scratch();
afterAll(() => directory[Symbol.dispose]());

/** What to pass, made anew for each case; the ends that stay here must see nothing. */
type Passed = () => { fds: number[]; ours?: number[] };

let path = 0;
const freshPath = () => join(directory.path, `${path++}`);

const nothing: Passed = () => ({ fds: [] });
const listening: Passed = () => {
  const fd = sockets.listening(AF_INET, 5);
  return {
    fds: [fd],
    ours: [sockets.connected({ family: AF_INET, port: sockets.portOf(fd) }) ?? -1],
  };
};
const connection: Passed = () => {
  const [ours, theirs] = sockets.socketPair();
  return { fds: [theirs], ours: [ours] };
};
const tcpConnection: Passed = () => {
  const fd = sockets.listening(AF_INET, 5);
  const ours = sockets.connected({ family: AF_INET, port: sockets.portOf(fd) }) ?? -1;
  const theirs = sockets.accept(fd);
  sockets.close(fd);
  return { fds: [theirs], ours: [ours] };
};
const pair =
  (type: number): Passed =>
  () => {
    const [ours, theirs] = sockets.socketPair(type);
    return { fds: [theirs], ours: [ours] };
  };
const one =
  (make: () => number): Passed =>
  () => ({ fds: [make()] });
const udp = one(() => sockets.bound(AF_INET, SOCK_DGRAM));
const connectedUdp: Passed = () => {
  const ours = sockets.bound(AF_INET, SOCK_DGRAM);
  const theirs = sockets.connected({ family: AF_INET, port: sockets.portOf(ours) }, SOCK_DGRAM);
  return { fds: [theirs ?? -1], ours: [ours] };
};
const readEnd: Passed = () => {
  const [read] = sockets.pipe();
  return { fds: [read] };
};
const writeEnd: Passed = () => {
  const [read, write] = sockets.pipe();
  return { fds: [write], ours: [read] };
};

interface Case {
  readonly passed?: Passed;
  readonly env?: Record<string, string | undefined>;
  readonly args?: string[];
  readonly status?: number;
  /** What the one line on stderr has to name. */
  readonly names: RegExp;
}

/** Runs a service with bad input and checks all that is promised of it. */
async function expectRefusal(name: string, { passed, env, args, status, names }: Case) {
  const { fds, ours = [] } = (passed ?? nothing)();
  const began = performance.now();
  await using service = execute(name, fds, env, args);
  fds.forEach(sockets.close);
  expect(await service.status()).toBe(status ?? CONFIGURATION);
  expect(performance.now() - began).toBeLessThan(2000);
  // One line, which says what is wrong and, after a colon, what to do.
  expect(service.stderr).toMatch(new RegExp(`^${name}: [^\n]+: [^\n]+\n$`));
  expect(service.stderr).toMatch(names);
  expect(await service.process.stdout.text()).toBe("");
  for (const fd of ours) {
    expect(sockets.peek(fd)).toBe("");
    sockets.close(fd);
  }
}

/** The two that read LISTEN_*, each with the socket it wants: only the variables are wrong. */
const READERS = [
  ["socket-service", listening],
  ["socket-service-accepted", connection],
] as const;

const VARIABLES: Record<string, Case> = {
  "no LISTEN_PID": { env: { LISTEN_PID: undefined }, names: /LISTEN_PID is not set/ },
  "an empty LISTEN_PID": { env: { LISTEN_PID: "" }, names: /LISTEN_PID is ""/ },
  "a word as LISTEN_PID": { env: { LISTEN_PID: "me" }, names: /LISTEN_PID is "me"/ },
  "zero as LISTEN_PID": { env: { LISTEN_PID: "0" }, names: /LISTEN_PID is "0"/ },
  "a negative LISTEN_PID": { env: { LISTEN_PID: "-1" }, names: /LISTEN_PID is "-1"/ },
  "a LISTEN_PID in hex": { env: { LISTEN_PID: "0x1" }, names: /LISTEN_PID is "0x1"/ },
  "a LISTEN_PID with a line break": { env: { LISTEN_PID: "1\n2" }, names: /LISTEN_PID is "1\\n2"/ },
  "a LISTEN_PID beyond any": {
    env: { LISTEN_PID: "4294967297" },
    names: /LISTEN_PID is "4294967297"/,
  },
  "another process's LISTEN_PID": {
    env: { LISTEN_PID: "1" },
    names: /LISTEN_PID is 1 and this is/,
  },
  "a word as LISTEN_PIDFDID": { env: { LISTEN_PIDFDID: "x" }, names: /LISTEN_PIDFDID is "x"/ },
  "an empty LISTEN_PIDFDID": { env: { LISTEN_PIDFDID: "" }, names: /LISTEN_PIDFDID is ""/ },
  "another process's LISTEN_PIDFDID": {
    env: { LISTEN_PIDFDID: "1" },
    names: /LISTEN_PIDFDID is 1 and this is/,
  },
  "no LISTEN_FDS": { env: { LISTEN_FDS: undefined }, names: /LISTEN_FDS is not set/ },
  "an empty LISTEN_FDS": { env: { LISTEN_FDS: "" }, names: /LISTEN_FDS is ""/ },
  "a word as LISTEN_FDS": { env: { LISTEN_FDS: "one" }, names: /LISTEN_FDS is "one"/ },
  "zero as LISTEN_FDS": { env: { LISTEN_FDS: "0" }, names: /LISTEN_FDS is "0"/ },
  "a negative LISTEN_FDS": { env: { LISTEN_FDS: "-1" }, names: /LISTEN_FDS is "-1"/ },
  "a LISTEN_FDS with a plus": { env: { LISTEN_FDS: "+1" }, names: /LISTEN_FDS is "\+1"/ },
  "a LISTEN_FDS with a space before": { env: { LISTEN_FDS: " 1" }, names: /LISTEN_FDS is " 1"/ },
  "a LISTEN_FDS with a space after": { env: { LISTEN_FDS: "1 " }, names: /LISTEN_FDS is "1 "/ },
  "a LISTEN_FDS in hex": { env: { LISTEN_FDS: "0x1" }, names: /LISTEN_FDS is "0x1"/ },
  "a LISTEN_FDS with a leading zero": { env: { LISTEN_FDS: "01" }, names: /LISTEN_FDS is "01"/ },
  "a LISTEN_FDS with a fraction": { env: { LISTEN_FDS: "1.0" }, names: /LISTEN_FDS is "1.0"/ },
  "a LISTEN_FDS with trailing text": { env: { LISTEN_FDS: "1x" }, names: /LISTEN_FDS is "1x"/ },
  "a LISTEN_FDS of too many digits": {
    env: { LISTEN_FDS: "10000000000" },
    names: /LISTEN_FDS is "10000000000"/,
  },
  "a LISTEN_FDS beyond what was passed": { env: { LISTEN_FDS: "9" }, names: /LISTEN_FDS is 9/ },
  "more names than descriptors": { env: { LISTEN_FDNAMES: "a:b" }, names: /LISTEN_FDNAMES "a:b"/ },
  "an empty name": { env: { LISTEN_FDNAMES: "" }, names: /LISTEN_FDNAMES holds ""/ },
  "a name with a control character": {
    env: { LISTEN_FDNAMES: "a\tb" },
    names: /LISTEN_FDNAMES holds "a\\tb"/,
  },
  "a name too long": {
    env: { LISTEN_FDNAMES: "n".repeat(256) },
    names: /LISTEN_FDNAMES holds "nnn/,
  },
};

for (const [name, passed] of READERS)
  describe(`${name} refuses`, () => {
    test.each(Object.entries(VARIABLES))("%s", (_, what) =>
      expectRefusal(name, { passed, ...what }),
    );

    test("fewer names than descriptors", () =>
      expectRefusal(name, {
        passed: () => ({ fds: [...passed().fds, ...passed().fds] }),
        env: { LISTEN_FDNAMES: "a" },
        names: /LISTEN_FD(NAMES "a"|S is 2)/,
      }));

    test("a descriptor that is not open", () =>
      expectRefusal(name, { env: { LISTEN_FDS: "1" }, names: /descriptor 3 is not open/ }));

    test("to start outside of any service manager", () =>
      expectRefusal(name, {
        env: { LISTEN_PID: undefined, LISTEN_FDS: undefined },
        names: /no socket was passed.*systemd-socket-activate/,
      }));
  });

const WRONG_FOR_LISTENER: Record<string, Passed> = {
  "a regular file": one(() => sockets.open(import.meta.path, O_RDONLY)),
  "a directory": one(() => sockets.open("/", O_RDONLY)),
  "a character device": one(() => sockets.open("/dev/null", O_WRONLY)),
  "a pipe's read end": readEnd,
  "a pipe's write end": writeEnd,
  "a UDP socket": udp,
  "a Unix datagram socket": one(() => sockets.bound(AF_UNIX, SOCK_DGRAM, freshPath())),
  "a Unix seqpacket socket": one(() => sockets.bound(AF_UNIX, SOCK_SEQPACKET, freshPath())),
  "a bound TCP socket that does not listen": one(() => sockets.bound(AF_INET, SOCK_STREAM)),
  "a bound Unix socket that does not listen": one(() =>
    sockets.bound(AF_UNIX, SOCK_STREAM, freshPath()),
  ),
  "a connected Unix socket": connection,
  "a connected TCP socket": tcpConnection,
};

describe("socket-service refuses", () => {
  test.each(Object.entries(WRONG_FOR_LISTENER))("%s", (_, passed) =>
    expectRefusal("socket-service", { passed, names: /descriptor 3 is an? .*listening/ }),
  );

  test("a wrong descriptor after a right one, which serves nobody", () =>
    expectRefusal("socket-service", {
      passed: () => {
        const first = listening();
        return { fds: [...first.fds, ...udp().fds], ours: first.ours ?? [] };
      },
      names: /descriptor 4 is an? .*datagram/,
    }));

  test.each(["", "0", "-1", "soon", "1e6"])("WATCHDOG_USEC=%j", (value) =>
    expectRefusal("socket-service", {
      passed: listening,
      env: { WATCHDOG_USEC: value },
      names: /WATCHDOG_USEC is "/,
    }),
  );

  test("descriptors with a gap", () =>
    expectRefusal("socket-service", {
      passed: listening,
      env: { LISTEN_FDS: "3" },
      names: /descriptor 4 is/,
    }));
});

const WRONG_FOR_CONNECTION: Record<string, Passed> = {
  "a directory": one(() => sockets.open("/", O_RDONLY)),
  "a file open for reading only": one(() => sockets.open(import.meta.path, O_RDONLY)),
  "a pipe's read end": readEnd,
  "a UDP socket": udp,
  "a connected UDP socket": connectedUdp,
  "a Unix datagram socket": one(() => sockets.bound(AF_UNIX, SOCK_DGRAM, freshPath())),
  "a connected Unix datagram socket": pair(SOCK_DGRAM),
  "a connected Unix seqpacket socket": pair(SOCK_SEQPACKET),
  "a bound TCP socket that does not listen": one(() => sockets.bound(AF_INET, SOCK_STREAM)),
  "a bound Unix socket that does not listen": one(() =>
    sockets.bound(AF_UNIX, SOCK_STREAM, freshPath()),
  ),
  "a listening TCP socket": listening,
  "a listening Unix socket": one(() => sockets.listening(AF_UNIX, 5, freshPath())),
};

describe("socket-service-accepted refuses", () => {
  test.each(Object.entries(WRONG_FOR_CONNECTION))("%s", (_, passed) =>
    expectRefusal("socket-service-accepted", { passed, names: /descriptor 3 is/ }),
  );

  test("several connections", () =>
    expectRefusal("socket-service-accepted", {
      passed: () => {
        const [first, second] = [connection(), connection()];
        return {
          fds: [...first.fds, ...second.fds],
          ours: [...(first.ours ?? []), ...(second.ours ?? [])],
        };
      },
      names: /LISTEN_FDS is 2/,
    }));
});

describe("socket-service-inet refuses", () => {
  /** The descriptor as stdout instead of as number 3; undefined closes stdout. */
  async function expectStdoutRefused(passed: Passed | undefined) {
    const redirection = passed === undefined ? ">&-" : ">&3";
    const { fds, ours = [] } = passed?.() ?? { fds: [] };
    const began = performance.now();
    await using service = execute("../test/activate/stdout.sh", fds, {}, [redirection]);
    fds.forEach(sockets.close);
    expect(await service.status()).toBe(CONFIGURATION);
    expect(performance.now() - began).toBeLessThan(2000);
    expect(service.stderr).toMatch(/^socket-service-inet: descriptor 1 is [^\n]+: [^\n]+\n$/);
    for (const fd of ours) {
      expect(sockets.peek(fd)).toBe("");
      sockets.close(fd);
    }
  }

  test("to run with stdout closed", () => expectStdoutRefused(undefined));

  test.each(Object.entries(WRONG_FOR_CONNECTION))("%s as stdout", (_, passed) =>
    expectStdoutRefused(passed),
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

  test("to a file, after what is there", async () => {
    const file = freshPath();
    const shell = Bun.spawn(
      [
        "sh",
        "-c",
        `(echo before; "$0"; echo after) >"$1"`,
        executable("socket-service-inet"),
        file,
      ],
      { stdin: "ignore" },
    );
    expect(await shell.exited).toBe(0);
    expect(await Bun.file(file).text()).toBe(
      "before\nThis socket was passed on stdin/stdout\nafter\n",
    );
  });

  test("to a reader that has gone, which is normal", async () => {
    const { fds, ours: [read = -1] = [] } = writeEnd();
    sockets.close(read);
    await using service = execute("socket-service-accepted", fds);
    fds.forEach(sockets.close);
    expect(await service.status()).toBe(0);
    expect(service.stderr).toBe("");
  });

  test("and say that a full disk is one", async () => {
    const fd = sockets.open("/dev/full", O_WRONLY);
    await using service = execute("socket-service-accepted", [fd]);
    sockets.close(fd);
    expect(await service.status()).toBe(71);
    expect(service.stderr).toMatch(/^socket-service-accepted: .*ENOSPC[^\n]*\n$/);
  });
});

test("an error has its level before it where stderr is the journal, and only there", async () => {
  await using journal = execute("../test/activate/journal.sh", [], {}, ["socket-service"]);
  expect(await journal.status()).toBe(CONFIGURATION);
  expect(journal.stderr).toMatch(/^<3>socket-service: LISTEN_FDS is "0"[^\n]*\n$/);
  await using other = execute("socket-service", [], { JOURNAL_STREAM: "1:1" });
  expect(await other.status()).toBe(CONFIGURATION);
  expect(other.stderr).toMatch(/^socket-service: /);
});

const OPTIONS: Record<string, string[]> = {
  "an unknown option": ["--idle"],
  "an unknown short option": ["-v"],
  "an argument": ["4000"],
  "a value for --help": ["--help=yes"],
};
const TIMEOUTS = [
  "",
  "0",
  "0.0",
  "-1",
  "+1",
  "1e3",
  "0x10",
  " 1",
  "1 ",
  "1s",
  ".5",
  "5.",
  "1,5",
  "NaN",
];

describe("bad options:", () => {
  for (const { name } of SERVICES)
    test.each(Object.entries(OPTIONS))(`${name} refuses %s`, (_, args) =>
      expectRefusal(name, { args, status: USAGE, names: new RegExp(`'${args[0]?.split("=")[0]}`) }),
    );

  test.each([...TIMEOUTS, "Infinity", "forever"])(
    "socket-service refuses --idle-timeout=%j",
    (value) =>
      expectRefusal("socket-service", {
        passed: listening,
        args: [`--idle-timeout=${value}`],
        status: USAGE,
        names: /--idle-timeout is "/,
      }),
  );

  test("socket-service refuses --idle-timeout without a value", () =>
    expectRefusal("socket-service", {
      args: ["--idle-timeout"],
      status: USAGE,
      names: /--idle-timeout/,
    }));
});

describe("good options:", () => {
  for (const { name } of SERVICES) {
    test(`${name} --help says how to use it`, async () => {
      await using service = execute(name, [], { LISTEN_FDS: undefined }, ["--help"]);
      expect(await service.process.stdout.text()).toStartWith(`Usage: ${name} [OPTION]...\n`);
      expect(await service.status()).toBe(0);
      expect(service.stderr).toBe("");
    });

    test(`${name} --version tells it`, async () => {
      await using service = execute(name, [], { LISTEN_FDS: undefined }, ["--version"]);
      expect(await service.process.stdout.text()).toBe(`${name} 1.0.0\n`);
      expect(await service.status()).toBe(0);
    });
  }
});
