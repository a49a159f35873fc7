// @ts-check
// Keys that have a text anywhere in them, found by looking at every key below a prefix.

import { list } from "./api.js";
import { byId, button, el, problemBox } from "./dom.js";
import { counted } from "./format.js";
import { hashOf, shownKey } from "./keys.js";

const PAGE = 1000; // keys that are asked for at once
const MOST_FOUND = 500; // until more is asked for
const MOST_LOOKED_AT = 100_000;

/** What finds `text` in a key, in capitals or not. @param {string} text */
export const matcher = (text) => new RegExp(text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"), "iu");

/** Shows instead of the list what was found. */
export class FindView {
  constructor() {
    this.text = "";
    this.prefix = "";
    this.lookedAt = 0;
    this.found = 0;
    this.node = byId("found");
    this.foot = byId("find-foot");
    this.searching = new AbortController();
  }

  /** @param {string} prefix @param {string} text empty: nothing is looked for, and the list is shown */
  show(prefix, text) {
    for (const id of ["entries", "list-foot", "list-problem"]) byId(id).hidden = Boolean(text);
    for (const node of [this.node, this.foot]) node.hidden = !text;
    if (text === this.text && prefix === this.prefix) return;
    this.stop();
    Object.assign(this, { text, prefix });
    this.node.replaceChildren();
    this.lookedAt = this.found = 0;
    if (text) this.#search("");
  }

  stop() {
    this.searching.abort();
  }

  /** @param {string} cursor where to go on */
  async #search(cursor) {
    const { signal } = (this.searching = new AbortController());
    const pattern = matcher(this.text);
    const [enough, far] = [this.found + MOST_FOUND, this.lookedAt + MOST_LOOKED_AT];
    let next = cursor;
    do {
      this.#tell("", button("Stop", () => this.stop()));
      try {
        const page = await list({ prefix: this.prefix, limit: PAGE, cursor: next });
        if (this.searching.signal !== signal) return;
        next = page.cursor ?? "";
        this.lookedAt += page.items.length;
        this.#append(page.items.filter(({ key }) => pattern.test(key)));
      } catch (problem) {
        if (this.searching.signal !== signal) return;
        const from = next;
        this.foot.replaceChildren(problemBox(/** @type {import("./api.js").Problem} */ (problem), button("Try again", () => this.#search(from))));
        return;
      }
    } while (next && !signal.aborted && this.found < enough && this.lookedAt < far);
    const rest = next;
    if (rest) this.#tell(" so far", button("Look further", () => this.#search(rest)));
    else this.#tell("", null);
  }

  /** @param {import("./api.js").Fields[]} items */
  #append(items) {
    this.found += items.length;
    this.node.append(...items.map(({ key }) => el("li", {}, el("a", { class: "key", href: hashOf({ prefix: this.prefix, find: this.text, key }), "data-id": key }, el("span", { class: "name" }, ...this.#marked(key))))));
  }

  /** @param {string} key */
  #marked(key) {
    const match = /** @type {RegExpExecArray} */ (matcher(this.text).exec(key));
    const end = match.index + match[0].length;
    return [shownKey(key.slice(0, match.index)), el("mark", {}, shownKey(match[0])), shownKey(key.slice(end))];
  }

  /** @param {string} more @param {Node | null} action */
  #tell(more, action) {
    this.foot.replaceChildren(`${counted(this.found, "key")} found, ${counted(this.lookedAt, "key")} looked at${more}. `, action ?? "");
  }
}
