import { misconfigured, quote } from "./error.ts";

/*
 * An entry of the journal, as bytes and as a line. Pure functions: nothing is sent here.
 */

/** One value of a field: a `Uint8Array` goes as it is, everything else as its text. */
export type FieldValue = string | number | bigint | boolean | Uint8Array;

/**
 * The fields of an entry, beside its message and level. A name has at most 64 characters, A-Z, 0-9
 * and `_`, the first one a letter. An array is several values of one field, in that order; a field
 * that is undefined, or an empty array, is left out. systemd.journal-fields(7) lists the names that
 * have a meaning.
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

/**
 * Returns the fields one by one, a field of several values as often as it has values.
 *
 * @throws {ActivationError} (78) if a name or a value is not allowed. The types do not let
 *   either through, but not every caller is type-checked, nor every name known when it is.
 */
export function listFields(fields: LogFields): Field[] {
  return Object.entries(fields).flatMap(([name, given]) => {
    // The journal drops a field of another name, and says nothing.
    if (!/^[A-Z][A-Z0-9_]{0,63}$/.test(name))
      throw misconfigured(
        `cannot log the field ${quote(name)}: name it with A-Z, 0-9 and _, a letter first, at most 64 of them`,
      );
    if (name === "MESSAGE" || name === "PRIORITY")
      throw misconfigured(`cannot log the field ${name}: give it as an argument of its own`);
    return [given]
      .flat()
      .filter((value) => value !== undefined)
      .map((value): Field => [name, checked(name, value)]);
  });
}

const TEXTUAL: readonly string[] = ["string", "number", "bigint", "boolean"];

function checked(name: string, value: FieldValue): FieldValue {
  if (TEXTUAL.includes(typeof value) || value instanceof Uint8Array) return value;
  throw misconfigured(
    `cannot log ${name}, whose value is of type ${typeof value}: give text, a number, a boolean or a Uint8Array`,
  );
}

/**
 * Returns an entry as the journal's native protocol has it (JOURNAL_NATIVE_PROTOCOL): `NAME=value`
 * and a newline; or, if the value is bytes or has a newline in it, `NAME`, a newline, the length of
 * the value in eight bytes (little-endian), the value, and a newline.
 */
export function serializeEntry(fields: readonly Field[]): Uint8Array {
  const encoder = new TextEncoder();
  const parts = fields.flatMap(([name, value]) => {
    if (!(value instanceof Uint8Array)) {
      const text = String(value);
      if (!text.includes("\n")) return encoder.encode(`${name}=${text}\n`);
      value = encoder.encode(text);
    }
    const length = new DataView(new ArrayBuffer(8));
    length.setBigUint64(0, BigInt(value.length), true);
    return [encoder.encode(`${name}\n`), new Uint8Array(length.buffer), value, Uint8Array.of(10)];
  });
  return Buffer.concat(parts);
}

/**
 * Returns an entry as one line for people: the message, then `NAME=value` for each field. Text with
 * a space in it, or with what JSON escapes, is quoted as in JSON; bytes are hexadecimal. Control
 * characters of the message become spaces.
 */
export function entryLine(message: string, fields: readonly Field[]): string {
  const pairs = fields.map(([name, value]) => ` ${name}=${readable(value)}`);
  return (message + pairs.join("")).replaceAll(/[\x00-\x1f\x7f]+/g, " ");
}

function readable(value: FieldValue): string {
  if (value instanceof Uint8Array) return Buffer.from(value).toString("hex");
  const text = String(value);
  const quoted = JSON.stringify(text);
  return text === "" || text.includes(" ") || quoted.length !== text.length + 2 ? quoted : text;
}
