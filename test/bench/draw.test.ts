import { expect, test } from "bun:test";

import { draw, PAGE, type Results, withTables } from "./draw.ts";

const restarts = ["restarts, 64, no pause", "restarts, 64, to 200 ms"];
const results: Results = {
  date: "2026-11-22T23:59:59Z",
  machine: "2 x <Processor> & more, Bun 1.4.5",
  seconds: 700,
  notes: ["Go: not installed"],
  ratios: [["cold: socket-service over C", "1.22", "1.20 - 1.25", "3", "at most 1.25", "yes"]],
  figures: [
    ...restarts.flatMap((group) => [
      { group, metric: "requests lost", who: "process.exit()", samples: [1234] },
      { group, metric: "requests lost", who: "drain", samples: [0] },
      { group, metric: "longest wait ms", who: "process.exit()", samples: [99] },
      { group, metric: "longest wait ms", who: "drain", samples: [262] },
    ]),
  ],
};

const svg = draw(results) ?? "";

test("the picture shows the requests lost and the longest wait of each end, and no loss as 0", () => {
  Bun.XML.parse(svg);
  const texts = [...svg.matchAll(/<text[^>]*>(.*)</g)].map(([, text = ""]) => text);
  const metrics = ["requests lost", "longest wait, ms"];
  const rows = ["drain", "0", "262", "process.exit()", "1,234", "99"];
  expect(texts).toEqual([
    "12 restarts of an HTTP server, 64 connections",
    ...["no pause between requests", ...metrics, ...rows],
    ...["pauses of up to 200 ms", ...metrics, ...rows],
    "22 November 2026, 2 x &lt;Processor&gt; &amp; more, Bun 1.4.5.",
  ]);
  const widths = [...svg.matchAll(/<rect.*? width="(.*?)"/g)].map(([, width]) => Number(width));
  const [none, drain = 0, , exit = 0] = widths;
  expect(none).toBe(0);
  expect(exit / drain).toBeCloseTo(99 / 262, 3);
});

test("who cannot see the picture is told its values", () => {
  expect(svg).toContain(' role="img"');
  expect(svg).toContain("<title>12 restarts of an HTTP server, 64 connections</title>");
  expect(svg).toContain("no pause between requests: drain 0 and 262, process.exit() 1,234 and 99.");
});

test("a run without figures of the picture draws none", () => {
  expect(draw({ ...results, figures: [] })).toBeUndefined();
});

test("the page has a place for each table, where a run takes that of the run before", async () => {
  const samples = [1, 2, 3];
  const figure = (group: string, metric: string, who: string) => ({ group, metric, who, samples });
  const whole: Results = {
    ...results,
    figures: [
      ...["socket-service", "socket-service-accepted", "socket-service-inet"].flatMap((service) =>
        ["no directive", "`UMask=`"].flatMap((who) =>
          ["first byte ms", "exposure"].map((metric) => figure(`sandbox, ${service}`, metric, who)),
        ),
      ),
      ...["requests lost", "of them reset", "longest wait ms", "answered", "next start ms"].map(
        (metric) => figure("restarts, 64, no pause", metric, "drain"),
      ),
      ...["web.socket", "web@.socket"].flatMap((way) =>
        [
          ...["of 200 at once, with the first", "of 400 one by one, with the first"],
          ...["kept, no pause", "kept", "new"].flatMap((what) => [
            `${what}: longest wait ms`,
            ...["longest wait ms", "lost", "answered"].map((of) => `${what}, restarts: ${of}`),
          ]),
          ...["Hello", "1 ms"].flatMap((what) => [1, 2].map((n) => `${what}, ${n}: requests/s`)),
        ].map((row) => figure("several processes", way, row)),
      ),
    ],
  };
  const rows = [
    "| cold: socket-service over C | 1.22     | 1.20 - 1.25 |",
    "| `UMask=`     | 2.0  ",
    "| 64, no pause   | `drain` | 6        | 6 (6 reset) |",
    " | 1:199 2:198 3:197 |",
  ];
  const page = await Bun.file(PAGE).text();
  const written = withTables(page, whole);
  for (const row of rows) expect(written).toContain(row);
  expect(withTables(written, whole)).toBe(written);
  // A run of a part leaves the other tables, and no table has figures of two runs.
  const sandbox = whole.figures.filter(({ group }) => group.startsWith("sandbox, "));
  const part = { ...whole, figures: sandbox, ratios: [], date: "2026-11-24T00:00:00Z" };
  const partly = withTables(written, part);
  expect(partly.match(/24 November 2026/g)).toHaveLength(1);
  expect(() => withTables(page, results)).toThrow("the run has no ");
});
