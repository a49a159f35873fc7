// @ts-check
// The page: where the reader is, what the keyboard does, and how the service fares.

import { address, reach, status } from "./api.js";
import { ChangesView } from "./changes.js";
import { announce, button, byId, el } from "./dom.js";
import { exportDialog } from "./export.js";
import { FindView } from "./find.js";
import { clock, counted, grouped } from "./format.js";
import { HealthView } from "./health.js";
import { hashOf, parentOf, placeOf, shownKey } from "./keys.js";
import { ListView } from "./list.js";
import { Login } from "./login.js";
import { deleteDialog, moveDialog } from "./moves.js";
import { Follower } from "./stream.js";
import { ValueView } from "./value.js";

const STATUS_MS = 5_000;

let place = placeOf(location.hash);
const login = new Login({ onChange: () => (isShown ? goOn() : begin()) });
const grants = () => login.grants;
const value = new ValueView({ go, grants });
const list = new ListView({ onShown: showEmptiness, grants });
const find = new FindView();
const health = new HealthView();
const changes = new ChangesView({ go, grants });
const follower = new Follower({
  onChange: (change) => {
    list.apply(change);
    value.apply(change);
    askStatusSoon();
  },
  onSync: catchUp,
  onReset: () => {
    announce("The store started over; everything is read anew.");
    list.reload();
    value.catchUp();
  },
  onState: (state) => {
    if (state === "lost") askStatus();
  },
});

// ── where the reader is ─────────────────────────────────────────────────────────────────────────

/** @param {Partial<import("./keys.js").Place>} change @param {{ replace?: boolean }} [how] */
function go(change, { replace = false } = {}) {
  const hash = hashOf({ ...place, ...change });
  if (replace) history.replaceState(null, "", hash);
  else if (hash !== (location.hash || "#")) history.pushState(null, "", hash);
  show();
}

function show() {
  place = placeOf(location.hash);
  const isKeys = place.view === "keys";
  for (const view of ["keys", "changes", "health"]) {
    byId(`${view}-view`).hidden = view !== place.view;
    if (view === place.view) byId(`to-${view}`).setAttribute("aria-current", "page");
    else byId(`to-${view}`).removeAttribute("aria-current");
  }
  byId("keys-view").classList.toggle("open", Boolean(place.key || place.isNew));
  byId("to-changes").href = hashOf({ view: "changes", prefix: place.prefix });
  byId("to-keys").href = isKeys ? hashOf({}) : hashOf({ prefix: place.prefix });
  byId("new-key").href = newKey();
  byId("new-key").hidden = !mayCreate();
  document.title = `${place.isNew ? "New key" : place.key ? shownKey(place.key) : VIEWS[place.view]} · kvstore`;
  if (place.view === "health") health.show();
  else health.stop();
  if (place.view === "changes") changes.show(place.prefix);
  else changes.stop();
  if (isKeys) showKeys();
  else follower.forget(); // coming back, the list is read anew
}

const VIEWS = { keys: "Keys", changes: "Changes", health: "Health" };

function showKeys() {
  for (const [id, text] of [["prefix", place.prefix], ["find", place.find]]) {
    if (byId(id).value !== text) byId(id).value = text;
  }
  find.show(place.prefix, place.find);
  showFolderActions();
  byId("flat").checked = place.flat;
  list.show(place);
  value.show(place);
  if (list.isLoaded) showEmptiness(list.entries.length, !list.next);
  const may = grants();
  follower.follow({
    prefixes: may.covers("watch", place.prefix) ? [place.prefix] : [],
    keys: place.key && may.may("watch", place.key) ? [place.key] : [],
  });
}

/** What can be done with all that is below the prefix. */
function showFolderActions() {
  const { prefix, find } = place;
  const may = grants();
  const isFolder = prefix.endsWith("/");
  const gone = () => go({ prefix: parentOf(prefix), key: "", find: "" });
  const move = (/** @type {boolean} */ isCopy) => () => moveDialog({ source: prefix, isFolder: true, isCopy, onDone: (target) => go({ prefix: target, key: "", find: "" }) });
  const choices = [
    may.covers("list", prefix) && may.covers("read", prefix) && button("Export …", () => exportDialog({ prefix, find })),
    isFolder && may.covers("delete", prefix) && button("Rename folder …", move(false)),
    isFolder && may.covers("read", prefix) && button("Duplicate folder …", move(true)),
    isFolder && may.covers("delete", prefix) && button("Delete folder …", () => deleteDialog(prefix, gone), { class: "danger" }),
  ].filter((choice) => choice !== false);
  byId("folder-menu").hidden = !choices.length;
  byId("folder-menu").open = false;
  byId("folder-actions").replaceChildren(...choices);
}

/** Whether the reader may write anything here, or anywhere below. */
const mayCreate = () => grants().covers("write", place.prefix) || grants().below(place.prefix, ["write"]).length > 0;

/** Where a new key is written: inside the only place where it can be, if there is just one. */
function newKey() {
  const scopes = grants().covers("write", place.prefix) ? [] : grants().below(place.prefix, ["write"]);
  const prefix = scopes.length === 1 ? scopes[0].scope : place.prefix;
  return hashOf({ ...place, prefix, isNew: true, tab: "value" });
}

/** Everything up to `revision` came. In the beginning, and after a loss, the list may be older than that.
 * @param {number} revision */
function catchUp(revision) {
  if (!list.isLoaded || revision <= list.revision) return;
  list.reload();
  value.catchUp();
}

/** What stands beside the list while no key is open. @param {number} count @param {boolean} isWhole */
function showEmptiness(count, isWhole) {
  const isEmpty = isWhole && !count && !place.prefix;
  byId("keys-view").classList.toggle("empty", isEmpty);
  value.showNothing(isEmpty ? welcome() : el("p", { class: "nothing quiet" }, "Choose a key to see its value, or press ", el("kbd", {}, "?"), " for the shortcuts."));
}

function welcome() {
  const at = address("v1/kv/greeting");
  return el(
    "div",
    { class: "welcome" },
    el("h2", {}, "Nothing is stored yet"),
    el("p", {}, "A key can be any text, and a value any bytes. Store the first one here, or from a shell:"),
    el("pre", { tabindex: 0, "aria-label": "An example" }, `curl -X PUT -d 'hello' ${at}\ncurl ${at}`),
    el("p", { class: "quiet" }, "It appears in this page at once."),
    el("a", { class: "button primary", href: hashOf({ isNew: true }) }, "Create a key"),
  );
}

// ── how the service fares ───────────────────────────────────────────────────────────────────────

let state = "unknown";
let since = 0;
let asking = 0;

reach.addEventListener("reached", (event) => {
  const now = /** @type {CustomEvent} */ (event).detail;
  if (now !== state) {
    since = Date.now();
    const was = state;
    state = now;
    if (now === "yes" && was !== "unknown") login.refresh({ isBack: true });
  }
  const text = { yes: "Connected", daemon: `The daemon is away since ${clock(since)}`, service: `Not reachable since ${clock(since)}` }[state];
  if (byId("health-text").textContent !== text) byId("health-text").textContent = text ?? "";
  byId("health").dataset.state = state;
  changes.showReach(state);
});

async function askStatus() {
  clearTimeout(asking);
  asking = setTimeout(askStatus, state === "yes" ? STATUS_MS : 1_000);
  if (document.hidden) return;
  const told = await status().catch(() => null);
  const keys = told?.keys === undefined ? "" : ` · ${counted(told.keys, "key")}`; // not everybody may know how many
  if (told) byId("figures").textContent = `revision ${grouped(told.revision)}${keys}`;
  else byId("figures").textContent = "";
}

function askStatusSoon() {
  clearTimeout(asking);
  asking = setTimeout(askStatus, 300);
}

// ── the keyboard ────────────────────────────────────────────────────────────────────────────────

const help = byId("help");
const NO_SHORTCUTS = "kvstore.no-shortcuts";

const SHORTCUTS = {
  "/": () => {
    const field = place.view === "keys" ? byId("prefix") : byId("tail-prefix");
    if (place.view === "keys" && matchMedia("(max-width: 44rem)").matches) go({ key: "", isNew: false });
    field.focus();
    field.select();
  },
  f: () => place.view === "keys" && byId("find").focus(),
  "?": () => help.showModal(),
  j: () => list.move(1),
  ArrowDown: () => list.move(1),
  k: () => list.move(-1),
  ArrowUp: () => list.move(-1),
  u: () => go({ prefix: parentOf(place.prefix), key: "", isNew: false }),
  n: () => byId("new-key").hidden || byId("new-key").click(),
  e: () => value.edit(),
  d: () => value.remove(),
  h: () => place.key && go({ tab: place.tab === "history" ? "value" : "history" }),
  c: () => go({ view: place.view === "changes" ? "keys" : "changes", key: "", isNew: false }),
  p: () => place.view === "changes" && changes.pause(),
};

/** @param {KeyboardEvent} event */
function onKey(event) {
  if (event.defaultPrevented) return; // a field has made use of it
  const target = /** @type {HTMLElement} */ (event.target);
  const isTyping = target.matches("input:not([type=checkbox]), textarea, select, code-field");
  if (document.querySelector("dialog[open]") || event.defaultPrevented || event.isComposing) return;
  if ((event.ctrlKey || event.metaKey) && !event.altKey && (event.key === "Enter" || event.key.toLowerCase() === "s")) {
    if (!value.editor) return;
    event.preventDefault();
    if (!event.repeat) value.editor.store();
  } else if (event.key === "Escape") {
    onEscape(target);
  } else if (target.id === "prefix" && (event.key === "ArrowDown" || event.key === "Enter")) {
    event.preventDefault();
    list.move(0);
  } else if (!isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    onShortcut(event, target);
  }
}

/** @param {HTMLElement} target */
function onEscape(target) {
  if (byId("folder-menu").open) byId("folder-menu").open = false;
  else if (target.id === "find") go({ find: "" }, { replace: true });
  else if (target.id === "prefix" || target.id === "tail-prefix") target.blur();
  else if (value.editor) value.editor.close();
  else if (place.view === "keys") {
    const { key } = place;
    value.close();
    if (key) list.move(0);
  }
}

/** @param {KeyboardEvent} event @param {HTMLElement} target */
function onShortcut(event, target) {
  const isArrow = event.key.startsWith("Arrow");
  if (isArrow && (place.view !== "keys" || target.closest("#detail"))) return; // there they scroll
  if (!isArrow && localStorageHas(NO_SHORTCUTS)) return;
  const act = SHORTCUTS[/** @type {keyof typeof SHORTCUTS} */ (event.key)];
  if (!act) return;
  event.preventDefault();
  act();
}

/** @param {string} name */
function localStorageHas(name) {
  try {
    return localStorage.getItem(name) !== null;
  } catch {
    return false;
  }
}

byId("help-button").addEventListener("click", () => help.showModal());
byId("help-close").addEventListener("click", () => help.close());
byId("shortcuts").checked = !localStorageHas(NO_SHORTCUTS);
byId("shortcuts").addEventListener("change", (/** @type {any} */ event) => {
  try {
    if (event.target.checked) localStorage.removeItem(NO_SHORTCUTS);
    else localStorage.setItem(NO_SHORTCUTS, "1");
  } catch {
    announce("The browser does not let this page remember that.");
  }
});

let typing = 0;
byId("prefix").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => go({ prefix: byId("prefix").value }, { replace: true }), 120);
});
let finding = 0;
byId("find").addEventListener("input", () => {
  clearTimeout(finding);
  finding = setTimeout(() => go({ find: byId("find").value }, { replace: true }), 250);
});
byId("folder-actions").addEventListener("click", () => (byId("folder-menu").open = false));
byId("flat").addEventListener("change", () => go({ flat: byId("flat").checked }));
addEventListener("popstate", show);
addEventListener("keydown", onKey);
document.addEventListener("visibilitychange", () => document.hidden || askStatus());

// ── who the reader is ───────────────────────────────────────────────────────────────────────────

let isShown = false;

function begin() {
  isShown = true;
  show();
  askStatus();
}

/** The service is back, or the reader is: go on where it stopped, with the rights of now. */
function goOn() {
  show();
  list.reload();
  value.catchUp();
  follower.resume();
  changes.resume();
}

await login.refresh();
if (!isShown && !login.isNeeded) begin(); // the service cannot be reached, and the page says so
