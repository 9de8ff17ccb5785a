const END = "<!-- To here. -->";

/**
 * A page with other text after the comment `begin`, up to the next one that says "To here".
 *
 * @throws {Error} if the page has no such place.
 */
export function between(page: string, begin: string, text: string): string {
  const before = page.indexOf(begin);
  const after = page.indexOf(END, before);
  if (before < 0 || after < 0) throw new Error(`the page has no ${begin}`);
  return `${page.slice(0, before)}${begin}\n\n${text}\n\n${page.slice(after)}`;
}
