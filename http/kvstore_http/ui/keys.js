// @ts-check
// Keys: their order, how they are shown, and how the page's own address names them.

export const MAX_KEY_BYTES = 511;

const encoder = new TextEncoder();

/** The number of UTF-8 bytes of `text`. @param {string} text */
export const byteLength = (text) => encoder.encode(text).length;

// UTF-16 puts surrogates before U+E000; in UTF-8, and so in the store, what they stand for comes after it.
/** @param {number} unit */
const rank = (unit) => (unit >= 0xe000 ? unit - 0x800 : unit >= 0xd800 ? unit + 0x2000 : unit);

/** Negative, 0 or positive, as `a` stands before, at or after `b` in the store. @param {string} a @param {string} b */
export function compareKeys(a, b) {
  const end = Math.min(a.length, b.length);
  for (let at = 0; at < end; at++) {
    const difference = rank(a.charCodeAt(at)) - rank(b.charCodeAt(at));
    if (difference) return difference;
  }
  return a.length - b.length;
}

/** What is wrong with `key`, "" if it can be used. @param {string} key */
export function faultOf(key) {
  if (!key) return "A key has at least one character.";
  if (key.includes("\0")) return "A key holds no NUL.";
  if (/\p{Surrogate}/u.test(key)) return "The key holds half a character, which UTF-8 cannot express.";
  const size = byteLength(key);
  return size > MAX_KEY_BYTES ? `A key has at most ${MAX_KEY_BYTES} bytes of UTF-8; this one has ${size}.` : "";
}

// Two keys must not look the same. So written out are, by property: what is invisible or turns the text around it
// (controls, formats, what may be ignored), spaces but the plain one, what no font knows, marks without a letter
// before them; the blank Braille cell; and the pictures and escapes that all those are written as.
const UNSEEN =
  /[\p{C}\p{Default_Ignorable_Code_Point}\p{Zl}\p{Zp}\u2800\u2400-\u2426]|(?! )\p{Zs}|(?<=(?:^|[\p{C}\p{Default_Ignorable_Code_Point}\p{Z}/])\p{M}*)\p{M}|\\(?=u\{)/gu;
// A letter and its marks, which may be one character instead: "é" is written in two ways.
const CLUSTERS = /[\u1100-\u11ff]+|\P{M}\p{M}*/gu;

/** @param {string} mark */
function picture(mark) {
  if (mark === "\\") return "\\\\";
  const code = /** @type {number} */ (mark.codePointAt(0));
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  return code === 0x7f ? "\u2421" : `\\u{${code.toString(16)}}`;
}

/**
 * `key` as people can read it: no character of it is invisible or moves others, and no other key is shown alike but
 * for letters that two scripts share. @param {string} key
 */
export function shownKey(key) {
  if (/^[!-~]+$/.test(key) && !key.includes("\\")) return key;
  return key
    .replace(UNSEEN, picture)
    .replace(CLUSTERS, (cluster) => (cluster.normalize("NFC") === cluster ? cluster : cluster.replace(/[^ -~]/gu, picture)))
    .replace(/^ +| +$| {2,}/g, (spaces) => "\u2423".repeat(spaces.length));
}

/** The folder that `prefix` looks into: everything up to its last slash. @param {string} prefix */
export const folderOf = (prefix) => prefix.slice(0, prefix.lastIndexOf("/") + 1);

/** The folder above `prefix`. @param {string} prefix */
export const parentOf = (prefix) => folderOf(prefix.replace(/\/$/, ""));

/** The folder inside `base` that `key` lies in, null if it lies in `base` itself. @param {string} key @param {string} base */
export function innerFolder(key, base) {
  const slash = key.indexOf("/", base.length);
  return slash < 0 ? null : key.slice(0, slash + 1);
}

/** Where a listing goes on behind everything in `folder`: "0" is the character after "/". @param {string} folder */
export const behindFolder = (folder) => `${folder.slice(0, -1)}0`;

/** The folders on the way to `prefix`, with the text to show for each. @param {string} prefix */
export function trail(prefix) {
  const steps = [];
  for (let slash = prefix.indexOf("/"), from = 0; slash >= 0; slash = prefix.indexOf("/", from)) {
    steps.push({ name: prefix.slice(from, slash) || "/", prefix: prefix.slice(0, slash + 1) });
    from = slash + 1;
  }
  return steps;
}

/** A name for a file that holds the value of `key`. @param {string} key */
export function fileName(key) {
  const last = key.split("/").filter(Boolean).pop() ?? "";
  return last.replace(/[^\p{L}\p{N}._-]+/gu, "_").replace(/^\.+/, "_").slice(0, 100) || "value";
}

/**
 * Where the reader is. The fragment says so: it is never sent to a server, and it can hold any text.
 * @typedef {{ view: "keys" | "changes" | "health", prefix: string, key: string, tab: "value" | "history", flat: boolean, isNew: boolean, find: string }} Place
 */

/** @param {string} hash @returns {Place} */
export function placeOf(hash) {
  const named = new URLSearchParams(hash.replace(/^#/, ""));
  const view = named.get("view");
  const key = named.get("key") ?? "";
  return {
    view: view === "changes" || view === "health" ? view : "keys",
    prefix: named.get("prefix") ?? (named.has("flat") || named.has("find") ? "" : folderOf(key)), // a link to a key opens its folder
    key,
    tab: named.get("tab") === "history" ? "history" : "value",
    flat: named.has("flat"),
    isNew: named.has("new"),
    find: named.get("find") ?? "",
  };
}

/** The fragment of `place`, with its "#". @param {Partial<Place>} place */
export function hashOf(place) {
  const parts = [];
  if (place.view && place.view !== "keys") parts.push(`view=${place.view}`);
  if (place.prefix || folderOf(place.key ?? "")) parts.push(`prefix=${encodeURIComponent(place.prefix ?? folderOf(place.key ?? ""))}`);
  if (place.flat) parts.push("flat=1");
  if (place.find) parts.push(`find=${encodeURIComponent(place.find)}`);
  if (place.isNew) parts.push("new=1");
  else if (place.key) parts.push(`key=${encodeURIComponent(place.key)}`);
  if (place.tab === "history") parts.push("tab=history");
  return `#${parts.join("&")}`;
}
