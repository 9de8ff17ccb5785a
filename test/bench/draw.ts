/**
 * Puts the results of a run into the pages: the tables, and the picture of the restarts. So nobody
 * copies a figure by hand.
 *
 *   bun test/bench/draw.ts dist/bench/results.json
 */
import { join } from "node:path";

import { between } from "../support/between.ts";
import { WAYS } from "../support/instances.ts";
import { ours, services } from "./contenders.ts";
import { type Figure, findIn, median, percentile, ratio } from "./figures.ts";
import { NONE, sandboxGroup } from "./hardening.ts";
import { BURST, KINDS, rateOf, SHARING, SINGLE } from "./instances.ts";
import { ENDS_OF_ALL, RESTARTS, restartsGroup } from "./restarts.ts";

/** What a run writes as JSON. */
export interface Results {
  /** ISO 8601. */
  readonly date: string;
  readonly machine: string;
  readonly seconds: number;
  /** What was not measured, and why. */
  readonly notes: readonly string[];
  /** What is compared, the ratio, its middle half, the runs, the aim, whether it is met. */
  readonly ratios: readonly (readonly string[])[];
  readonly figures: readonly Figure[];
}

/** The file of the picture. */
export const PICTURE = "restarts.svg";

const TITLE = "12 restarts of an HTTP server, 64 connections";
/** Bars side by side, each column with its own scale. */
const COLUMNS = [
  { metric: "requests lost", title: "requests lost" },
  { metric: "longest wait ms", title: "longest wait, ms" },
] as const;
/** Bars one below the other. */
const BLOCKS = [
  { group: restartsGroup(64, 0), title: "no pause between requests" },
  { group: restartsGroup(64, 200), title: "pauses of up to 200 ms" },
] as const;

/** For somebody who has read nothing else. */
const NAMES: Record<string, string> = {
  [ours]: services.listen,
};
const HIGHLIGHTED = "drain";

// One picture is for light pages and dark ones, because an <img> does not follow the page everywhere:
// both colours have a contrast of 4.5 on white and on black.
const GREY = "#767676";
const BLUE = "#1976d2";
/** Units of the picture: about pixels, in a README's column. */
const WIDTH = 840;
const [TEXT, SMALL] = [22, 18];
const [ROW, BAR, GAP] = [34, 20, 8];
const BOLD = ' font-weight="bold"';
const SMALLER = ` font-size="${SMALL}"`;

const nameOf = (who: string): string => NAMES[who] ?? who;
/** Two significant digits of what is small; no decimals from 10 on. */
const label = (value: number): string =>
  value < 10 ? `${Number(value.toPrecision(2))}` : Math.round(value).toLocaleString("en");
const day = (date: string): string =>
  new Date(date).toLocaleDateString("en-GB", { dateStyle: "long", timeZone: "UTC" });
/** At most: 0.62 of the height for each character, in the widest of the usual fonts. */
const widthOf = (text: string): number => text.length * TEXT * 0.62;
const round = (coordinate: number): number => Number(coordinate.toFixed(1));

/** The picture as SVG, or undefined if the run has no figures for it. */
export function draw({ figures, date, machine }: Results): string | undefined {
  const valueOf = (group: string, metric: string, who: string): number | undefined =>
    findIn(figures, group, metric, who)?.samples[0];
  const ends = ENDS_OF_ALL.filter((end) =>
    BLOCKS.some(({ group }) => valueOf(group, COLUMNS[0].metric, end) !== undefined),
  );
  if (ends.length === 0) return undefined;

  const left = Math.max(...ends.map(widthOf)) + 2 * GAP;
  const width = (WIDTH - left) / COLUMNS.length;
  const axes = COLUMNS.map(({ metric, title }, i) => {
    const all = BLOCKS.flatMap(({ group }) => ends.map((end) => valueOf(group, metric, end) ?? 0));
    const room = Math.max(...all.map((value) => widthOf(label(value)))) + 3 * GAP;
    const scale = (width - room) / (Math.max(...all) || 1);
    return { metric, title, x: round(left + i * width), scale };
  });

  const shapes = [text(0, TEXT, TITLE, BOLD)];
  const descriptions: string[] = [];
  let y = TEXT + 2 * GAP;
  for (const { group, title } of BLOCKS) {
    shapes.push(text(0, (y += ROW), title));
    y += SMALL + GAP;
    shapes.push(...axes.map((axis) => text(axis.x, y, axis.title, SMALLER)));
    y += GAP;
    const top = y;
    const described: string[] = [];
    for (const end of ends) {
      const colour = end === HIGHLIGHTED ? BLUE : GREY;
      const style = end === HIGHLIGHTED ? ` fill="${BLUE}"${BOLD}` : "";
      const baseline = y + 24;
      shapes.push(text(left - GAP, baseline, end, ` text-anchor="end"${style}`));
      const values = axes.map(({ metric, x, scale }) => {
        const value = valueOf(group, metric, end);
        if (value === undefined) return "-";
        const length = round(scale * value);
        const place = `x="${x}" y="${y + (ROW - BAR) / 2}" width="${length}" height="${BAR}"`;
        shapes.push(`<rect ${place} fill="${colour}" fill-opacity="0.5"/>`);
        shapes.push(text(x + length + GAP, baseline, label(value), style));
        return label(value);
      });
      described.push(`${end} ${values.join(" and ")}`);
      y += ROW;
    }
    shapes.push(...axes.map(({ x }) => `<path d="M${x} ${top}V${y}" stroke="${GREY}"/>`));
    descriptions.push(`${title}: ${described.join(", ")}.`);
  }
  shapes.push(text(0, (y += GAP + 26), `${day(date)}, ${machine}.`, SMALLER));
  const height = y + GAP;
  return `<svg xmlns="http://www.w3.org/2000/svg" role="img"
  width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}"
  font-family="system-ui, sans-serif" font-size="${TEXT}" fill="${GREY}" stroke-width="2">
<title>${Bun.escapeHTML(TITLE)}</title>
<desc>${Bun.escapeHTML(descriptions.join(" "))}</desc>
${shapes.join("\n")}
</svg>
`;
}

const text = (x: number, y: number, content: string, more = ""): string =>
  `<text x="${round(x)}" y="${y}"${more}>${Bun.escapeHTML(content)}</text>`;

/** The columns of the page's second table: title, group and metric. */
const MEDIANS: readonly (readonly [title: string, group: string, metric: string])[] = [
  ["first byte: listening", `cold, ${services.listen}`, "first byte ms"],
  ["accepted", `cold, ${services.accepted}`, "first byte ms"],
  ["inet", `cold, ${services.inet}`, "first byte ms"],
  ["64 clients", "warm, 64 at a time", "connections/s"],
  ["1,024 clients", "warm, 1024 at a time", "connections/s"],
  ["idle, MiB", `memory, ${services.listen}`, "idle: private MiB"],
  ["100 of them, MiB", `memory, 100 of ${services.accepted} at once`, "MiB, all together"],
];

/** Every ratio, and medians of each contender. */
function overview({ date, machine, seconds, notes, ratios, figures }: Results): string {
  const medians = [...new Set(figures.map(({ who }) => who))].map((who) => [
    nameOf(who),
    ...MEDIANS.map(([, group, metric]) => {
      const one = findIn(figures, group, metric, who);
      return one === undefined ? "" : label(median(one.samples));
    }),
  ]);
  return [
    `One run of ${Math.round(seconds / 60)} minutes, ${day(date)}: ${machine}.`,
    // Within the width of a terminal: `-inet` is socket-service-inet.
    table([
      ["", "measured", "middle half", "rounds", "aim", "met"],
      ...ratios.map(([what = "", ...cells]) => [
        what.replace(`${services.listen}-`, "-"),
        ...cells,
      ]),
    ]),
    `These are medians. "First byte" is the time to the first byte of a cold start, in milliseconds. The program is
passed a listening socket, an accepted one, or stdin and stdout. The columns "clients" have connections a
second. "Idle" is the private memory of the program with the listening socket. "100 of them" is the memory
of 100 processes with an accepted socket.`,
    table([
      ["", ...MEDIANS.map(([title]) => title)],
      ...medians.filter((cells) => cells.some((cell, i) => i > 0 && cell !== "")),
    ]),
    ...notes.map((note) => `Not measured: ${note}.`),
  ].join("\n\n");
}

/** Finds one figure of a run. @throws {Error} if the run lacks it. */
type Find = (group: string, metric: string, who: string) => Figure;

function finder({ figures }: Results): Find {
  return (group, metric, who) => {
    const found = findIn(figures, group, metric, who);
    if (found === undefined) throw new Error(`the run has no "${group}: ${metric}" of ${who}`);
    return found;
  };
}

const whoIn = ({ figures }: Results, group: string): string[] => [
  ...new Set(figures.filter((f) => f.group === group).map(({ who }) => who)),
];

function sandboxes(results: Results): string {
  const find = finder(results);
  const all = Object.values(services).flatMap((service) => {
    const group = sandboxGroup(service);
    const none = find(group, "first byte ms", NONE);
    const rows = whoIn(results, group).map((who) => {
      const times = find(group, "first byte ms", who);
      const [exposure = Number.NaN] = find(group, "exposure", who).samples;
      const middle = median(times.samples).toFixed(1);
      const tenth = percentile(times.samples, 0.1).toFixed(1);
      return [who, middle, tenth, ratio(times, none).value.toFixed(2), `${exposure}`];
    });
    const head = ["directives", "median, ms", "p10, ms", "ratio", "exposure"];
    const title = `\`${service}\`, ${none.samples.length} connections for each row:`;
    return [title, table([head, ...rows])];
  });
  return [dated(results), ...all].join("\n\n");
}

const count = (n: number): string => Math.round(n).toLocaleString("en");
const dated = ({ date, machine }: Results): string => `${day(date)}, ${machine}:`;

function restarts(results: Results): string {
  const find = finder(results);
  if (whoIn(results, restartsGroup(64, 0)).length === 0) throw new Error("the run has no restarts");
  const rows = RESTARTS.flatMap((group) =>
    ENDS_OF_ALL.filter((end) => whoIn(results, group).includes(end)).map((who) => {
      const value = (metric: string): number =>
        find(group, metric, who).samples.reduce((a, b) => a + b, 0);
      const [lost, reset] = [value("requests lost"), value("of them reset")];
      const notifies = findIn(results.figures, group, "next start ms", who) !== undefined;
      return [
        group.replace("restarts, ", ""),
        `\`${who}\``,
        count(value("answered")),
        lost === 0 ? "0" : `${count(lost)} (${count(reset)} reset)`,
        `${count(value("longest wait ms"))} ms`,
        notifies ? `${count(value("next start ms"))} ms` : "",
      ];
    }),
  );
  const head = ["clients, pause", "end", "answered", "lost", "longest wait", "start"];
  return `${dated(results)}\n\n${table([head, ...rows])}`;
}

function severalProcesses(results: Results): string {
  const find = finder(results);
  type Cell = (samples: (who: string) => readonly number[]) => string;
  const row = (title: string, cell: Cell): string[] => [
    title,
    ...WAYS.map((way) => cell((who) => find(SHARING, way, who).samples)),
  ];
  const shares =
    ({ total, row: who }: typeof BURST): Cell =>
    (of) =>
      of(who)
        .map((first) => `${first}:${total - first}`)
        .join(" ");
  const middle =
    (who: string): Cell =>
    (of) =>
      count(median(of(who)));
  const waits = (title: string, what: string): string[][] => [
    row(`longest wait, ${title}, ms`, middle(`${what}: longest wait ms`)),
    row("the same with restarts", middle(`${what}, restarts: longest wait ms`)),
  ];
  const rates = (title: string, what: string): string[][] => [
    row(`${title}, one instance, requests/s`, middle(rateOf(what, 1))),
    row("the same with two instances", middle(rateOf(what, 2))),
  ];
  const sum = (samples: Parameters<Cell>[0], what: string): string =>
    count(
      KINDS.flatMap(([kind]) => samples(`${kind}, restarts: ${what}`)).reduce((a, b) => a + b, 0),
    );
  return `${dated(results)}\n\n${table([
    ["", "one socket", "`ReusePort=`"],
    row("clients of each instance, of 200 at once", shares(BURST)),
    row("clients of each instance, of 400 in turn", shares(SINGLE)),
    row("requests lost in restarts", (of) => `${sum(of, "lost")} of ${sum(of, "answered")}`),
    ...waits("no pause", "kept, no pause"),
    ...waits("kept connections", "kept"),
    ...waits("new connections", "new"),
    ...rates('"Hello"', "Hello"),
    ...rates("answers of 1 ms", "1 ms"),
  ])}`;
}

/** A table in Markdown, as the formatter leaves it. */
function table(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, i) =>
    Math.max(3, ...rows.map((row) => row[i]?.length ?? 0)),
  );
  const line = (cells: readonly string[]): string =>
    `| ${widths.map((width, i) => (cells[i] ?? "").padEnd(width)).join(" | ")} |`;
  const [head = [], ...body] = rows;
  return [head, widths.map((width) => "-".repeat(width)), ...body].map(line).join("\n");
}

/** The tables of a page, by the comment before each, and the first word of all that it shows. */
const PLACES: Record<string, readonly [of: string, tables: (results: Results) => string]> = {
  "all ratios": ["cold", overview],
  "the sandbox": ["sandbox, ", sandboxes],
  restarts: ["restarts, ", restarts],
  "several processes": ["several processes", severalProcesses],
};

/**
 * A page with the tables of a run, wherever it has a place for one. A table stays as it is if the run did
 * not measure it (`--only`), so each table has its date.
 *
 * @throws {Error} if the run lacks a figure of a table: no table has figures of two runs.
 */
export function withTables(page: string, results: Results): string {
  const { figures, ratios } = results;
  const measured = [...figures.map(({ group }) => group), ...ratios.map(([what = ""]) => what)];
  return Object.entries(PLACES).reduce((text, [name, [of, tables]]) => {
    const begin = `<!-- From here on: ${name}, of one run, put here by test/bench/draw.ts. -->`;
    const isMeasured = measured.some((what) => what.startsWith(of));
    return isMeasured && text.includes(begin) ? between(text, begin, tables(results)) : text;
  }, page);
}

/** The page that has them all. */
export const PAGE = join(import.meta.dir, "README.md");

if (import.meta.main) {
  const file = process.argv[2];
  if (file === undefined) throw new Error("which results? bun test/bench/draw.ts FILE");
  const results: Results = await Bun.file(file).json();
  await Bun.write(PAGE, withTables(await Bun.file(PAGE).text(), results));
  const picture = draw(results);
  if (picture !== undefined) await Bun.write(join(import.meta.dir, PICTURE), picture);
}
