// @ts-check
// What happened to a key, newest first, what each change changed, and the way back.

import { Problem, get, history, put, withBytes, writeNumber } from "./api.js";
import { unfolded } from "./change.js";
import { announce, button, byline, confirmed, el, problemBox } from "./dom.js";
import { downloadLink } from "./download.js";
import { DONE, grouped, moment, size } from "./format.js";
import { shownKey } from "./keys.js";

const PAGE = 20;

export class HistoryView {
  /** `present` gives the key's revision, 0 if it is gone. @param {string} key
   * @param {{ present: () => number, mayRestore: boolean, onRestored: () => void }} page */
  constructor(key, { present, mayRestore, onRestored }) {
    this.key = key;
    this.present = present;
    this.mayRestore = mayRestore;
    this.onRestored = onRestored;
    /** @type {any[]} newest first */
    this.events = [];
    /** @type {string | null} */
    this.cursor = null;
    this.list = el("ol", { class: "events", "aria-label": "Events, newest first" });
    this.foot = el("div", { class: "foot quiet" }, "Reading …");
    this.root = el("div", {}, this.list, this.foot);
    this.#read();
  }

  async #read() {
    let page;
    try {
      page = await history(this.key, this.cursor, PAGE);
    } catch (problem) {
      this.foot.replaceChildren(problemBox(/** @type {Problem} */ (problem)));
      return;
    }
    this.cursor = page.cursor;
    for (const fields of page.events) {
      const event = fields.op === "put" ? withBytes(fields) : fields;
      this.events.push(event);
      this.list.append(this.#item(event, this.events.length - 1));
    }
    const first = page.truncated ? "The log does not reach further back." : "This is where it began.";
    this.foot.replaceChildren(this.cursor ? button("Older ones", () => this.#read()) : first);
  }

  /** @param {any} event @param {number} index */
  #item(event, index) {
    const about = event.op === "put" ? [event.content_type, size(event.bytes.length)] : [];
    if (event.expires_at) about.push(`expires ${moment(event.expires_at)}`);
    const body = el("div", { class: "body" });
    const details = el(
      "details",
      { ontoggle: () => details.open && !body.hasChildNodes() && this.#unfold(event, index, body) },
      el("summary", {}, el("span", { class: `op ${event.op}` }, this.#name(event)), ` revision ${grouped(event.revision)} `, el("time", { datetime: event.time }, moment(event.time)), byline(event)),
      el("p", { class: "quiet" }, about.join(" · ")),
      body,
    );
    if (index === 0) details.open = true;
    return el("li", {}, details);
  }

  /** @param {any} event */
  #name(event) {
    if (event.op !== "put") return DONE[/** @type {"delete"} */ (event.op)];
    if (!event.previous_revision) return "created";
    return event.time === event.modified_at ? "stored" : "expiry changed";
  }

  /** The value before `event`, from what is here or from the service; null if there was none, undefined
   * if it is no longer known. @param {any} event @param {number} index */
  async #before(event, index) {
    if (!event.previous_revision) return null;
    const older = this.events.slice(index + 1).find(({ op }) => op === "put");
    if (older?.revision === event.previous_revision) return older;
    return get(this.key, event.previous_revision).catch(() => undefined);
  }

  /** @param {any} event @param {number} index @param {HTMLElement} body */
  async #unfold(event, index, body) {
    body.replaceChildren(el("p", { class: "quiet" }, "Reading …"));
    const before = await this.#before(event, index);
    const actions = event.op === "put" && el(
      "div",
      { class: "actions start" },
      event.revision === this.present() ? el("span", { class: "quiet" }, "This is the present value.") : this.mayRestore && button("Restore this version", () => this.#restore(event, body)),
      downloadLink(this.key, () => event.bytes, event.revision),
    );
    body.replaceChildren(unfolded(before, event.op === "put" ? event : null), ...(actions ? [actions] : []));
  }

  /** Put the value of `event` again, on condition that the key is as it is known here. @param {any} event @param {HTMLElement} body */
  async #restore(event, body) {
    const what = ["The value of ", el("code", {}, shownKey(this.key)), ` as of revision ${event.revision} is stored again, as a new version without an expiry. The history keeps the present one.`];
    if (!(await confirmed("Restore this version?", what, "Restore", "primary"))) return;
    try {
      const { revision } = await put(this.key, event.bytes, { contentType: event.content_type, revision: this.present(), number: writeNumber() });
      announce(`Restored as revision ${revision}.`);
      this.onRestored();
    } catch (problem) {
      body.prepend(problemBox(/** @type {Problem} */ (problem)));
    }
  }
}
