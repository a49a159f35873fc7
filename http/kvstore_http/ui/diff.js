// @ts-check
// What differs between two texts, by lines, and what becomes of two changes of the same text.

const MAX_CHANGES = 1000; // more than this many changed lines are not matched up: the search is quadratic

/**
 * A line of a comparison. `left` and `right` are its numbers in the two texts, counted from 1.
 * @typedef {{ kind: "same" | "removed" | "added", text: string, left?: number, right?: number }} Line
 */

/**
 * The lines of both texts in order, each marked as in both, only in `before`, or only in `after`.
 * As few as possible are marked (Myers' algorithm) up to MAX_CHANGES; beyond that, whole blocks are.
 * @param {string} before @param {string} after @returns {Line[]}
 */
export function diffLines(before, after) {
  const a = before.split("\n");
  const b = after.split("\n");
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const kinds = [
    ...Array(head).fill("same"),
    ...script(a.slice(head, a.length - tail), b.slice(head, b.length - tail)),
    ...Array(tail).fill("same"),
  ];
  let left = 0;
  let right = 0;
  return kinds.map((kind) => {
    if (kind === "removed") return { kind, text: a[left++], left };
    if (kind === "added") return { kind, text: b[right++], right };
    right++;
    return { kind, text: a[left++], left, right };
  });
}

/** The kinds of the lines, in order. @param {string[]} a @param {string[]} b @returns {("same" | "removed" | "added")[]} */
function script(a, b) {
  const rounds = search(a, b);
  if (!rounds) return [...a.map(() => /** @type {const} */ ("removed")), ...b.map(() => /** @type {const} */ ("added"))];
  /** @type {("same" | "removed" | "added")[]} */
  const kinds = [];
  let x = a.length;
  let y = b.length;
  for (let d = rounds.length - 1; d > 0; d--) {
    const reached = rounds[d - 1]; // of diagonal k at k + d - 1
    const k = x - y;
    const down = k === -d || (k !== d && at(reached, d - 1, k - 1) < at(reached, d - 1, k + 1));
    const fromX = at(reached, d - 1, down ? k + 1 : k - 1);
    const fromY = fromX - (down ? k + 1 : k - 1);
    while (x > fromX + (down ? 0 : 1)) kinds.push("same"), x--, y--;
    kinds.push(down ? "added" : "removed");
    x = fromX;
    y = fromY;
  }
  while (x > 0) kinds.push("same"), x--;
  return kinds.reverse();
}

/** @param {Int32Array} reached @param {number} d @param {number} k */
const at = (reached, d, k) => (k < -d || k > d ? -1 : reached[k + d]);

/** How far each diagonal gets with 0, 1, 2 … changes; null if there are too many. @param {string[]} a @param {string[]} b */
function search(a, b) {
  /** @type {Int32Array[]} */
  const rounds = [];
  const most = Math.min(a.length + b.length, MAX_CHANGES);
  for (let d = 0; d <= most; d++) {
    const last = rounds[d - 1];
    const reached = new Int32Array(2 * d + 1).fill(-1);
    for (let k = -d; k <= d; k += 2) {
      let x = 0;
      if (d) {
        const down = k === -d || (k !== d && at(last, d - 1, k - 1) < at(last, d - 1, k + 1));
        x = down ? at(last, d - 1, k + 1) : at(last, d - 1, k - 1) + 1;
      }
      let y = x - k;
      while (x < a.length && y < b.length && a[x] === b[y]) x++, y++;
      reached[k + d] = x;
      if (x >= a.length && y >= b.length) {
        rounds.push(reached);
        return rounds;
      }
    }
    rounds.push(reached);
  }
  return null;
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
