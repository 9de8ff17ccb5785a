/* The order of the layers: imports point down, types as well, and there are no cycles. */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize, resolve } from "node:path";

const SRC = resolve(import.meta.dir, "../../src");

/** From the top to the bottom: a file imports from its own layer, and from those below. */
const LAYERS = [
  ["daemons/"],
  ["activation/index.ts"],
  ["activation/register.ts"],
  ["activation/register/"],
  ["activation/adopt/"],
  ["activation/receive/"],
  ["activation/notify/"],
  ["activation/journal/"],
  ["activation/linux/"],
  ["activation/environment.ts", "activation/bun.ts", "activation/hot.ts", "activation/error.ts"],
];

const files = readdirSync(SRC, { recursive: true, encoding: "utf8" }).filter((file) =>
  file.endsWith(".ts"),
);

/** The files of this project that a file imports. */
const imports = new Map(
  files.map((file) => {
    const source = readFileSync(join(SRC, file), "utf8");
    const paths = [...source.matchAll(/(?:from|import|import\() ?"(\.[^"]+\.ts)"/g)];
    return [file, paths.map(([, path = ""]) => normalize(join(dirname(file), path)))] as const;
  }),
);

function layerOf(file: string): number {
  const layer = LAYERS.findIndex((places) => places.some((place) => file.startsWith(place)));
  if (layer < 0) throw new Error(`src/${file} is in no layer: add it to LAYERS`);
  return layer;
}

test("each file imports from its own layer and from the layers below", () => {
  const wrong = [...imports].flatMap(([file, paths]) =>
    paths.filter((path) => layerOf(path) < layerOf(file)).map((path) => `${file} imports ${path}`),
  );
  expect(wrong).toEqual([]);
});

test("the daemons use the module through index.ts, as a user does", () => {
  const wrong = [...imports].flatMap(([file, paths]) =>
    file.startsWith("daemons/")
      ? paths.filter((path) => layerOf(path) > 1).map((path) => `${file} imports ${path}`)
      : [],
  );
  expect(wrong).toEqual([]);
});

test("no files import each other in a cycle, and neither do folders", () => {
  const folder = (file: string) => (file.split("/").length > 2 ? dirname(file) : file);
  for (const nameOf of [(file: string) => file, folder]) {
    const graph = new Map<string, Set<string>>();
    for (const [file, paths] of imports) {
      const from = graph.get(nameOf(file)) ?? new Set();
      for (const path of paths) if (nameOf(path) !== nameOf(file)) from.add(nameOf(path));
      graph.set(nameOf(file), from);
    }
    expect(cycleIn(graph)).toBeUndefined();
  }
});

/** Returns the nodes of a cycle, in order, if there is one. */
function cycleIn(graph: ReadonlyMap<string, ReadonlySet<string>>): string[] | undefined {
  const done = new Set<string>();
  const visit = (node: string, path: readonly string[]): string[] | undefined => {
    if (path.includes(node)) return [...path.slice(path.indexOf(node)), node];
    if (done.has(node)) return undefined;
    for (const next of graph.get(node) ?? []) {
      const cycle = visit(next, [...path, node]);
      if (cycle !== undefined) return cycle;
    }
    done.add(node);
    return undefined;
  };
  for (const node of graph.keys()) {
    const cycle = visit(node, []);
    if (cycle !== undefined) return cycle;
  }
  return undefined;
}

test("only linux/libc.ts uses bun:ffi", () => {
  const users = files.filter((file) =>
    /"bun:ffi"|\.FFI\b/.test(readFileSync(join(SRC, file), "utf8")),
  );
  expect(users.toSorted()).toEqual(["activation/bun.ts", "activation/linux/libc.ts"]);
});
