// @ts-check
// One key: its value, what is known about it, and what can be done with it.

import { Problem, get, persist, remove, touch, valueAddress } from "./api.js";
import { allow, announce, byId, button, byline, coloured, confirmed, el, problemBox } from "./dom.js";
import { downloadLink } from "./download.js";
import { draftOf, dropDraft } from "./drafts.js";
import { Editor, left } from "./editor.js";
import { clock, grouped, hex, moment, pictureType, prettyIfJson, shortSize, shortType, size } from "./format.js";
import { HistoryView } from "./history.js";
import { folderOf, hashOf, shownKey } from "./keys.js";
import { moveDialog } from "./moves.js";
import { half } from "./session.js";

const SHOWN_BYTES = 64 * 1024; // of a hex dump, until more is asked for
const SHOWN_CHARACTERS = 256 * 1024; // of a text
const SVG = /^image\/svg\+xml\b/i;

/** @typedef {"text" | "json" | "image" | "hex"} Form */

export class ValueView {
  /** @param {{ go: (change: Partial<import("./keys.js").Place>, how?: { replace?: boolean }) => void,
   *   grants: () => import("./grants.js").Grants }} page */
  constructor({ go, grants }) {
    this.go = go;
    this.grants = grants;
    this.root = byId("detail");
    this.key = "";
    /** @type {import("./keys.js").Place} */
    this.place = /** @type {any} */ ({});
    /** @type {import("./api.js").Value | null} */
    this.record = null;
    /** @type {Editor | null} */
    this.editor = null;
    /** @type {Form | null} what the reader chose to see, if it is there */
    this.chosen = null;
    this.isUnfolded = false;
    this.turn = 0;
    this.picture = "";
    setInterval(() => this.#tick(), 1000);
  }

  // ── where the reader is ───────────────────────────────────────────────────────────────────────

  /** @param {import("./keys.js").Place} place */
  show(place) {
    const isSame = place.key === this.place.key && place.isNew === this.place.isNew;
    const isOtherTab = place.tab !== this.place.tab;
    this.place = place;
    if (isSame) {
      if (isOtherTab && place.key) this.#showTab();
      return;
    }
    this.editor?.close();
    this.editor = null;
    this.record = null;
    this.key = place.isNew ? "" : place.key;
    this.turn++;
    if (place.isNew) this.#showNew();
    else if (this.key) this.#open();
  }

  /** What stands here while no key is open. @param {Node} node */
  showNothing(node) {
    if (!this.key && !this.place.isNew) this.root.replaceChildren(node);
  }

  #showNew() {
    const editor = new Editor({
      prefix: this.place.prefix,
      onSaved: (key) => {
        if (this.editor !== editor) return; // the reader has gone elsewhere meanwhile
        this.editor = null;
        this.go({ key, isNew: false });
      },
      onClosed: () => {
        this.editor = null;
        this.go({ isNew: false });
      },
    });
    this.editor = editor;
    this.root.replaceChildren(el("div", { class: "head" }, this.#back(), el("h2", {}, "New key")), editor.root);
    editor.focus();
  }

  #back() {
    return button("‹ Keys", () => this.go({ key: "", isNew: false, tab: "value" }), { class: "back" });
  }

  /** The frame that stays while the value changes, so that the focus stays too. */
  #open() {
    this.notice = el("div", { class: "notice" });
    this.facts = el("div", { class: "facts" });
    this.body = el("div", { class: "body" });
    this.editButton = button("Edit", () => this.edit(), { title: "e" });
    this.deleteButton = button("Delete", () => this.remove(), { class: "danger", title: "d" });
    this.download = downloadLink(this.key, () => /** @type {import("./api.js").Value} */ (this.record).bytes);
    this.tabs = el("nav", { class: "tabs", "aria-label": "Value or history" });
    this.renameButton = button("Rename", () => this.#move(false));
    this.copyButton = button("Duplicate", () => this.#move(true));
    this.actions = el("div", { class: "actions start" }, this.editButton, this.download, this.renameButton, this.copyButton, this.deleteButton);
    this.root.replaceChildren(
      el("div", { class: "head" }, this.#back(), el("h2", { class: "key" }, shownKey(this.key))),
      this.actions,
      this.notice,
      this.facts,
      this.tabs,
      this.body,
    );
    this.body.replaceChildren(el("p", { class: "quiet" }, "Reading …"));
    for (const node of [this.editButton, this.download, this.renameButton, this.copyButton, this.deleteButton, this.facts]) node.hidden = true;
    this.root.scrollTop = 0;
    this.refresh();
  }

  /** Read the value anew and show it. */
  async refresh() {
    const { key } = this;
    const turn = ++this.turn;
    try {
      const record = await get(key);
      if (turn !== this.turn) return;
      this.record = record;
      this.missing = null;
    } catch (problem) {
      if (turn !== this.turn) return;
      this.missing = /** @type {Problem} */ (problem);
      if (this.missing.code === "not_found") this.record = null;
      else if (this.record) {
        this.notice.replaceChildren(problemBox(this.missing, button("Try again", () => this.refresh())));
        return;
      }
    }
    this.#showRecord();
  }

  #showRecord() {
    const { record } = this;
    for (const node of [this.editButton, this.download, this.renameButton, this.copyButton, this.deleteButton, this.facts]) node.hidden = !record;
    this.#showRights();
    this.#showFacts();
    this.#showDraft();
    this.#showTab();
  }

  /** What the reader may not do is to be seen, and cannot be pressed. */
  #showRights() {
    const grants = this.grants();
    allow(this.editButton, grants.may("write", this.key), "e", "You may not write this key");
    allow(this.deleteButton, grants.may("delete", this.key), "d", "You may not delete this key");
    allow(this.renameButton, grants.may("write", this.key) && grants.may("delete", this.key), "", "You may not delete this key");
    this.mayExpire = grants.may("write", this.key) && grants.may("delete", this.key);
  }

  #showDraft() {
    const draft = draftOf(this.key);
    if (!draft || this.editor) {
      this.notice.replaceChildren();
      return;
    }
    const discard = () => {
      dropDraft(this.key);
      this.#showDraft();
    };
    const go = this.record && button("Go on editing", () => this.edit());
    const lost = !this.record && el("details", {}, el("summary", {}, "Show what you typed"), el("pre", {}, draft.text));
    this.notice.replaceChildren(el("div", { class: "box warn" }, el("p", {}, "You typed something here that is not saved."), lost, el("div", { class: "actions" }, button("Discard it", discard), go)));
  }

  #showTab() {
    if (this.editor) return;
    const link = (/** @type {"value" | "history"} */ tab, /** @type {string} */ name) =>
      el("a", { href: hashOf({ ...this.place, tab }), "aria-current": this.place.tab === tab ? "page" : null }, name);
    this.tabs.replaceChildren(link("value", "Value"), link("history", "History"));
    this.tabs.hidden = false;
    if (this.place.tab === "history") this.#showHistory();
    else if (this.record) this.#showValue(this.record);
    else if (this.missing) this.#showMissing(this.missing);
  }

  #showHistory() {
    this.history = new HistoryView(this.key, { present: () => this.record?.revision ?? 0, mayRestore: this.grants().may("write", this.key), onRestored: () => this.refresh() });
    this.body.replaceChildren(this.history.root);
  }

  /** @param {Problem} problem */
  #showMissing(problem) {
    const isGone = problem.code === "not_found";
    const create = isGone && el("a", { class: "button primary", href: hashOf({ prefix: this.key, isNew: true }) }, "Create it");
    const again = !isGone && button("Try again", () => this.refresh());
    const history = isGone && el("a", { class: "button", href: hashOf({ ...this.place, tab: "history" }) }, "What happened to it");
    this.body.replaceChildren(problemBox(problem, ...[again, history, create].filter(Boolean)));
  }

  // ── what is known about it ────────────────────────────────────────────────────────────────────

  /** One line of what one looks for, and all of it unfolded. */
  #showFacts() {
    const { record } = this;
    if (!record) return;
    const { expires_at: expires } = record;
    this.countdown = expires ? el("span", {}, left(expires)) : null;
    const when = (/** @type {string} */ time) => el("time", { datetime: time }, moment(time));
    const change = this.mayExpire && button("Change", () => this.#askTtl(), { class: "link", "aria-label": "Change when it expires" });
    const expiry = expires ? el("time", { datetime: expires, title: moment(expires) }, "expires in ", this.countdown) : "never expires";
    const about = el("dl", { id: "about", hidden: !this.isUnfolded }, ...this.#about(record).map(([name, ...what]) => el("div", {}, el("dt", {}, name), el("dd", {}, ...what))));
    const unfold = button("Details", () => this.#unfold(), { class: "link", "aria-expanded": String(!about.hidden), "aria-controls": "about" });
    const items = [`revision ${grouped(record.revision)}`, `version ${grouped(record.version)}`, shortType(record.content_type), shortSize(record.bytes.length), when(record.modified_at)];
    this.facts.replaceChildren(
      el("p", { class: "line-of-facts" }, ...items.map((item) => el("span", {}, item)), el("span", {}, expiry, " ", change), unfold, byline(record)),
      about,
    );
  }

  /** @param {import("./api.js").Value} record @returns {[string, ...(Node | string)[]][]} */
  #about(record) {
    const when = (/** @type {string} */ time) => el("time", { datetime: time }, moment(time));
    return [
      ["Media type", record.content_type],
      ["Size", size(record.bytes.length)],
      ["Revision", grouped(record.revision)],
      ["Created at revision", grouped(record.create_revision)],
      ["Version", `${grouped(record.version)}, counted since it was created`],
      ["Modified", when(record.modified_at)],
      ["Expires", record.expires_at ? when(record.expires_at) : "never"],
    ];
  }

  #unfold() {
    this.isUnfolded = !this.isUnfolded;
    this.#showFacts();
    this.facts.querySelector("[aria-controls=about]").focus();
  }

  #tick() {
    if (this.countdown && this.record?.expires_at) this.countdown.textContent = left(this.record.expires_at);
  }

  #askTtl() {
    const input = el("input", { id: "ttl", placeholder: "30s, 5m, 2h, 7d", autocomplete: "off" });
    const form = el(
      "form",
      { class: "box row", onsubmit: (/** @type {Event} */ event) => (event.preventDefault(), this.#setTtl((revision) => touch(this.key, input.value.trim(), revision))) },
      el("label", { for: "ttl" }, "Expires after"),
      input,
      el("button", { class: "primary" }, "Set"),
      this.record?.expires_at && button("Never", () => this.#setTtl((revision) => persist(this.key, revision))),
      button("Cancel", () => this.#showDraft()),
    );
    this.notice.replaceChildren(form);
    input.focus();
  }

  /** @param {(revision: number) => Promise<any>} write */
  async #setTtl(write) {
    if (!this.record) return;
    try {
      const { expires_at: expires } = await write(this.record.revision);
      announce(expires ? `Expires at ${clock(expires)}.` : "Does not expire any more.");
      this.refresh();
    } catch (problem) {
      this.notice.append(problemBox(/** @type {Problem} */ (problem)));
    }
  }

  // ── the value ─────────────────────────────────────────────────────────────────────────────────

  /** @param {import("./api.js").Value} record */
  #showValue(record) {
    /** @type {Map<Form, () => Node>} */
    const forms = new Map();
    const pretty = record.text === null ? null : prettyIfJson(record.content_type, record.text);
    const picture = SVG.test(record.content_type) ? "svg" : pictureType(record.bytes);
    if (picture) forms.set("image", () => this.#image(record, picture));
    if (pretty !== null) forms.set("json", () => this.#text(pretty, coloured));
    if (record.text !== null) forms.set("text", () => this.#text(/** @type {string} */ (record.text)));
    forms.set("hex", () => this.#hex(record.bytes));
    const natural = record.text?.includes("\0") ? "hex" : /** @type {Form} */ (forms.keys().next().value);
    const form = this.chosen && forms.has(this.chosen) ? this.chosen : natural;
    const names = { image: "Picture", json: "JSON", text: pretty === null ? "Text" : "As stored", hex: "Hex" };
    const choices = [...forms.keys()].map((each) => button(names[each], () => ((this.chosen = each), this.#showValue(record)), { "aria-pressed": String(each === form), "data-form": each }));
    const hadFocus = document.activeElement?.getAttribute("data-form");
    const copy = record.text !== null && button("Copy", () => this.#copy(/** @type {string} */ (record.text)), { class: "link" });
    const node = /** @type {() => Node} */ (forms.get(form))();
    this.body.replaceChildren(el("div", { class: "forms", role: "group", "aria-label": "Show as" }, ...choices, copy), node);
    if (hadFocus) this.body.querySelector(`[data-form=${hadFocus}]`)?.focus();
  }

  /** @param {string} text @param {(text: string) => (Node | string)[]} show */
  #text(text, show = (text) => [text]) {
    return this.#beginning({ "aria-label": "The value" }, text.length, SHOWN_CHARACTERS, "characters", (end) => show(text.slice(0, end)));
  }

  /** @param {Uint8Array} bytes */
  #hex(bytes) {
    return this.#beginning({ class: "hex", "aria-label": "The bytes" }, bytes.length, SHOWN_BYTES, "bytes", (end) => [hex(bytes, end)]);
  }

  /** As much as is shown at first, and a button for all of it. @param {Record<string, string>} attributes
   * @param {number} length @param {number} most @param {string} unit @param {(end: number) => (Node | string)[]} upTo */
  #beginning(attributes, length, most, unit, upTo) {
    if (!length) return el("p", { class: "quiet" }, "The value is empty.");
    const pre = el("pre", { ...attributes, tabindex: 0 }, ...upTo(most));
    if (length <= most) return pre;
    return el("div", {}, pre, button(`Show all ${grouped(length)} ${unit}`, () => pre.replaceChildren(...upTo(length))));
  }

  /** @param {import("./api.js").Value} record @param {string} type */
  #image(record, type) {
    URL.revokeObjectURL(this.picture);
    // A drawing comes from its own address, where it may run nothing even when opened alone; a blob is of this
    // page's origin. But only the page can send its half of a session. So the blob then is gone once it is shown.
    const isByAddress = type === "svg" && !half();
    const media = type === "svg" ? "image/svg+xml" : type;
    this.picture = isByAddress ? "" : URL.createObjectURL(new Blob([/** @type {any} */ (record.bytes)], { type: media }));
    const caption = el("figcaption", { class: "quiet" });
    const image = el("img", { alt: `The picture stored under ${shownKey(record.key)}` });
    image.addEventListener("load", () => {
      caption.textContent = `${image.naturalWidth} × ${image.naturalHeight}`;
      if (type === "svg") URL.revokeObjectURL(this.picture);
    });
    image.addEventListener("error", () => (caption.textContent = "The browser cannot show this picture."));
    image.src = this.picture || `${valueAddress(record.key)}#${record.revision}`;
    return el("figure", {}, image, caption);
  }

  /** @param {string} text */
  async #copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      announce("Copied.");
    } catch {
      announce("The browser does not let this page copy; select the text instead.");
    }
  }

  // ── changing it ───────────────────────────────────────────────────────────────────────────────

  edit() {
    if (!this.record || this.editor || this.editButton.disabled) return;
    const close = () => {
      this.editor = null;
      for (const node of [this.actions, this.facts, this.tabs]) node.hidden = false;
      this.refresh();
      this.editButton.focus();
    };
    const saved = () => {
      if (this.editor === editor) close(); // else the reader has gone elsewhere meanwhile
    };
    const editor = new Editor({ record: this.record, mayExpire: this.mayExpire, onSaved: saved, onClosed: close });
    this.editor = editor;
    for (const node of [this.actions, this.facts, this.tabs]) node.hidden = true;
    this.notice.replaceChildren();
    this.body.replaceChildren(editor.root);
    editor.focus();
  }

  /** Give the key, or a copy of it, another name. @param {boolean} isCopy */
  #move(isCopy) {
    moveDialog({ source: this.key, isFolder: false, isCopy, onDone: (key) => this.go({ key, tab: "value", ...(folderOf(key) !== folderOf(this.key) && { prefix: folderOf(key) }) }) });
  }

  /** Delete the key if it still is as it is shown here. */
  async remove() {
    const { record, key } = this;
    if (!record || this.editor || this.deleteButton.disabled) return;
    const body = ["The key ", el("code", {}, shownKey(key)), ` and its value at revision ${record.revision} will be gone. The history keeps them for a while.`];
    if (!(await confirmed("Delete this key?", body, "Delete"))) return;
    try {
      const { revision } = await remove(key, record.revision);
      announce(`Deleted at revision ${revision}.`);
    } catch (problem) {
      await this.refresh();
      this.notice.replaceChildren(problemBox(/** @type {Problem} */ (problem)));
      return;
    }
    this.refresh();
  }

  // ── what others change ────────────────────────────────────────────────────────────────────────

  /** @param {import("./stream.js").Change} change */
  apply({ op, key, revision }) {
    if (key !== this.key || revision <= (this.record?.revision ?? 0)) return;
    if (this.editor) this.editor.changed(revision);
    else {
      announce(op === "put" ? `Changed to revision ${revision}.` : `Gone at revision ${revision}.`);
      this.refresh();
    }
  }

  /** Read it again, if it is not being edited: something may have been missed. */
  catchUp() {
    if (this.key && !this.editor) this.refresh();
  }

  /** What Esc does here: leave the form, or the key. */
  close() {
    if (this.editor) this.editor.close();
    else if (this.key) this.go({ key: "", tab: "value" });
  }
}
