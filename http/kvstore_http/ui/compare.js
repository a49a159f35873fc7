// @ts-check
// Two texts beside or below each other, with the lines and words marked that differ.

import { diffLines, diffWords, shortened } from "./diff.js";
import { el } from "./dom.js";
import { counted, prettyIfJson } from "./format.js";

const SIGNS = { same: " ", removed: "−", added: "+" };
const SPOKEN = { same: "", removed: "removed: ", added: "added: " };

/** The comparison to be shown: without the empty line that the last line feed of both texts leaves behind it.
 * @param {string} before @param {string} after */
function compared(before, after) {
  const lines = diffLines(before, after);
  const last = lines.at(-1);
  return last?.kind === "same" && last.text === "" ? lines.slice(0, -1) : lines;
}

/** @param {number} count */
const skipped = (count) => el("p", { class: "skipped" }, `${counted(count, "unchanged line")}`);

/** @param {"same" | "removed" | "added"} kind @param {string} text @param {import("./diff.js").Piece[]} [pieces] */
const lineOf = (kind, text, pieces) =>
  el(
    "div",
    { class: `line ${kind}` },
    el("span", { class: "sign", "aria-hidden": "true" }, SIGNS[kind]),
    SPOKEN[kind] && el("span", { class: "unseen" }, SPOKEN[kind]),
    el("span", { class: "text" }, ...(pieces?.map((piece) => (piece.isMarked ? el("mark", {}, piece.text) : piece.text)) ?? [text])),
  );

/** The rows of a comparison: what is left out, a line that both have, or lines that stand for each other, of
 * which one side may lack some. @param {(import("./diff.js").Line | number)[]} lines */
function rowsOf(lines) {
  /** @type {(number | string | [string | undefined, string | undefined][])[]} */
  const rows = [];
  /** @type {[string[], string[]]} */
  let [removed, added] = [[], []];
  const flush = () => {
    const length = Math.max(removed.length, added.length);
    if (length) rows.push(Array.from({ length }, (_, at) => [removed[at], added[at]]));
    [removed, added] = [[], []];
  };
  for (const line of lines) {
    if (typeof line !== "number" && line.kind === "removed") removed.push(line.text);
    else if (typeof line !== "number" && line.kind === "added") added.push(line.text);
    else {
      flush();
      rows.push(typeof line === "number" ? line : line.text);
    }
  }
  flush();
  return rows;
}

/** The two lines of a row as elements, with the words marked that differ.
 * @param {[string | undefined, string | undefined]} pair @returns {(HTMLElement | undefined)[]} */
function pairOf([was, is]) {
  const words = was !== undefined && is !== undefined ? diffWords(was, is) : null;
  return [was === undefined ? undefined : lineOf("removed", was, words?.[0]), is === undefined ? undefined : lineOf("added", is, words?.[1])];
}

/** JSON by lines, if both are JSON; else both as they are. @param {string} before @param {string} after
 * @returns {[string, string]} */
function byLines(before, after) {
  const [was, is] = [before, after].map((text) => prettyIfJson("", text));
  return was === null || is === null ? [before, after] : [was, is];
}

/** What became of `before`, in one column; JSON by lines. @param {string} before @param {string} after */
export function changesOf(before, after) {
  const lines = compared(...byLines(before, after));
  if (lines.every((line) => line.kind === "same")) return el("p", { class: "quiet" }, before === after ? "The text is the same." : "Only the spacing differs.");
  const rows = rowsOf(shortened(lines)).flatMap((row) => {
    if (typeof row === "number") return [skipped(row)];
    if (typeof row === "string") return [lineOf("same", row)];
    const pairs = row.map(pairOf);
    return [...pairs.map(([was]) => was), ...pairs.map(([, is]) => is)];
  });
  return el("div", { class: "diff" }, ...rows);
}

/** Both texts side by side, JSON by lines, the same lines level; below each other where there is little room. @param {string} left @param {string} right @param {Node} leftTitle @param {Node} rightTitle */
export function sideBySide(left, right, leftTitle, rightTitle) {
  const rows = rowsOf(shortened(compared(...byLines(left, right)))).flatMap((row) => {
    if (typeof row === "number") return [skipped(row)];
    if (typeof row === "string") return [lineOf("same", row), lineOf("same", row)];
    return row.flatMap((pair) => pairOf(pair).map((line) => line ?? el("div", { class: "line none" })));
  });
  return el("div", { class: "diff sides" }, el("div", { class: "title removed" }, leftTitle), el("div", { class: "title added" }, rightTitle), ...rows);
}
