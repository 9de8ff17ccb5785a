/** Entries of the journal, as a real journald has them. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";

import { until } from "../support/until.ts";
import { cannotRun, nothingFailed } from "./harness.ts";
import { BUN, CHECKOUT, Machine } from "./machine.ts";

setDefaultTimeout(60_000);

/** An entry as `journalctl --output=json` has it: bytes that are not text are numbers. */
type Entry = Readonly<Record<string, unknown>>;

describe.skipIf(cannotRun)("log, in a service", () => {
  let machine: Machine;
  beforeAll(async () => {
    machine = await Machine.boot();
  });
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

  /** What the journal has of a program: all of it, whatever the size. */
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

  test("a compiled program is named after its executable", async () => {
    const source = `import { log, LogLevel } from "${CHECKOUT}/src/activation/index.ts";
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
    await machine.must("systemctl", "start", "unheard.service");
    const warnings = await until("there is a warning", 10, async () => {
      const found = await entries("--unit=unheard", "PRIORITY=4");
      return found.length > 0 && found;
    });
    expect(warnings).toMatchObject([
      {
        MESSAGE: expect.stringMatching(/^socket-service: cannot notify .*\/nonexistent\/notify/),
        SYSLOG_IDENTIFIER: "socket-service",
        _TRANSPORT: "journal",
      },
    ]);
    await machine.must("systemctl", "stop", "unheard.socket", "unheard.service");
  });

  test("a full journal drops, and log says so", async () => {
    // A stopped journald reads nothing: entries wait in its queue until that is full.
    const journald = await machine.show("systemd-journald.service", "MainPID");
    await machine.must("kill", "-STOP", journald);
    try {
      await run(
        "full",
        `let sent = 0;
        const attempt = () => log(LogLevel.info, "waits", { N: sent, SYSLOG_IDENTIFIER: "waiting" });
        while (attempt()) sent++;
        const dropped = [attempt(), log(LogLevel.info, "x".repeat(1 << 20)), attempt()];
        await Bun.write("/run/full/result", JSON.stringify({ sent, dropped }));`,
        "RuntimeDirectory=full",
        "RuntimeDirectoryPreserve=yes",
      );
    } finally {
      await machine.must("kill", "-CONT", journald);
    }
    const { sent, dropped } = JSON.parse(await machine.must("cat", "/run/full/result"));
    expect(dropped).toEqual([false, false, false]);
    expect(sent).toBeGreaterThan(0);
    // What was written arrives, and nothing else.
    const arrived = await until("the journal has read its queue", 10, async () => {
      const all = await entries("SYSLOG_IDENTIFIER=waiting");
      return all.length >= sent && all;
    });
    expect(arrived.map(({ N }) => Number(N))).toEqual(Array.from({ length: sent }, (_, n) => n));
  });
});
