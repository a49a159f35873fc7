// @ts-check
// The list of keys and folders below a prefix. It is read page by page, and follows changes by itself.

import { Problem, list } from "./api.js";
import { byId, button, el, problemBox } from "./dom.js";
import { brief, counted, kindOfType } from "./format.js";
import { behindFolder, compareKeys, folderOf, hashOf, innerFolder, shownKey, trail } from "./keys.js";

const WANTED = 200; // entries that are read at once
const MOST = 1000; // the most that a page of the service has
const MOST_TO_REVEAL = 10_000; // entries that are read until the open key is among them
const CHECK_MS = 300;

/** A key or a folder. `revision` is that of the key, or up to which the folder's `count` of keys is right: null where
 * they are many, or were not counted.
 * @typedef {{ id: string, isFolder: boolean, revision: number, expires?: string, count?: number | null,
 *   bytes?: number, type?: string, row?: HTMLElement }} Entry */

export class ListView {
  /** @param {{ onShown: (count: number, isWhole: boolean) => void, grants: () => import("./grants.js").Grants }} page */
  constructor({ onShown, grants }) {
    this.onShown = onShown;
    this.grants = grants;
    /** whether what is shown is not a listing but where the reader may look */
    this.isRoots = false;
    this.prefix = "";
    this.isFlat = false;
    this.shownFor = "";
    this.key = "";
    this.isLoaded = false;
    this.revision = 0;
    /** @type {Entry[]} in the store's order */
    this.entries = [];
    /** @type {Map<string, Entry>} */
    this.byId = new Map();
    /** @type {string | null} the cursor to read on with, empty at the beginning, null at the end */
    this.next = "";
    this.turn = 0;
    /** @type {import("./stream.js").Change[]} that came while the list was being read */
    this.missed = [];
    this.checks = new Set();
    this.unmeasured = new Set();
    this.measuring = 0;
    this.node = byId("entries");
    this.foot = byId("list-foot");
    this.problem = byId("list-problem");
    this.more = button("Load more", () => this.#read());
    this.watcher = new IntersectionObserver((seen) => seen.at(-1)?.isIntersecting && this.isLoaded && this.#read(), {
      root: byId("browser"),
      rootMargin: "600px",
    });
    this.node.addEventListener("focusin", (/** @type {any} */ event) => this.#rove(event.target));
  }

  /** @param {import("./keys.js").Place} place */
  show({ prefix, flat, key }) {
    if (key !== this.key) this.isRevealed = false;
    this.key = key;
    if (this.isLoaded && prefix === this.prefix && flat === this.isFlat) {
      this.#mark();
      this.#reveal();
      return;
    }
    this.prefix = prefix;
    this.isFlat = flat;
    this.#showTrail();
    this.reload();
  }

  /** Read the list anew, as far as it was read before. */
  async reload() {
    const isSame = this.shownFor === `${this.isFlat} ${this.prefix}`;
    await this.#read(true, isSame ? Math.max(WANTED, this.entries.length) : WANTED);
  }

  async #read(isAnew = false, wanted = WANTED) {
    if (!isAnew && (this.isReading || this.next === null)) return;
    const turn = ++this.turn;
    this.isReading = true;
    /** @type {Entry[]} */
    const found = [];
    if (isAnew) this.isRoots = this.#roots(found);
    let next = null;
    let revision = this.revision;
    try {
      if (!this.isRoots) {
        const page = await this.#ask({ limit: Math.min(wanted, MOST), cursor: isAnew ? "" : this.next });
        if (turn !== this.turn) return;
        if (isAnew) revision = page.revision;
        next = page.cursor;
        found.push(...this.#entriesOf(page));
      }
    } catch (problem) {
      if (turn !== this.turn) return;
      this.problem.replaceChildren(problemBox(/** @type {Problem} */ (problem), button("Try again", () => this.#read(isAnew, wanted))));
      return;
    } finally {
      if (turn === this.turn) this.isReading = false;
    }
    this.problem.replaceChildren();
    this.next = next;
    this.revision = revision;
    this.isLoaded = true;
    if (isAnew) this.#replace(found);
    else this.#append(found);
    for (const change of this.missed.splice(0)) this.apply(change);
    this.#reveal();
  }

  /** Bring the open key into view: the list is read on until there. It is left alone once it was seen. */
  #reveal() {
    if (this.isRevealed || !this.key || this.isReading) return;
    const last = this.entries.at(-1);
    const isBehind = this.next && last && compareKeys(last.id, this.key) < 0 && this.entries.length < MOST_TO_REVEAL;
    if (!this.byId.has(this.key) && isBehind && this.key.startsWith(this.prefix)) {
      this.#read(false, MOST);
      return;
    }
    this.isRevealed = true;
    this.byId.get(this.key)?.row?.scrollIntoView({ block: "nearest" });
  }

  /** Where a reader who may not list the prefix may look below it, put into `found`; false if that is nowhere, or if they
   * may. @param {Entry[]} found */
  #roots(found) {
    const grants = this.grants();
    if (grants.covers("list", this.prefix)) return false;
    for (const { scope, isPrefix } of grants.below(this.prefix, ["list", "read", "write"])) {
      if (!found.some(({ id }) => id === scope)) found.push({ id: scope, isFolder: isPrefix, revision: 0 });
    }
    found.sort((one, other) => compareKeys(one.id, other.id));
    return found.length > 0;
  }

  /** A page of what is below the prefix. @param {Record<string, any>} query */
  #ask(query) {
    return list({ prefix: this.prefix, ...(!this.isFlat && { delimiter: "/", counts: 1 }), ...query });
  }

  /** @param {import("./api.js").ListPage} page @returns {Entry[]} */
  #entriesOf({ items, prefixes = [], counts = [], revision }) {
    const keys = items.map(({ key, revision, expires_at: expires, bytes, content_type: type }) => ({ id: key, isFolder: false, revision, expires, bytes, type }));
    const folders = prefixes.map((id, at) => ({ id, isFolder: true, revision, count: counts[at] }));
    return [...keys, ...folders].sort((one, other) => compareKeys(one.id, other.id));
  }

  /** @param {string} key */
  #folderOf(key) {
    return this.isFlat ? null : innerFolder(key, folderOf(this.prefix));
  }

  // ── showing ───────────────────────────────────────────────────────────────────────────────────

  /** @param {Entry[]} entries */
  #replace(entries) {
    const focused = document.activeElement;
    const hadFocus = focused && this.node.contains(focused) ? this.#idOf(focused) : null;
    const wanted = `${this.isFlat} ${this.prefix}`;
    if (this.shownFor !== wanted) byId("browser").scrollTop = 0;
    this.shownFor = wanted;
    this.entries = [];
    this.byId.clear();
    this.node.replaceChildren();
    this.#append(entries);
    if (hadFocus !== null) (this.byId.get(hadFocus)?.row ?? this.node.querySelector("a"))?.focus();
  }

  /** @param {Entry[]} entries */
  #append(entries) {
    for (const entry of entries) {
      if (this.byId.has(entry.id)) continue;
      this.byId.set(entry.id, entry);
      this.entries.push(entry);
      this.node.append(this.#item(entry));
    }
    this.#mark();
    this.#count();
  }

  /** @param {Entry} entry */
  #item(entry) {
    const { id, isFolder } = entry;
    const place = isFolder ? { prefix: id } : { prefix: this.prefix, flat: this.isFlat, key: id };
    const base = this.isFlat ? "" : folderOf(this.prefix);
    const star = isFolder && !id.endsWith("/") ? "*" : ""; // a scope that ends inside a name
    const name = (shownKey(id.slice(base.length)) || shownKey(id)) + star;
    entry.row = el("a", { href: hashOf(place), class: isFolder ? "folder" : "key", tabindex: -1, "data-id": id }, el("span", { class: "name" }, name), el("span", { class: "meta" }, this.#meta(entry)));
    return el("li", {}, entry.row);
  }

  /** @param {Entry} entry */
  #meta({ isFolder, expires, count, bytes, type }) {
    if (isFolder) return count ? counted(count, "key") : count === null ? "over 1,000 keys" : "";
    if (bytes === undefined || type === undefined) return "";
    return [expires && "expires", kindOfType(type), brief(bytes)].filter(Boolean).join(" · ");
  }

  #mark() {
    for (const row of this.node.querySelectorAll("[aria-current]")) row.removeAttribute("aria-current");
    const row = this.byId.get(this.key)?.row;
    row?.setAttribute("aria-current", "true");
    this.#rove(row ?? this.node.querySelector("a[tabindex='0']") ?? this.node.querySelector("a"));
  }

  /** One row at a time takes part in Tab; the others are reached by arrows. @param {HTMLElement | undefined | null} row */
  #rove(row) {
    if (!row) return;
    for (const other of this.node.querySelectorAll("a[tabindex='0']")) other.setAttribute("tabindex", "-1");
    row.setAttribute("tabindex", "0");
  }

  #count() {
    const count = this.entries.length;
    const keys = this.entries.filter((entry) => !entry.isFolder).length;
    const parts = [keys || count === 0 ? counted(keys, "key") : "", count - keys ? counted(count - keys, "folder") : ""];
    let text = `${parts.filter(Boolean).join(", ")}${this.next ? " so far" : ""}`;
    if (this.isRoots) text = "What you may see.";
    this.foot.replaceChildren(this.prefix && !count ? `No key begins with “${shownKey(this.prefix)}”.` : text, " ", this.next ? this.more : "");
    this.watcher.disconnect(); // begun anew, it tells also if the button did not leave the view meanwhile
    if (this.next) this.watcher.observe(this.more);
    this.onShown(count, !this.next);
  }

  #showTrail() {
    const steps = [{ name: this.grants().covers("list", "") ? "all keys" : "start", prefix: "" }, ...trail(this.prefix)];
    const here = folderOf(this.prefix);
    const links = steps.map(({ name, prefix }) =>
      el("a", { href: hashOf({ prefix, flat: this.isFlat }), "aria-current": prefix === here ? "location" : null }, shownKey(name)),
    );
    byId("trail").replaceChildren(...links);
  }

  // ── following changes ─────────────────────────────────────────────────────────────────────────

  /** @param {import("./stream.js").Change} change */
  apply(change) {
    if (this.isReading) {
      this.missed.push(change);
      return;
    }
    const { op, key, revision, version } = change;
    if (!this.isLoaded || this.isRoots || !key.startsWith(this.prefix) || revision <= this.revision) return;
    const folder = this.#folderOf(key);
    const entry = this.byId.get(folder ?? key);
    if (folder) {
      if (entry && revision > entry.revision) this.#recount(entry, op, version);
      // right up to the revision before: others of this one may follow
      else if (!entry && op === "put") this.#insert({ id: folder, isFolder: true, revision: revision - 1, count: 1 });
    } else if (op !== "put") {
      if (entry) this.#drop(entry);
    } else if (!entry) {
      this.#insert({ id: key, isFolder: false, revision, expires: change.expires_at, type: change.content_type });
      this.#measure(key);
    } else if (revision > entry.revision) {
      entry.revision = revision;
      entry.expires = change.expires_at;
      entry.type = change.content_type;
      this.#showMeta(entry);
      this.#flash(entry);
      this.#measure(key);
    }
  }

  /** Ask how long the value of a key is now, with those of others that change meanwhile. @param {string} key */
  #measure(key) {
    this.unmeasured.add(key);
    this.measuring ||= setTimeout(async () => {
      this.measuring = 0;
      const keys = [...this.unmeasured].filter((each) => this.byId.has(each)).sort(compareKeys);
      this.unmeasured.clear();
      if (!keys.length) return;
      const page = await this.#ask({ start: keys[0], limit: MOST }).catch(() => null);
      if (!page) return;
      for (const { key, bytes } of page.items) {
        const entry = this.byId.get(key);
        if (!entry || entry.bytes === bytes) continue;
        entry.bytes = bytes;
        this.#showMeta(entry);
      }
      const last = page.items.at(-1)?.key;
      if (page.cursor && last) for (const key of keys) if (compareKeys(key, last) > 0) this.#measure(key);
    }, CHECK_MS);
  }

  /** @param {Entry} entry */
  #showMeta(entry) {
    const meta = /** @type {any} */ (entry.row?.querySelector(".meta"));
    meta.textContent = this.#meta(entry);
  }

  /** A key in a folder came, changed or went. @param {Entry} entry @param {string} op @param {number} [version] */
  #recount(entry, op, version) {
    const by = op !== "put" ? -1 : version === 1 ? 1 : 0;
    // one that expired may have been gone already when the folder was counted
    if (by < 0 && (op === "expire" || !entry.count || entry.count === 1)) this.#checkFolder(entry.id);
    else if (by && entry.count) {
      entry.count += by;
      this.#showMeta(entry);
    }
  }

  /** @param {Entry} entry */
  #flash({ row }) {
    row?.classList.remove("changed");
    void row?.offsetWidth; // lets the animation start over
    row?.classList.add("changed");
  }

  /** @param {Entry} entry */
  #insert(entry) {
    let at = this.entries.length;
    while (at > 0 && compareKeys(this.entries[at - 1].id, entry.id) > 0) at--;
    if (at === this.entries.length && this.next) return; // it will come with what is not read yet
    this.entries.splice(at, 0, entry);
    this.byId.set(entry.id, entry);
    this.node.insertBefore(this.#item(entry), this.node.children[at] ?? null);
    this.#flash(entry);
    this.#mark();
    this.#count();
  }

  /** @param {Entry} entry */
  #drop(entry) {
    const at = this.entries.indexOf(entry);
    this.entries.splice(at, 1);
    this.byId.delete(entry.id);
    const item = this.node.children[at];
    if (item.contains(document.activeElement)) this.move(at ? -1 : 1);
    item.remove();
    this.#mark();
    this.#count();
  }

  /** A key was taken out of a folder: was it the last one, and how many are left? @param {string} folder */
  #checkFolder(folder) {
    if (this.checks.has(folder)) return;
    this.checks.add(folder);
    setTimeout(async () => {
      this.checks.delete(folder);
      if (!this.byId.has(folder)) return; // another place is shown by now
      const page = await this.#ask({ start: folder, end: behindFolder(folder), limit: 1 }).catch(() => null);
      const entry = this.byId.get(folder);
      if (!page || !entry || page.cursor || page.revision < entry.revision) return;
      const [left] = this.#entriesOf(page);
      if (!left) return this.#drop(entry);
      entry.count = left.count;
      entry.revision = left.revision;
      this.#showMeta(entry);
    }, CHECK_MS);
  }

  // ── keyboard ──────────────────────────────────────────────────────────────────────────────────

  /** @param {Element} row */
  #idOf(row) {
    return row.getAttribute("data-id");
  }

  /** Move the focus by so many rows. @param {number} by */
  move(by) {
    const rows = /** @type {HTMLElement[]} */ ([...this.node.querySelectorAll("a")]);
    if (!rows.length) return;
    const from = rows.findIndex((row) => row === document.activeElement);
    const start = from >= 0 ? from + by : Math.max(0, rows.findIndex((row) => row.tabIndex === 0));
    rows[Math.min(Math.max(start, 0), rows.length - 1)].focus();
  }
}
