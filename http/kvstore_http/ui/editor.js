// @ts-check
// Writing a value, on condition that nobody else wrote it meanwhile.

import { Problem, bytesOf, get, put, serviceNow, writeNumber } from "./api.js";
import { sideBySide } from "./compare.js";
import { merge } from "./diff.js";
import { VERBATIM, announce, button, confirmed, el, problemBox } from "./dom.js";
import { draftOf, dropDraft, keepDraft } from "./drafts.js";
import { clock, compactJson, grouped, isJson, prettyIfJson, prettyJson, seemsJson, size, span } from "./format.js";
import { faultOf, shownKey } from "./keys.js";

const TEXT = "text/plain; charset=utf-8";
const TYPES = [TEXT, "application/json", "text/html; charset=utf-8", "application/yaml", "application/octet-stream", "image/png", "image/svg+xml"];
const MOST_COLOURED = 512 * 1024; // characters; a plain text area is quicker with more
const MOST_LINES = 20_000; // to lay out more holds up the page for seconds
const MARKERS = /^(<<<<<<< mine|>>>>>>> theirs)$/m;

/** A text area has only line feeds. @param {string} text */
const withLineFeeds = (text) => text.replace(/\r\n?/g, "\n");

/** Whether a text area can give back what it is given. @param {import("./api.js").Value} value */
export const isEditable = ({ text }) => text !== null && !text.includes("\0");

/** @param {import("./api.js").Value} record @returns {import("./drafts.js").Draft} */
function draftFrom(record) {
  const text = withLineFeeds(record.text ?? "");
  return {
    key: record.key,
    isNew: false,
    text,
    contentType: record.content_type,
    expiry: record.expires_at ? "keep" : "none",
    ttl: "",
    message: "",
    base: baseFrom(record),
  };
}

/** @param {import("./api.js").Value} record */
function baseFrom(record) {
  const text = record.text ?? "";
  return { revision: record.revision, text: withLineFeeds(text), crlf: /\r\n/.test(text), expiresAt: record.expires_at };
}

/** @param {string} prefix @returns {import("./drafts.js").Draft} */
const newDraft = (prefix) => ({ key: prefix, isNew: true, text: "", contentType: TEXT, expiry: "none", ttl: "", message: "", base: { revision: 0, text: "", crlf: false } });

/** A form for one key. `root` is its element. */
export class Editor {
  /**
   * @param {{ record?: import("./api.js").Value, prefix?: string, mayExpire?: boolean, onSaved: (key: string) => void, onClosed: () => void }} what
   */
  constructor({ record, prefix = "", mayExpire = true, onSaved, onClosed }) {
    this.record = record;
    this.mayExpire = mayExpire; // what expires is deleted, which takes a right of its own
    this.isNew = !record;
    this.onSaved = onSaved;
    this.onClosed = onClosed;
    const kept = draftOf(record?.key ?? "", this.isNew);
    this.draft = kept ?? (record ? draftFrom(record) : newDraft(prefix));
    /** @type {File | null} */
    this.file = null;
    this.isFileWanted = record !== undefined && !isEditable(record);
    this.isSaving = false;
    this.isInsisting = false;
    this.isColoured = false;
    this.attempt = { what: "", number: "" };
    this.#build();
    if (record && kept && kept.base.revision !== record.revision) this.changed(record.revision, true);
  }

  // ── the form ──────────────────────────────────────────────────────────────────────────────────

  #build() {
    const { draft } = this;
    const keep = () => this.#keep();
    this.notice = el("div", { class: "notice" });
    this.keyInput = el("input", { id: "edit-key", value: draft.key, ...VERBATIM, oninput: keep });
    /** @type {any} a text area, or what is used as one */
    this.area = el("textarea", { id: "edit-value", ...VERBATIM, rows: 14, value: draft.text, oninput: keep });
    this.typer = button("Store as application/json", () => this.#storeAsJson(), { class: "link" });
    this.shaper = el("span", { class: "shaper" }, this.typer, button("Format", () => this.#shape(prettyJson), { class: "link" }), button("On one line", () => this.#shape(compactJson), { class: "link" }));
    this.chooser = el("input", { id: "edit-file", type: "file", onchange: () => this.#choose() });
    this.type = el("input", { id: "edit-type", value: draft.contentType, list: "types", ...VERBATIM, oninput: keep });
    this.expiry = el("select", { id: "edit-expiry", onchange: keep }, ...this.#expiries());
    this.expiry.value = draft.expiry;
    this.ttl = el("input", { id: "edit-ttl", value: draft.ttl, placeholder: "30s, 5m, 2h, 7d", "aria-label": "Time to live", autocomplete: "off", oninput: keep });
    this.message = el("input", { id: "edit-message", value: draft.message ?? "", placeholder: "kept in the history", autocomplete: "off", oninput: keep });
    this.hint = el("p", { class: "quiet hint", id: "edit-hint" });
    this.save = button("Save", () => this.store(), { class: "primary" });
    this.switcher = button("", () => this.#switch(), { class: "link" });
    this.textField = el("div", { class: "field grow" }, el("div", { class: "above" }, el("label", { for: "edit-value" }, "Value"), this.shaper), this.area);
    this.fileField = el("div", { class: "field grow" }, el("label", { for: "edit-file" }, "The new value, from a file"), this.chooser, el("p", { class: "quiet" }, this.record && !isEditable(this.record) ? "This value is binary. A text field would damage it, so it can only be replaced as a whole." : ""));
    this.root = el(
      "form",
      { class: "editor", "aria-label": this.isNew ? "New key" : `Edit ${shownKey(draft.key)}`, onsubmit: (/** @type {Event} */ event) => (event.preventDefault(), this.store()) },
      this.notice,
      this.isNew && el("div", { class: "field" }, el("label", { for: "edit-key" }, "Key"), this.keyInput),
      this.textField,
      this.fileField,
      el("div", { class: "above" }, this.hint, this.switcher),
      el(
        "div",
        { class: "pair" },
        el("div", { class: "field" }, el("label", { for: "edit-type" }, "Media type"), this.type, el("datalist", { id: "types" }, ...TYPES.map((type) => el("option", { value: type })))),
        el("div", { class: "field" }, el("label", { for: "edit-expiry" }, "Expires"), el("div", { class: "row" }, this.expiry, this.ttl)),
      ),
      el("div", { class: "field" }, el("label", { for: "edit-message" }, "Why"), this.message),
      el("div", { class: "actions foot-of-form" }, button("Close", () => this.close()), this.save),
    );
    this.#refresh();
  }

  #expiries() {
    const { expiresAt } = this.draft.base;
    return [
      el("option", { value: "none" }, "never"),
      expiresAt ? el("option", { value: "keep" }, `as it is: ${clock(expiresAt)}`) : null,
      this.mayExpire && el("option", { value: "set" }, "after …"),
    ];
  }

  #switch() {
    this.isFileWanted = !this.isFileWanted;
    this.#refresh();
  }

  #choose() {
    this.file = this.chooser.files[0] ?? null;
    if (this.file?.type) this.type.value = this.file.type;
    this.#refresh();
  }

  /** Note what was typed, where it outlasts everything. */
  #keep() {
    Object.assign(this.draft, { text: this.area.value, contentType: this.type.value, expiry: this.expiry.value, ttl: this.ttl.value, message: this.message.value });
    if (this.isNew) this.draft.key = this.keyInput.value;
    this.#store();
    this.#refresh();
  }

  #store() {
    if (this.isDirty) keepDraft(this.draft);
    else dropDraft(this.draft.key, this.isNew);
  }

  /** Whether closing would lose anything that was typed. */
  get isDirty() {
    const { draft, record } = this;
    if (draft.message || draft.ttl) return true;
    if (!record) return draft.text !== "";
    return draft.text !== withLineFeeds(record.text ?? "") || draft.contentType !== record.content_type || draft.base.revision !== record.revision;
  }

  #refresh() {
    this.textField.hidden = this.isFileWanted;
    this.fileField.hidden = !this.isFileWanted;
    this.switcher.hidden = this.record !== undefined && !isEditable(this.record);
    this.switcher.textContent = this.isFileWanted ? "Type a text instead" : "Take a file instead";
    this.ttl.hidden = this.expiry.value !== "set";
    this.hint.textContent = this.#hintText();
    this.shaper.hidden = !this.#isForJson;
    this.typer.hidden = isJson(this.type.value) || this.shaper.hidden || Boolean(this.#faultIn(this.area.value));
    this.#showInsisting(false);
    if (this.#isForJson) this.#colour();
  }

  get #isForJson() {
    return !this.isFileWanted && seemsJson(this.type.value, this.area.value);
  }

  #storeAsJson() {
    this.type.value = "application/json";
    this.#keep();
    this.area.focus();
  }

  /** Write the same JSON in another shape. @param {(text: string) => string} shape */
  #shape(shape) {
    let text;
    try {
      text = shape(this.area.value);
    } catch {
      return this.#complain(new Problem({ title: "This is no JSON yet", detail: this.#faultIn(this.area.value) }), this.area);
    }
    const lines = text.split("\n").length;
    if (lines > MOST_LINES)
      return this.#complain(new Problem({ title: "Too long to format here", detail: `It would be ${grouped(lines)} lines; a program does that better, for example 'kvstore get KEY | jq .'.` }), this.area);
    this.area.value = text;
    this.#keep();
  }

  /** Put a field with colours in the place of the text area, once it is loaded; if it cannot be, all goes on as it is. */
  async #colour() {
    if (this.isColoured || this.area.value.length > MOST_COLOURED) return;
    this.isColoured = true;
    const { CodeField } = await import("./code.js").catch(() => ({ CodeField: null }));
    const { area } = this;
    if (!CodeField || !area.isConnected) return;
    const field = new CodeField(area.value);
    field.isChecked = () => this.#isForJson;
    field.id = area.id;
    field.setSelectionRange(area.selectionStart, area.selectionEnd);
    const hadFocus = document.activeElement === area;
    area.replaceWith(field);
    this.area = field;
    field.readOnly = this.isSaving;
    field.addEventListener("input", () => this.#keep());
    if (hadFocus) field.focus();
  }

  /** What is wrong with a text that is to be JSON, "" if nothing is. */
  #jsonFault() {
    return this.isFileWanted || !isJson(this.type.value) ? "" : this.#faultIn(this.area.value);
  }

  /** @param {string} text */
  #faultIn(text) {
    try {
      JSON.parse(text);
      return "";
    } catch (error) {
      return /** @type {Error} */ (error).message;
    }
  }

  #hintText() {
    if (this.isFileWanted) return this.file ? `${this.file.name}, ${size(this.file.size)}` : "";
    const broken = this.#jsonFault();
    if (broken) return `Not JSON yet: ${broken}`;
    const { text } = this.record ?? { text: null };
    if (text && /\r/.test(text)) {
      return /^(\r\n|[^\r\n])*$/.test(text) ? "Its lines end with CR LF, and will again." : "Its lines end in different ways; saved from here, all end with CR LF.";
    }
    return "";
  }

  focus() {
    (this.isNew ? this.keyInput : this.isFileWanted ? this.chooser : this.area).focus();
  }

  /** Close the form. What was typed stays as a draft. */
  close() {
    this.#store();
    if (this.isDirty) announce("Closed. What you typed is kept as a draft.");
    this.onClosed();
  }

  // ── saving ────────────────────────────────────────────────────────────────────────────────────

  /** Store the value if the key still is as it was when the editing began. */
  async store() {
    if (this.isSaving) return;
    const key = this.isNew ? this.keyInput.value : this.draft.key;
    const fault = faultOf(key);
    if (fault) return this.#complain(new Problem({ title: "This key cannot be used", detail: fault }), this.keyInput);
    if (this.isFileWanted && !this.file) return this.#complain(new Problem({ title: "No file is chosen", detail: "Choose the file that holds the new value." }), this.chooser);
    if (!this.isFileWanted && MARKERS.test(this.draft.text) && this.isMerging) {
      const body = ["Lines with <<<<<<< and >>>>>>> mark what still needs a decision."];
      if (!(await confirmed("Save with the marks of the merge?", body, "Save as it is", "primary"))) return;
    }
    const broken = this.#jsonFault();
    if (broken && !this.isInsisting) {
      this.#showInsisting(true);
      const detail = `It would be stored as ${this.draft.contentType}: ${broken}. Mend it, or save it as it is.`;
      return this.#complain(new Problem({ title: "This is not JSON", detail }), this.area);
    }
    this.#store();
    this.#setSaving(true);
    try {
      const bytes = this.isFileWanted ? new Uint8Array(await /** @type {File} */ (this.file).arrayBuffer()) : bytesOf(this.#wholeText());
      const written = await put(key, bytes, this.#how(key));
      dropDraft(this.draft.key, this.isNew);
      announce(`Saved at revision ${written.revision}.`);
      this.onSaved(key);
    } catch (problem) {
      this.#failed(key, /** @type {Problem} */ (problem));
    } finally {
      this.#setSaving(false);
    }
  }

  #wholeText() {
    return this.draft.base.crlf ? this.draft.text.replace(/\n/g, "\r\n") : this.draft.text;
  }

  /** The same number for the same write, so that trying again cannot do it twice. @param {string} key */
  #how(key) {
    const { contentType, expiry, ttl, message, base } = this.draft;
    const what = JSON.stringify([key, this.isFileWanted ? [this.file?.name, this.file?.lastModified] : this.draft.text, contentType, expiry, ttl, message, base.revision]);
    if (what !== this.attempt.what) this.attempt = { what, number: writeNumber() };
    return { contentType: contentType || "application/octet-stream", revision: base.revision, number: this.attempt.number, message, ttl: expiry === "set" ? ttl.trim() : undefined, keepsTtl: expiry === "keep" };
  }

  /** What does not parse is saved by a second click. @param {boolean} isInsisting */
  #showInsisting(isInsisting) {
    if (this.isInsisting && !isInsisting) this.notice.replaceChildren();
    this.isInsisting = isInsisting;
    this.save.textContent = isInsisting ? "Save anyway" : "Save";
  }

  /** @param {boolean} isSaving */
  #setSaving(isSaving) {
    this.isSaving = isSaving;
    this.area.readOnly = isSaving;
    this.save.textContent = isSaving ? "Saving …" : this.isInsisting ? "Save anyway" : "Save";
    this.save.setAttribute("aria-disabled", String(isSaving));
  }

  /** @param {Problem} problem @param {HTMLElement} [field] */
  #complain(problem, field) {
    this.notice.replaceChildren(problemBox(problem));
    field?.focus();
  }

  /** @param {string} key @param {Problem} problem */
  #failed(key, problem) {
    if (!(problem instanceof Problem)) problem = new Problem({ title: "The page failed", detail: String(problem) });
    if (problem.code === "condition_failed") {
      this.attempt.what = "";
      this.#compare(key);
      return;
    }
    if (!problem.retryable) this.attempt.what = "";
    const kept = el("span", { class: "quiet" }, "Nothing is lost: what you typed is kept here.");
    this.notice.replaceChildren(problemBox(problem, kept, button("Try again", () => this.store())));
    this.notice.scrollIntoView({ block: "nearest" });
  }

  // ── conflicts ─────────────────────────────────────────────────────────────────────────────────

  /** Somebody else wrote the key while it is edited. @param {number} revision @param {boolean} [isOld] */
  changed(revision, isOld = false) {
    if (revision <= this.draft.base.revision || this.isComparing || this.isSaving) return;
    const said = isOld ? `Your draft began at revision ${this.draft.base.revision}; the key is at ${revision} now.` : `Changed to revision ${revision} by someone else while you edit.`;
    const box = el("div", { class: "box warn", role: "status" }, el("p", {}, said), el("div", { class: "actions" }, button("Compare", () => this.#compare(this.draft.key))));
    this.notice.replaceChildren(box);
  }

  /** Show both versions, and let the reader choose. @param {string} key */
  async #compare(key) {
    this.isComparing = true;
    let theirs;
    try {
      theirs = await get(key);
    } catch (error) {
      const problem = /** @type {Problem} */ (error);
      if (problem.code !== "not_found") {
        this.isComparing = false;
        this.#failed(key, problem);
        return;
      }
    }
    this.notice.replaceChildren(this.#conflict(key, theirs));
    this.notice.scrollIntoView({ block: "start" });
    this.notice.querySelector("h3")?.focus();
  }

  /** @param {string} key @param {import("./api.js").Value | undefined} theirs */
  #conflict(key, theirs) {
    const mine = this.isFileWanted ? null : this.draft.text;
    const said = theirs
      ? this.draft.base.revision
        ? `It is at revision ${theirs.revision} now; you began with ${this.draft.base.revision}.`
        : `It has been created meanwhile, at revision ${theirs.revision}.`
      : "It has been deleted meanwhile.";
    const canMerge = theirs && mine !== null && isEditable(theirs);
    const title = el("h3", { tabindex: -1 }, "Someone else changed this key");
    const shown = canMerge
      ? sideBySide(withLineFeeds(theirs.text ?? ""), mine, el("span", {}, `Theirs, revision ${theirs.revision}`), el("span", {}, "Mine, not saved"))
      : el("p", {}, this.#summary(theirs), " Mine: ", mine === null ? `the file ${this.file?.name}` : size(bytesOf(mine).length), ".");
    return el(
      "div",
      { class: "box warn conflict", role: "alertdialog", "aria-label": "Someone else changed this key" },
      title,
      el("p", {}, said, " Nothing was stored."),
      shown,
      el(
        "div",
        { class: "actions" },
        button("Keep theirs", () => this.close(), { title: "What you typed stays as a draft until you discard it" }),
        canMerge && button("Edit a merge", () => this.#merge(key, /** @type {import("./api.js").Value} */ (theirs))),
        button("Overwrite with mine", () => this.#overwrite(theirs), { class: "danger" }),
      ),
    );
  }

  /** @param {import("./api.js").Value | undefined} theirs */
  #summary(theirs) {
    return theirs ? `Theirs: ${theirs.content_type}, ${size(theirs.bytes.length)}.` : "There is no value any more.";
  }

  #settle() {
    this.isComparing = false;
    this.notice.replaceChildren();
    this.#refresh();
  }

  /** @param {import("./api.js").Value | undefined} theirs */
  async #overwrite(theirs) {
    this.draft.base = { ...this.draft.base, revision: theirs?.revision ?? 0 };
    this.#settle();
    await this.store();
  }

  /** @param {string} key @param {import("./api.js").Value} theirs */
  #merge(key, theirs) {
    const { text, conflicts } = merge(...mergeable(this.draft.base.text, this.draft.text, withLineFeeds(theirs.text ?? "")));
    const before = { ...this.draft };
    this.draft.base = baseFrom(theirs);
    this.area.value = text;
    this.isMerging = true;
    this.#settle();
    this.#keep();
    const said = conflicts
      ? `${conflicts === 1 ? "One place needs" : `${conflicts} places need`} your decision: both versions stand between <<<<<<< and >>>>>>>.`
      : "Both changes are in the text below. Look at it, then save.";
    const undo = button("Back to what I typed", () => {
      this.draft.base = before.base;
      this.area.value = before.text;
      this.#keep();
      this.#compare(key);
    });
    this.notice.replaceChildren(el("div", { class: "box", role: "status" }, el("p", {}, said), el("div", { class: "actions" }, undo)));
    this.area.focus();
  }
}

/** Three texts to be merged by lines: as they are, or JSON with a line for each member if all of them are JSON.
 * @param {string} base @param {string} mine @param {string} theirs @returns {[string, string, string]} */
function mergeable(base, mine, theirs) {
  const pretty = [base, mine, theirs].map((text) => prettyIfJson("", text));
  return pretty.includes(null) ? [base, mine, theirs] : /** @type {any} */ (pretty);
}

/** How long until `expiresAt`, in words. @param {string} expiresAt */
export const left = (expiresAt) => span(Date.parse(expiresAt) - serviceNow());
