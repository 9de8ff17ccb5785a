/** The samples of one quantity, of one contender, in one case. */
export interface Figure {
  /** What was measured, and in which case: `cold, accepted`. */
  readonly group: string;
  /** The quantity, with its unit: `first byte ms`. */
  readonly metric: string;
  readonly who: string;
  /** In the order of the rounds, so that the n-th of two contenders were measured together. */
  readonly samples: number[];
}

/** Adds a sample. */
export type Recorder = (group: string, metric: string, who: string, value: number) => void;

/** That of one quantity, case and contender, if it was measured. */
export const findIn = (all: readonly Figure[], group: string, metric: string, who: string) =>
  all.find((one) => one.group === group && one.metric === metric && one.who === who);

/** All that one run measured. */
export class Figures {
  readonly all: Figure[] = [];

  readonly record: Recorder = (group, metric, who, value) => {
    const figure = this.find(group, metric, who);
    if (figure === undefined) this.all.push({ group, metric, who, samples: [value] });
    else figure.samples.push(value);
  };

  find(group: string, metric: string, who: string): Figure | undefined {
    return findIn(this.all, group, metric, who);
  }
}

/** The value below which the fraction `p` of the samples lies; NaN where there are none. */
export function percentile(samples: readonly number[], p: number): number {
  const sorted = samples.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * p))] ?? Number.NaN;
}

export const median = (samples: readonly number[]): number => percentile(samples, 0.5);

export interface Ratio {
  readonly value: number;
  /** The middle half of the ratios of the single rounds. */
  readonly from: number;
  readonly to: number;
  readonly runs: number;
}

/** The ratio of two medians, and how far the rounds agree on it. */
export function ratio(of: Figure, over: Figure): Ratio {
  const rounds = of.samples.map((sample, i) => sample / (over.samples[i] ?? Number.NaN));
  return {
    value: median(of.samples) / median(over.samples),
    from: percentile(rounds, 0.25),
    to: percentile(rounds, 0.75),
    runs: rounds.length,
  };
}

/** Three significant digits, and no exponent. */
export function show(value: number): string {
  if (!Number.isFinite(value)) return "-";
  return value.toFixed(Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2);
}

/** Text in columns; the first is aligned left, the others right. */
export function columns(rows: readonly (readonly string[])[]): string {
  const widths: number[] = [];
  for (const row of rows)
    row.forEach((cell, i) => (widths[i] = Math.max(widths[i] ?? 0, cell.length)));
  const align = (cell: string, i: number): string =>
    i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0);
  return rows.map((row) => row.map(align).join("  ").trimEnd()).join("\n");
}

/** Every group as a table: a row for each contender, median and 10th to 99th percentile. */
export function tables(figures: Figures): string {
  const groups = new Set(figures.all.map((figure) => figure.group));
  return [...groups].map((group) => table(figures, group)).join("\n\n");
}

function table(figures: Figures, group: string): string {
  const here = figures.all.filter((figure) => figure.group === group);
  const metrics = [...new Set(here.map((figure) => figure.metric))];
  const runs = Math.max(...here.map((figure) => figure.samples.length));
  const cell = (who: string, metric: string): string => {
    const samples = figures.find(group, metric, who)?.samples;
    if (samples === undefined) return "-";
    const spread = `(${show(percentile(samples, 0.1))} - ${show(percentile(samples, 0.99))})`;
    return samples.length === 1 ? show(median(samples)) : `${show(median(samples))} ${spread}`;
  };
  const rows = [...new Set(here.map((figure) => figure.who))];
  return columns([
    [`${group}, ${runs} ${runs === 1 ? "run" : "runs"}`, ...metrics],
    ...rows.map((who) => [`  ${who}`, ...metrics.map((metric) => cell(who, metric))]),
  ]);
}
