// @ts-check
// Elements without markup: text only ever becomes text.

import { jsonPieces } from "./format.js";
import { shownKey } from "./keys.js";

/**
 * @param {string} tag
 * @param {Record<string, any>} [attributes] functions are listeners (`onclick`), true stands alone, false and null are left out
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {any}
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") /** @type {any} */ (node)[name] = value;
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false).map((child) => /** @type {any} */ (child)));
  return node;
}

/** Attributes of a field whose text the browser must not change. */
export const VERBATIM = { autocomplete: "off", autocapitalize: "off", spellcheck: "false" };

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/** @param {string} label @param {() => void} onclick @param {Record<string, any>} [attributes] */
export const button = (label, onclick, attributes = {}) => el("button", { type: "button", ...attributes, onclick }, label);

/** Let a button be pressed or not, and say why not. @param {HTMLButtonElement} node @param {boolean} isAllowed
 * @param {string} title @param {string} why */
export function allow(node, isAllowed, title, why) {
  node.disabled = !isAllowed;
  node.title = isAllowed ? title : why;
}

/** Say `text` to those who cannot see the page change. @param {string} text */
export function announce(text) {
  byId("announcer").textContent = text;
}

/** Who made a change, and why; nothing where neither is known. @param {{ author?: string, message?: string }} change */
export function byline({ author, message }) {
  if (!author && !message) return null;
  return el("span", { class: "byline" }, author && el("span", { class: "author" }, `by ${shownKey(author)}`), message && el("q", {}, shownKey(message)));
}

const MOST_COLOURED = 64 * 1024; // characters

/** JSON by lines with its colours, or without if it is long. @param {string} text @returns {(Node | string)[]} */
export function coloured(text) {
  if (text.length > MOST_COLOURED) return [text];
  return jsonPieces(text).map((piece) => (piece.kind ? el("span", { class: `json-${piece.kind}` }, piece.text) : piece.text));
}

/** What went wrong, in the words of the service. @param {import("./api.js").Problem} problem @param {...Node} more */
export function problemBox(problem, ...more) {
  return el(
    "div",
    { class: "box bad", role: "alert" },
    el("strong", {}, problem.title),
    el("p", {}, problem.message),
    more.length ? el("div", { class: "actions" }, ...more) : null,
  );
}

/** Show a dialog, which is taken away when it is closed. @param {string} title @param {...(Node | null)} body @returns {HTMLDialogElement} */
export function dialog(title, ...body) {
  const root = el("dialog", { "aria-labelledby": "question", onclose: () => root.remove() }, el("h2", { id: "question" }, title), ...body);
  document.body.append(root);
  root.showModal();
  return root;
}

/**
 * Ask in a dialog; true if the reader says yes.
 * @param {string} title @param {(Node | string)[]} body @param {string} yes @param {string} [kind]
 * @returns {Promise<boolean>}
 */
export function confirmed(title, body, yes, kind = "danger") {
  return new Promise((resolve) => {
    const root = dialog(
      title,
      el("p", {}, ...body),
      el(
        "div",
        { class: "actions" },
        button("Cancel", () => root.close("no")),
        button(yes, () => root.close("yes"), { class: kind, id: "yes" }),
      ),
    );
    root.addEventListener("close", () => resolve(root.returnValue === "yes"));
  });
}
