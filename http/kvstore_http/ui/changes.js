// @ts-check
// Changes as they happen, newest first, in bounded number.

import { status } from "./api.js";
import { unfoldedLater } from "./change.js";
import { VERBATIM, announce, button, byId, byline, el } from "./dom.js";
import { DONE, brief, clock, counted, grouped, moment } from "./format.js";
import { hashOf, shownKey } from "./keys.js";
import { Follower } from "./stream.js";

const MOST = 500; // rows; older ones are dropped
const PREVIEW_CHARACTERS = 200; // all that is kept of a value
const RECENT = 50; // revisions that are looked back at in the beginning

/** What was stored, on one line and cut. @param {import("./stream.js").Change} change */
function previewOf({ op, value }) {
  if (op !== "put") return "what it was";
  if (value instanceof Uint8Array) return `binary, ${brief(value.length)}`;
  return (value ?? "").slice(0, PREVIEW_CHARACTERS).replace(/\s+/g, " ").trim() || (value ? "blanks" : "empty");
}

export class ChangesView {
  /** @param {{ go: (change: Partial<import("./keys.js").Place>, how?: { replace?: boolean }) => void,
   *   grants: () => import("./grants.js").Grants }} page */
  constructor({ go, grants }) {
    this.go = go;
    this.grants = grants;
    this.isPaused = false;
    /** @type {import("./stream.js").Change[]} oldest first, not shown yet */
    this.waiting = [];
    /** @type {string | null} nothing is shown yet */
    this.prefix = null;
    this.turn = 0;
    this.seen = [0, 0];
    this.dropped = 0;
    this.frame = 0;
    this.lostAt = 0;
    this.follower = new Follower({
      values: true,
      onChange: (change) => this.#take(change),
      onState: (state, problem) => this.#showState(state, problem),
      onReset: (reason) => this.#startOver(reason === "epoch" ? "This is another store now, a restored one perhaps: what it held before is not shown." : "The log no longer reaches back to where this stopped: changes between are not shown."),
    });
    this.#build();
  }

  #build() {
    this.input = el("input", { id: "tail-prefix", type: "search", placeholder: "Keys that begin with …", ...VERBATIM, oninput: () => this.#filter() });
    this.pauseButton = button("Pause", () => this.pause(), { title: "p" });
    this.state = el("p", { class: "state", role: "status" });
    this.rows = el("ol", { class: "tail", "aria-label": "Changes, newest first" });
    this.foot = el("p", { class: "quiet" });
    byId("changes-view").replaceChildren(
      el("div", { class: "bar" }, el("label", { class: "unseen", for: "tail-prefix" }, "Only keys that begin with"), this.input, this.pauseButton, button("Clear", () => this.#clear())),
      this.state,
      this.rows,
      this.foot,
    );
  }

  /** @param {string} prefix */
  async show(prefix) {
    if (this.input.value !== prefix) this.input.value = prefix;
    const turn = ++this.turn;
    if (prefix !== this.prefix) {
      this.follower.forget();
      this.seen = [0, 0];
      this.#clear();
    }
    this.prefix = prefix;
    const present = await status().catch(() => null);
    if (turn !== this.turn) return;
    const since = present ? Math.max(present.floor, present.revision - RECENT) : undefined;
    this.follower.follow({ ...this.#scopes(prefix), since });
  }

  /** What the reader may watch of a prefix; all of it if that is nothing, since the service says best why not.
   * @param {string} prefix */
  #scopes(prefix) {
    const scopes = this.grants().covers("watch", prefix) ? [] : this.grants().below(prefix, ["watch"]);
    if (!scopes.length) return { prefixes: [prefix] };
    const named = (/** @type {boolean} */ wanted) => scopes.filter(({ isPrefix }) => isPrefix === wanted).map(({ scope }) => scope);
    return { prefixes: named(true), keys: named(false) };
  }

  stop() {
    this.turn = (this.turn ?? 0) + 1;
    this.follower.stop();
  }

  /** Go on with the rights that the reader has now. */
  resume() {
    if (!this.follower.wish) return;
    this.follower.follow({ ...this.#scopes(this.prefix ?? ""), since: this.follower.cursor || this.follower.wish.since });
    this.follower.resume();
  }

  #filter() {
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.go({ prefix: this.input.value }, { replace: true }), 200);
  }

  pause() {
    this.isPaused = !this.isPaused;
    this.pauseButton.textContent = this.isPaused ? "Resume" : "Pause";
    this.pauseButton.setAttribute("aria-pressed", String(this.isPaused));
    announce(this.isPaused ? "Paused." : "Resumed.");
    this.#schedule();
  }

  #clear() {
    this.waiting = [];
    this.dropped = 0;
    this.rows.replaceChildren();
    this.#showFoot();
  }

  // ── taking and showing ────────────────────────────────────────────────────────────────────────

  /** @param {import("./stream.js").Change} change */
  #take(change) {
    const [revision, index] = this.seen;
    if (change.revision < revision || (change.revision === revision && change.index <= index)) return;
    this.seen = [change.revision, change.index];
    this.waiting.push({ ...change, value: previewOf(change) });
    if (this.waiting.length > MOST) {
      this.dropped += this.waiting.length - MOST;
      this.waiting.splice(0, this.waiting.length - MOST);
    }
    this.#schedule();
  }

  #schedule() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      if (!this.isPaused && this.waiting.length) {
        this.rows.prepend(...this.waiting.map((change) => this.#row(change)).reverse());
        this.waiting = [];
        this.#trim();
      }
      this.#showFoot();
    });
  }

  #trim() {
    while (this.rows.children.length > MOST) {
      this.rows.lastElementChild.remove();
      this.dropped++;
    }
  }

  /** @param {import("./stream.js").Change} change */
  #row(change) {
    const { op, key, revision, time, previous_revision: before, content_type: type, expires_at: expires } = change;
    const name = op === "put" && !before ? "created" : DONE[op];
    const about = [type, expires && `expires ${moment(expires)}`].filter(Boolean).join(" · ");
    return el(
      "li",
      {},
      el("time", { datetime: time, title: moment(time) }, clock(time)),
      el("span", { class: `op ${op}` }, name),
      el("a", { class: "name", href: hashOf({ key, tab: op === "put" ? "value" : "history" }) }, shownKey(key)),
      el("span", { class: "meta" }, `revision ${grouped(revision)}`, about && ` · ${about}`),
      byline(change),
      this.#preview(change),
    );
  }

  /** A line of what was stored, which unfolds to all of it and to what it changed. @param {import("./stream.js").Change} change */
  #preview(change) {
    /** @type {HTMLElement | null} */
    let body = null;
    const fold = button(/** @type {string} */ (change.value), () => {
      if (!body) fold.after((body = el("div", { class: "unfolded" }, unfoldedLater(change))));
      else body.hidden = !body.hidden;
      fold.setAttribute("aria-expanded", String(!body?.hidden));
    }, { class: "preview", "aria-expanded": "false" });
    return fold;
  }

  /** @param {string} said */
  #startOver(said) {
    this.seen = [0, 0];
    this.#note(said);
  }

  /** A line of ours between the changes. @param {string} text */
  #note(text) {
    this.rows.prepend(el("li", { class: "note" }, el("time", {}, clock(Date.now())), el("span", {}, text)));
    this.#trim();
  }

  #showFoot() {
    const kept = this.dropped ? `The last ${MOST} are kept; ${counted(this.dropped, "older one")} left out.` : "";
    const paused = this.isPaused ? `Paused; ${counted(this.waiting.length, "new change")} waiting. ` : "";
    const none = !this.rows.children.length && !paused ? "Nothing has changed yet. What does, in this browser or anywhere else, appears here at once." : "";
    this.foot.textContent = none || paused + kept;
  }

  /** @param {string} state @param {import("./api.js").Problem} [problem] */
  #showState(state, problem) {
    this.refusal = problem?.message;
    if (state === "lost" && !this.lostAt) {
      this.lostAt = Date.now();
      this.#note("The connection is lost. It is tried again, and goes on where it stopped.");
    } else if (state === "live" && this.lostAt) {
      this.#note(`Connected again; what happened since ${clock(this.lostAt)} follows.`);
      this.lostAt = 0;
    }
    this.isLive = state === "live";
    this.showReach(this.reach ?? "yes");
  }

  /** @param {string} reach "yes", or what cannot be reached: "daemon" or "service" */
  showReach(reach) {
    if (reach === "daemon" && this.reach !== "daemon") this.awayAt = Date.now();
    this.reach = reach;
    const [name, said] = this.refusal
      ? ["bad", this.refusal]
      : this.lostAt
      ? ["bad", `Reconnecting since ${clock(this.lostAt)}`]
      : reach === "daemon"
        ? ["warn", `Connected; the daemon is away since ${clock(/** @type {number} */ (this.awayAt))}. This goes on when it is back.`]
        : this.isLive
          ? ["good", "Connected"]
          : ["", "Connecting …"];
    this.state.dataset.state = name;
    if (this.state.textContent !== said) this.state.textContent = said;
  }
}
