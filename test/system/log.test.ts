/** Entries of the journal, as a real journald has them. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";

import { until } from "../support/until.ts";
import { cannotRun, nothingFailed } from "./harness.ts";
import { BUN, CHECKOUT, Machine } from "../support/machine.ts";

setDefaultTimeout(60_000);

/** An entry as `journalctl --output=json` has it: bytes that are not text are numbers. */
type Entry = Readonly<Record<string, unknown>>;

describe.skipIf(cannotRun)("log, in a service", () => {
  let machine: Machine;
  beforeAll(async () => void (machine = await Machine.boot()));
  afterAll(() => nothingFailed(machine));

  /** Runs a program as a service that nobody can tell from root's but by its rights. */
  async function run(unit: string, program: string, ...properties: string[]): Promise<void> {
    const source = `import { log, LogLevel } from "${CHECKOUT}/src/activation/index.ts";\n${program}`;
    await machine.write(`/srv/programs/${unit}.ts`, source);
    const options = ["DynamicUser=yes", ...properties].map((it) => `--property=${it}`);
    const command = [BUN, `/srv/programs/${unit}.ts`];
    await machine.must(
      "systemd-run",
      "--quiet",
      "--wait",
      `--unit=${unit}`,
      ...options,
      ...command,
    );
  }

  /** Returns the entries of the journal that match, whatever their size. */
  async function entries(...matches: string[]): Promise<Entry[]> {
    await machine.must("journalctl", "--sync");
    const json = await machine.must("journalctl", "--output=json", "--all", ...matches);
    return json
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => JSON.parse(line));
  }

  test("every field is in the entry: several values, newlines, bytes", async () => {
    await run(
      "fields",
      `log(LogLevel.notice, "two\\nlines ü", {
        ORDER_ID: 4711, BIG: 2n ** 64n, PAID: false, EMPTY: "", ABSENT: undefined,
        REASON: ["limit", "a b", "c\\nd"], DIGEST: Uint8Array.of(0, 10, 255, 61),
      });`,
    );
    const [entry, ...more] = await entries("ORDER_ID=4711");
    expect(more).toEqual([]);
    expect(entry).toMatchObject({
      MESSAGE: "two\nlines ü",
      PRIORITY: "5",
      SYSLOG_IDENTIFIER: "fields.ts",
      ORDER_ID: "4711",
      BIG: "18446744073709551616",
      PAID: "false",
      EMPTY: "",
      REASON: ["limit", "a b", "c\nd"],
      DIGEST: [0, 10, 255, 61],
      _TRANSPORT: "journal",
    });
    expect(entry).not.toHaveProperty("ABSENT");
  });

  test("a megabyte is kept, in the message and in a field", async () => {
    await run(
      "megabyte",
      `const text = "0123456789abcdef".repeat(1 << 16);
      log(LogLevel.info, text, { SYSLOG_IDENTIFIER: "large", TEXT: text, LINES: text + "\\n" });`,
    );
    const text = "0123456789abcdef".repeat(1 << 16);
    const [{ MESSAGE, TEXT, LINES } = {}] = await entries("SYSLOG_IDENTIFIER=large");
    expect([MESSAGE === text, TEXT === text, LINES === `${text}\n`]).toEqual([true, true, true]);
  });

  test("a compiled program is named after its executable, also while that is replaced", async () => {
    // An upgrade takes its file away while it runs.
    const source = `import { unlinkSync } from "node:fs";
      import { log, LogLevel } from "${CHECKOUT}/src/activation/index.ts";
      unlinkSync("/srv/programs/renamed");
      log(LogLevel.info, "compiled");`;
    await machine.write("/srv/programs/source.ts", source);
    const build = [
      "build",
      "--compile",
      "/srv/programs/source.ts",
      "--outfile",
      "/srv/programs/built",
    ];
    await machine.must(BUN, ...build);
    await machine.must("mv", "/srv/programs/built", "/srv/programs/renamed");
    await machine.must("systemd-run", "--quiet", "--wait", "/srv/programs/renamed");
    expect(await entries("SYSLOG_IDENTIFIER=renamed")).toMatchObject([{ MESSAGE: "compiled" }]);
  });

  for (const [what, ...properties] of [
    ["FFI", "MemoryDenyWriteExecute=yes", "Environment=BUN_JSC_useJIT=0"],
    ["AF_UNIX", "RestrictAddressFamilies=AF_INET"],
    ["the journal's socket", "InaccessiblePaths=/run/systemd/journal/socket"],
  ] as const)
    test(`without ${what}, the journal gets the line with its level`, async () => {
      const unit = `without-${properties[0].split("=")[0]}`;
      await run(unit, `log(LogLevel.error, "two\\nlines", { N: 1 });`, ...properties);
      expect(await entries(`--unit=${unit}`, "PRIORITY=3")).toMatchObject([
        { MESSAGE: "two lines N=1", _TRANSPORT: "stdout" },
      ]);
    });

  test("a warning of socket-service is an entry of its level", async () => {
    const socket = "--socket-property=ListenStream=/run/unheard";
    const manager = "--setenv=NOTIFY_SOCKET=/nonexistent/notify";
    const service = `${CHECKOUT}/dist/socket-service`;
    await machine.must("systemd-run", "--quiet", "--unit=unheard", socket, manager, service);
    await machine.systemctl("start", "unheard.service");
    const warnings = await until("there is a warning", 10, async () => {
      const found = await entries("--unit=unheard", "PRIORITY=4");
      return found.length > 0 && found;
    });
    expect(warnings).toMatchObject([
      {
        MESSAGE: expect.stringMatching(/^cannot notify .*\/nonexistent\/notify/),
        SYSLOG_IDENTIFIER: "socket-service",
        _TRANSPORT: "journal",
      },
    ]);
    await machine.systemctl("stop", "unheard.socket", "unheard.service");
  });

  test("a burst on a busy machine is kept whole", async () => {
    const spinning = "for (;;);";
    const busy = Array.from({ length: 2 }, () => Bun.spawn([process.execPath, "-e", spinning]));
    const journald = await machine.show("systemd-journald.service", "MainPID");
    // So busy that the journal has no turn until its queue is full, which takes some 50 ms.
    await machine.must("kill", "-STOP", journald);
    try {
      await run(
        "burst",
        `Bun.spawn(["sh", "-c", "sleep 0.3; kill -CONT ${journald}"]);
        let lost = 0;
        for (let n = 0; n < 2000; n++)
          if (!log(LogLevel.info, "one of many", { N: n, SYSLOG_IDENTIFIER: "burst" })) lost++;
        if (lost > 0) throw new Error(lost + " are lost");`,
        // Otherwise journald itself drops them from 10,000 in 30 seconds on.
        "LogRateLimitIntervalSec=0",
        "DynamicUser=no",
      );
    } finally {
      await machine.must("kill", "-CONT", journald);
      for (const process of busy) process.kill("SIGKILL");
    }
    const numbers = (await entries("SYSLOG_IDENTIFIER=burst")).map(({ N }) => Number(N));
    expect(numbers).toEqual(Array.from({ length: 2000 }, (_, n) => n));
  });

  test("a journal that stands still stops no service, and lost entries are counted", async () => {
    const program = `
      import { log, LogLevel, notify, startWatchdog } from "${CHECKOUT}/src/activation/index.ts";
      const entry = (N) => log(LogLevel.info, "it", { N, SYSLOG_IDENTIFIER: "still" });
      startWatchdog();
      let written = 0, rounds = 0;
      process.on("SIGUSR1", () => {
        for (let n = 0; n < 1000; n++) if (entry(written)) written++;
        // Descriptors do not wait either.
        if (log(LogLevel.info, "x".repeat(1 << 20))) throw new Error("it was written");
        notify({ status: \`round \${++rounds}, \${written} written\` });
      });
      process.on("SIGUSR2", () => notify({ status: \`room: \${entry(written)}\` }));
      setInterval(() => {}, 60_000);
      notify({ ready: true, status: "up" });`;
    await machine.write("/srv/programs/still.ts", program);
    const start = ["systemd-run", "--quiet", "--unit=still", "--service-type=notify"];
    await machine.must(...start, "--property=WatchdogSec=5", BUN, "/srv/programs/still.ts");
    const pid = await machine.show("still", "MainPID");
    const journald = await machine.show("systemd-journald.service", "MainPID");
    const says = async (pattern: RegExp) => {
      const shown = async () => pattern.exec(await machine.show("still", "StatusText"))?.[0];
      return await until(`the status is ${pattern}`, 20, shown);
    };
    // A stopped journald reads nothing: entries wait in its queue until that is full.
    await machine.must("kill", "-STOP", journald);
    let written = 0;
    try {
      for (const round of [1, 2, 3]) {
        await machine.must("kill", "-USR1", pid);
        const status = await says(RegExp(`^round ${round}, .* written$`));
        written = Number(status.split(" ")[2]);
      }
      expect(written).toBeWithin(1, 1000);
    } finally {
      await machine.must("kill", "-CONT", journald);
    }
    // The entries that were written arrive, and no others.
    const arrived = async () => await entries("SYSLOG_IDENTIFIER=still");
    await until(
      "the journal has read its queue",
      10,
      async () => (await arrived()).length === written,
    );
    await machine.must("kill", "-USR2", pid);
    await says(/^room: true$/);
    const numbers = (await arrived()).map(({ N }) => Number(N));
    expect(numbers).toEqual(Array.from({ length: written + 1 }, (_, n) => n));
    const [warning, ...more] = await entries("--unit=still", "PRIORITY=4");
    expect([warning?.["MESSAGE"], more]).toEqual([
      `log entries were lost, because the journal or stderr was full: ${3003 - written}`,
      [],
    ]);
    expect(await machine.show("still", "MainPID")).toBe(pid);
    expect(await machine.show("still", "NRestarts")).toBe("0");
    await machine.systemctl("stop", "still");
  });
});
