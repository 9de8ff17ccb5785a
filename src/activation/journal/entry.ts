import { printable, printableJson, quote } from "../error.ts";

/* An entry of the journal, as bytes and as a line, in pure functions. */

/** One value of a field. A `Uint8Array` is sent as it is, anything else as text. */
export type FieldValue = string | number | bigint | boolean | Uint8Array;

/**
 * The fields of an entry, beside its message and level. A name has at most 64 characters: A-Z, 0-9 and
 * `_`, and first a letter. An array is several values of one field, in that order. A field that is
 * undefined, or an empty array, is left out. systemd.journal-fields(7) lists the names that have a
 * meaning.
 */
export interface LogFields {
  /** The second argument of `log`. */
  readonly MESSAGE?: never;
  /** The first argument of `log`. */
  readonly PRIORITY?: never;
  readonly [name: Uppercase<string>]: FieldValue | readonly FieldValue[] | undefined;
}

/** A field with one of its values. */
export type Field = readonly [name: string, value: FieldValue];

const TEXTUAL: readonly string[] = ["string", "number", "bigint", "boolean"];

/**
 * Returns the fields one by one, a field of several values as often as it has values.
 *
 * @throws {TypeError} if a name or a value is not allowed, by a caller without types.
 */
export function listFields(fields: LogFields): Field[] {
  return Object.entries(fields).flatMap(([name, given]) => {
    // The journal drops a field of another name, and says nothing.
    if (!/^[A-Z][A-Z0-9_]{0,63}$/.test(name))
      throw new TypeError(
        `cannot log the field ${quote(name)}: use at most 64 characters (A-Z, 0-9 and _), and first a letter`,
      );
    if (name === "MESSAGE" || name === "PRIORITY")
      throw new TypeError(
        `cannot log the field ${name}: give it as the ${name === "MESSAGE" ? "second" : "first"} argument of log`,
      );
    const values = [given].flat().filter((value) => value !== undefined);
    for (const value of values)
      if (!(TEXTUAL.includes(typeof value) || value instanceof Uint8Array))
        throw new TypeError(
          `cannot log ${name}, whose value is of type ${typeof value}: give text, a number, a bigint, a boolean or a Uint8Array`,
        );
    return values.map((value): Field => [name, value]);
  });
}

/**
 * Returns an entry in the journal's native protocol (JOURNAL_NATIVE_PROTOCOL): lines of `NAME=value`;
 * or `NAME`, a newline, the value's length in eight bytes, the value if it is bytes or has a newline.
 */
export function serializeEntry(fields: readonly Field[]): Uint8Array {
  const parts = fields.flatMap(([name, value]) => {
    const isBinary = value instanceof Uint8Array || String(value).includes("\n");
    if (!isBinary) return Buffer.from(`${name}=${value}\n`);
    const bytes = value instanceof Uint8Array ? value : Buffer.from(String(value));
    const length = new Uint8Array(BigUint64Array.of(BigInt(bytes.length)).buffer);
    return [Buffer.from(`${name}\n`), length, bytes, Buffer.from("\n")];
  });
  return Buffer.concat(parts);
}

/** Returns an entry as one line for people: the message, then `NAME=value` for each field. */
export function entryLine(message: string, fields: readonly Field[]): string {
  const pairs = fields.map(([name, value]) => ` ${name}=${readable(value)}`);
  return printable(message + pairs.join(""), " ");
}

/** Quotes text that is empty, has a space, or is escaped in JSON; writes bytes as hexadecimal. */
function readable(value: FieldValue): string {
  if (value instanceof Uint8Array) return Buffer.from(value).toString("hex");
  const text = String(value);
  const quoted = printableJson(text);
  return text === "" || text.includes(" ") || quoted.length !== text.length + 2 ? quoted : text;
}
