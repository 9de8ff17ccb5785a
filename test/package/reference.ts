/*
 * The module's reference: one heading for each export, in the order of index.ts, with the declaration
 * and the doc comment that stand in the sources. `make format` writes it; a test compares.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { between } from "../support/between.ts";
import { REFERENCE, ROOT } from "../support/pages.ts";

const SOURCES = join(ROOT, "src/activation");

const BEGIN = "<!-- From here on: the doc comments of the sources, put here by make format. -->";

/** The page with the reference as the sources have it now. */
export function withReference(page: string): string {
  return between(page, BEGIN, reference());
}

function reference(): string {
  const index = readFileSync(join(SOURCES, "index.ts"), "utf8");
  const parts = index.matchAll(/^\/\/ (.*)$|^export (?:type )?\{([^}]*)\} from "\.\/(.*)";$/gm);
  let text = "";
  for (const [, group, names = "", file = ""] of parts)
    text +=
      group === undefined
        ? names
            .split(",")
            .map((name) => name.trim().replace("type ", ""))
            .filter((name) => name !== "")
            .map((name) => entry(name, readFileSync(join(SOURCES, file), "utf8")))
            .join("")
        : `## ${group}\n\n`;
  return text.replace(/\n{3,}/g, "\n\n").trimEnd();
}

/** Returns the section of one export. */
function entry(name: string, source: string): string {
  const start = new RegExp(
    `^/\\*\\*\\n?((?:(?!\\*/)[^])*)\\*/\\n(export (?:async )?(?:function|class|interface|const|type) ${name}\\b)`,
    "m",
  ).exec(source);
  if (start === null) throw new Error(`${name} has no doc comment`);
  const [, comment = "", begin = ""] = start;
  const declared = declaration(source.slice(start.index + start[0].length - begin.length));
  const lines = comment.split("\n").map((line) => line.replace(/^ *\*? ?/, "").trimEnd());
  return `### \`${name}\`\n\n\`\`\`ts\n${declared}\n\`\`\`\n\n${prose(lines)}\n`;
}

/** Returns the declaration at the begin of a source: a function or a class without its code. */
function declaration(source: string): string {
  const [, kind = ""] = /^export (?:async )?(\w+)/.exec(source) ?? [];
  const end =
    kind === "function"
      ? /^(export|[)}]).*( \{|;)$/m
      : kind === "interface" || kind === "class"
        ? /^\}$/m
        : /;(?=\n\n|\n$)/;
  const found = end.exec(source);
  if (found === null) throw new Error(`no end of a declaration: ${source.slice(0, 80)}`);
  return source
    .slice(0, found.index + found[0].length)
    .replace(/^export (async )?/, "")
    .replace(/ \{$/, ";")
    .replace(/\n\n {2}constructor[^]*(?=\n\})/, "");
}

/** The lines of a doc comment as Markdown: the tags become a list. */
function prose(lines: readonly string[]): string {
  const text = lines.map((line) => {
    const [, tag, rest = ""] = /^@(\w+) ?(.*)$/.exec(line) ?? [];
    if (tag === undefined || tag === "example") return line.replace(/^@example/, "");
    if (tag === "param") return `- ${rest.replace(/^\w+/, "`$&`:")}`;
    if (tag === "returns") return `- Returns: ${rest}`;
    if (tag === "throws") return `- Throws: ${rest.replace(/^\{(\w+)\}/, "`$1`")}`;
    throw new Error(`the reference does not know @${tag}`);
  });
  return `${text
    .join("\n")
    .replace(/\{@link\s+(\w+)\}/g, (_, name) => `[\`${name}\`](#${String(name).toLowerCase()})`)
    .trim()}\n`;
}

if (import.meta.main) writeFileSync(REFERENCE, withReference(readFileSync(REFERENCE, "utf8")));
