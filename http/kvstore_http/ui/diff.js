// @ts-check
// What differs between two texts, by lines and by words, and what becomes of two changes of the same text.

import { diffArrays, diffWordsWithSpace } from "./vendor/diff.js";

const MAX_CHANGES = 1000; // more than this many changed lines are not matched up: the search is quadratic
const MAX_LINE = 4000; // characters of two lines whose words are compared, for the same reason

/**
 * A line of a comparison. `left` and `right` are its numbers in the two texts, counted from 1.
 * @typedef {{ kind: "same" | "removed" | "added", text: string, left?: number, right?: number }} Line
 */

/**
 * A part that jsdiff found: in both texts, or only in one.
 * @template T @typedef {{ value: T, added?: boolean, removed?: boolean }} Part
 */

/**
 * The lines of both texts in order, each marked as in both, only in `before`, or only in `after`.
 * As few as possible are marked (Myers' algorithm) up to MAX_CHANGES; beyond that, whole blocks are.
 * @param {string} before @param {string} after @returns {Line[]}
 */
export function diffLines(before, after) {
  const [a, b] = [before.split("\n"), after.split("\n")];
  /** @type {Part<string[]>[]} */
  const parts = diffArrays(a, b, { maxEditLength: MAX_CHANGES }) ?? [{ value: a, removed: true }, { value: b, added: true }];
  let [left, right] = [0, 0];
  return parts.flatMap(({ value, removed, added }) =>
    value.map((text) => {
      if (removed) return { kind: "removed", text, left: ++left };
      if (added) return { kind: "added", text, right: ++right };
      return { kind: "same", text, left: ++left, right: ++right };
    }),
  );
}

/**
 * A part of a line, and whether the other line lacks it.
 * @typedef {{ text: string, isMarked: boolean }} Piece
 */

/**
 * Both lines in pieces, those marked that only one of them has; null if they are too long, or have too little in
 * common for the marks to help.
 * @param {string} before @param {string} after @returns {[Piece[], Piece[]] | null}
 */
export function diffWords(before, after) {
  if (before.length + after.length > MAX_LINE) return null;
  /** @type {Part<string>[]} */
  const parts = diffWordsWithSpace(before, after);
  const common = parts.filter(({ added, removed }) => !added && !removed).map(({ value }) => value.trim());
  if (common.join("").length * 4 < Math.min(before.trim().length, after.trim().length)) return null;
  const of = (/** @type {"added" | "removed"} */ other, /** @type {"added" | "removed"} */ own) =>
    parts.filter((part) => !part[other]).map((part) => ({ text: part.value, isMarked: Boolean(part[own]) }));
  return [of("added", "removed"), of("removed", "added")];
}

/** For each line of `before` its index in `after`, -1 where it is gone. @param {string} before @param {string} after */
function counterparts(before, after) {
  const found = Array(before.split("\n").length).fill(-1);
  for (const line of diffLines(before, after)) {
    if (line.kind === "same") found[/** @type {number} */ (line.left) - 1] = /** @type {number} */ (line.right) - 1;
  }
  return found;
}

/**
 * Both changes of `base` in one text. Where they touch the same lines, both stand there between markers,
 * and `conflicts` counts such places.
 * @param {string} base @param {string} mine @param {string} theirs
 */
export function merge(base, mine, theirs) {
  const [o, x, y] = [base, mine, theirs].map((text) => text.split("\n"));
  const inMine = counterparts(base, mine);
  const inTheirs = counterparts(base, theirs);
  /** @type {string[]} */
  const lines = [];
  let conflicts = 0;
  let [i, j, k] = [0, 0, 0];
  while (i < o.length || j < x.length || k < y.length) {
    if (i < o.length && inMine[i] === j && inTheirs[i] === k) {
      lines.push(o[i++]);
      j++, k++;
      continue;
    }
    let next = i;
    while (next < o.length && (inMine[next] < 0 || inTheirs[next] < 0)) next++;
    const ends = next < o.length ? [inMine[next], inTheirs[next]] : [x.length, y.length];
    const [was, ours, others] = [o.slice(i, next), x.slice(j, ends[0]), y.slice(k, ends[1])];
    if (isSame(ours, was)) lines.push(...others);
    else if (isSame(others, was) || isSame(ours, others)) lines.push(...ours);
    else {
      conflicts++;
      lines.push("<<<<<<< mine", ...ours, "=======", ...others, ">>>>>>> theirs");
    }
    [i, j, k] = [next, ends[0], ends[1]];
  }
  return { text: lines.join("\n"), conflicts };
}

/** @param {string[]} a @param {string[]} b */
const isSame = (a, b) => a.length === b.length && a.every((line, index) => line === b[index]);

/**
 * The comparison with long unchanged stretches left out: a number stands for that many lines.
 * @param {Line[]} lines @param {number} context @returns {(Line | number)[]}
 */
export function shortened(lines, context = 3) {
  const near = new Uint8Array(lines.length);
  lines.forEach((line, index) => {
    if (line.kind !== "same") near.fill(1, Math.max(0, index - context), index + context + 1);
  });
  /** @type {(Line | number)[]} */
  const shown = [];
  let skipped = 0;
  lines.forEach((line, index) => {
    if (!near[index]) {
      skipped++;
      return;
    }
    if (skipped) shown.push(skipped);
    skipped = 0;
    shown.push(line);
  });
  if (skipped) shown.push(skipped);
  return shown;
}
