// @ts-check
// Two texts beside or below each other, with what differs marked.

import { diffLines, shortened } from "./diff.js";
import { el } from "./dom.js";
import { counted } from "./format.js";

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

/** @param {"same" | "removed" | "added"} kind @param {string} text */
const lineOf = (kind, text) =>
  el("div", { class: `line ${kind}` }, el("span", { class: "sign", "aria-hidden": "true" }, SIGNS[kind]), SPOKEN[kind] && el("span", { class: "unseen" }, SPOKEN[kind]), el("span", { class: "text" }, text));

/** What became of `before`, in one column. @param {string} before @param {string} after */
export function changesOf(before, after) {
  const lines = compared(before, after);
  if (lines.every((line) => line.kind === "same")) return el("p", { class: "quiet" }, "The text is the same.");
  return el("div", { class: "diff" }, ...shortened(lines).map((line) => (typeof line === "number" ? skipped(line) : lineOf(line.kind, line.text))));
}

/** Both texts side by side, the same lines level. @param {string} left @param {string} right @param {Node} leftTitle @param {Node} rightTitle */
export function sideBySide(left, right, leftTitle, rightTitle) {
  const rows = [];
  /** @type {string[]} */
  let removed = [];
  /** @type {string[]} */
  let added = [];
  const flush = () => {
    for (let at = 0; at < Math.max(removed.length, added.length); at++) {
      const cell = (/** @type {string | undefined} */ text, /** @type {"removed" | "added"} */ kind) =>
        text === undefined ? el("div", { class: "line none" }) : lineOf(kind, text);
      rows.push(cell(removed[at], "removed"), cell(added[at], "added"));
    }
    removed = [];
    added = [];
  };
  for (const line of shortened(compared(left, right))) {
    if (typeof line === "number") {
      flush();
      rows.push(skipped(line));
    } else if (line.kind === "removed") removed.push(line.text);
    else if (line.kind === "added") added.push(line.text);
    else {
      flush();
      rows.push(lineOf("same", line.text), lineOf("same", line.text));
    }
  }
  flush();
  return el("div", { class: "diff sides" }, el("div", { class: "title" }, leftTitle), el("div", { class: "title" }, rightTitle), ...rows);
}
