// @ts-check
// Bytes, numbers and times as people read them.

const number = new Intl.NumberFormat("en");

/** @param {number} count */
export const grouped = (count) => number.format(count);

/** `3 keys`, `1 key`. @param {number} count @param {string} word */
export const counted = (count, word) => `${grouped(count)} ${word}${count === 1 ? "" : "s"}`;

/** What an event did. */
export const DONE = { put: "stored", delete: "deleted", expire: "expired" };

/** @param {string} type a media type */
export const isJson = (type) => /[/+]json\b/i.test(type);

/** A media type without its parameters. @param {string} type */
export const shortType = (type) => type.split(";")[0].trim();

/** @param {number} bytes */
export function size(bytes) {
  if (bytes < 1024) return counted(bytes, "byte");
  const [unit, by] = bytes < 1024 ** 2 ? ["KiB", 1024] : ["MiB", 1024 ** 2];
  return `${(bytes / Number(by)).toFixed(1)} ${unit} (${grouped(bytes)} bytes)`;
}

/** A time of the service on the reader's clock face. @param {string | number | Date} time */
export const moment = (time) =>
  new Date(time).toLocaleString("sv-SE", { dateStyle: "short", timeStyle: "medium" });

/** @param {string | number | Date} time */
export const clock = (time) => new Date(time).toLocaleTimeString("sv-SE", { timeStyle: "medium" });

/** `2 d 3 h`, `4 min 10 s`. @param {number} milliseconds */
export function span(milliseconds) {
  const seconds = Math.max(0, Math.ceil(milliseconds / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${grouped(Math.floor(seconds / 86400))} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

/** As `size`, in few characters. @param {number} bytes */
export const shortSize = (bytes) => size(bytes).replace(/ \(.*/, "");

const MAX_INDENT = 40;
const TOKENS = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;

/** The tokens of JSON as they are written; raises SyntaxError for anything else. @param {string} text @returns {string[]} */
function tokensOf(text) {
  JSON.parse(text);
  return text.match(TOKENS) ?? [];
}

/**
 * JSON in pieces, each with what it is: "name", "string", "number", "word" (true, false, null), or "" for what is
 * between. @param {string} text what `prettyJson` writes, or the beginning of it @returns {{ text: string, kind: string }[]}
 */
export function jsonPieces(text) {
  return (text.match(/"(?:[^"\\]|\\.)*"?|[^"\s{}[\],:]+|[\s{}[\],:]+/g) ?? []).map((piece, index, all) => ({ text: piece, kind: kindOf(piece, all[index + 1]) }));
}

/** @param {string} piece @param {string | undefined} next */
function kindOf(piece, next) {
  if (piece[0] === '"') return next?.[0] === ":" ? "name" : "string";
  if (/^[-\d]/.test(piece)) return "number";
  return /^[tfn]/.test(piece) ? "word" : "";
}

/** JSON on one line, every token as it was written; raises SyntaxError for anything else. @param {string} text */
export const compactJson = (text) => tokensOf(text).join("");

/** Whether a text is probably meant to be JSON. @param {string} type its media type @param {string} text */
export const seemsJson = (type, text) => isJson(type) || /^\s*[[{]/.test(text);

/** The text by lines if it seems to be JSON and is; else null. @param {string} type @param {string} text */
export function prettyIfJson(type, text) {
  try {
    return seemsJson(type, text) ? prettyJson(text) : null;
  } catch {
    return null;
  }
}

/**
 * JSON with a line for each member; raises SyntaxError for anything else. Every token stays as it was
 * written: numbers keep all their digits, and members that stand there twice stay.
 * @param {string} text
 */
export function prettyJson(text) {
  const tokens = tokensOf(text);
  let depth = 0;
  let written = "";
  const line = () => `\n${"  ".repeat(Math.min(depth, MAX_INDENT))}`;
  tokens.forEach((token, index) => {
    if (token === "{" || token === "[") {
      depth++;
      const isEmpty = tokens[index + 1] === "}" || tokens[index + 1] === "]";
      written += isEmpty ? token : token + line();
    } else if (token === "}" || token === "]") {
      depth--;
      const isEmpty = tokens[index - 1] === "{" || tokens[index - 1] === "[";
      written += isEmpty ? token : line() + token;
    } else if (token === ",") written += token + line();
    else written += token === ":" ? ": " : token;
  });
  return written;
}

/** Sixteen bytes a line: where, what, and the same as ASCII. @param {Uint8Array} bytes @param {number} end */
export function hex(bytes, end = bytes.length) {
  const lines = [];
  for (let at = 0; at < Math.min(end, bytes.length); at += 16) {
    const row = Array.from(bytes.subarray(at, at + 16));
    const codes = row.map((byte) => byte.toString(16).padStart(2, "0"));
    const left = codes.slice(0, 8).join(" ").padEnd(23);
    const right = codes.slice(8).join(" ").padEnd(23);
    const text = row.map((byte) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : "·")).join("");
    lines.push(`${at.toString(16).padStart(8, "0")}  ${left}  ${right}  ${text}`);
  }
  return lines.join("\n");
}

/** @type {[string, number[], number][]} */
const SIGNATURES = [
  ["image/png", [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a], 0],
  ["image/jpeg", [0xff, 0xd8, 0xff], 0],
  ["image/gif", [0x47, 0x49, 0x46, 0x38], 0],
  ["image/webp", [0x57, 0x45, 0x42, 0x50], 8],
  ["image/avif", [0x66, 0x74, 0x79, 0x70, 0x61, 0x76, 0x69, 0x66], 4],
  ["image/bmp", [0x42, 0x4d], 0],
  ["image/x-icon", [0x00, 0x00, 0x01, 0x00], 0],
];

/** The type of the picture that `bytes` are by their own account, "" if they are none. @param {Uint8Array} bytes */
export function pictureType(bytes) {
  const found = SIGNATURES.find(([, signature, at]) => signature.every((byte, index) => bytes[at + index] === byte));
  return found ? found[0] : "";
}

/** `12 B`, `3.4 KiB`: where there is little room. @param {number} bytes */
export function brief(bytes) {
  let [left, at] = [bytes, 0];
  while (left >= 1024 && at < 5) [left, at] = [left / 1024, at + 1];
  return `${at && left < 100 ? left.toFixed(1) : Math.round(left)} ${["B", "KiB", "MiB", "GiB", "TiB", "PiB"][at]}`;
}

/** What a value is by its media type, in one word: `json`, `text`, `png`. @param {string} type */
export function kindOfType(type) {
  const [, main, kind] = /^\s*([^/;\s]+)\/([^;\s]+)/.exec(type) ?? ["", "", type];
  if (isJson(type)) return "json";
  if (kind === "octet-stream") return "binary";
  return main === "text" && kind === "plain" ? "text" : kind.replace(/^x-|\+.*$/g, "").slice(0, 12);
}
