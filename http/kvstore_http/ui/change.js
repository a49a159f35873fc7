// @ts-check
// One change of a key, unfolded: what differs from the value before, and the value itself.

import { get, textOf } from "./api.js";
import { changesOf } from "./compare.js";
import { button, coloured, el, problemBox } from "./dom.js";
import { counted, hex, prettyIfJson, size } from "./format.js";

const SHOWN = 16 * 1024; // bytes or characters of a value; the whole of it is at its key

/** @typedef {{ bytes: Uint8Array, content_type: string }} State a value as it was; null where there was none */

/**
 * What a change did: the difference, and on demand the value. `before` is undefined if it is no longer known.
 * @param {State | null | undefined} before @param {State | null} after null: it was deleted
 */
export function unfolded(before, after) {
  const body = el("div", {});
  /** @type {{ name: string, make: () => Node }[]} */
  const views = [];
  if (after && before !== null) views.push({ name: "Difference", make: () => differenceOf(before, after) });
  if (after) views.push({ name: "Value", make: () => valueOf(after) });
  if (before && !after) views.push({ name: "Value before", make: () => valueOf(before) });
  if (!views.length) return el("p", { class: "quiet" }, before === undefined ? "What was there before is no longer in the log." : "There was no value.");
  const choices = views.map(({ name, make }) => button(name, () => show(name, make), { "aria-pressed": "false" }));
  const show = (/** @type {string} */ chosen, /** @type {() => Node} */ make) => {
    for (const choice of choices) choice.setAttribute("aria-pressed", String(choice.textContent === chosen));
    body.replaceChildren(make());
  };
  show(views[0].name, views[0].make);
  const isChoice = views.length > 1;
  return el("div", { class: "change" }, isChoice && el("div", { class: "forms", role: "group", "aria-label": "Show" }, ...choices), body);
}

/** @param {State | undefined} before @param {State} after */
function differenceOf(before, after) {
  if (!before) return el("p", { class: "quiet" }, "What was there before is no longer in the log.");
  const [was, is] = [before, after].map(({ bytes }) => textOf(bytes));
  if (was === null || is === null) return el("p", { class: "quiet" }, `Binary: ${size(before.bytes.length)} before, ${size(after.bytes.length)} after.`);
  const type = before.content_type === after.content_type ? null : el("p", { class: "quiet" }, `The media type was ${before.content_type}, and is ${after.content_type}.`);
  return el("div", {}, type, changesOf(was, is));
}

/** @param {State} state */
function valueOf({ bytes, content_type: type }) {
  if (!bytes.length) return el("p", { class: "quiet" }, "The value is empty.");
  const text = textOf(bytes);
  if (text === null) return beginning("hex", [hex(bytes, SHOWN)], bytes.length - SHOWN, "byte");
  const pretty = prettyIfJson(type, text);
  if (pretty === null) return beginning("", [text.slice(0, SHOWN)], text.length - SHOWN, "character");
  return beginning("", coloured(pretty.slice(0, SHOWN)), pretty.length - SHOWN, "character");
}

/** What is shown of a value, and how much more there is. @param {string} kind @param {(Node | string)[]} shown
 * @param {number} rest @param {string} unit */
function beginning(kind, shown, rest, unit) {
  const pre = el("pre", { class: kind, tabindex: 0, "aria-label": "The value" }, ...shown);
  return el("div", {}, pre, rest > 0 && el("p", { class: "quiet" }, `and ${counted(rest, unit)} more`));
}

/**
 * The same for a change that is only known by name: both values are read when they are wanted. The element is there
 * at once. @param {{ key: string, op: string, revision: number, previous_revision?: number | null }} change
 */
export function unfoldedLater({ key, op, revision, previous_revision: previous }) {
  const root = el("div", {}, el("p", { class: "quiet" }, "Reading …"));
  const known = (/** @type {number} */ at) => get(key, at).catch((problem) => (problem.retryable ? Promise.reject(problem) : undefined));
  const read = async () => {
    try {
      const [before, after] = await Promise.all([previous ? known(previous) : null, op === "put" ? known(revision) : null]);
      root.replaceChildren(op === "put" && !after ? el("p", { class: "quiet" }, "This value is no longer in the log.") : unfolded(before, after ?? null));
    } catch (problem) {
      root.replaceChildren(problemBox(/** @type {import("./api.js").Problem} */ (problem), button("Try again", read)));
    }
  };
  read();
  return root;
}
