// @ts-check
// Who the reader is, what they may do, and the question for a token. Where access is off, nothing is asked or shown.

import { Problem, logIn, logOut, reach, whoami } from "./api.js";
import { announce, byId, confirmed, problemBox } from "./dom.js";
import { dropDrafts, hasDrafts } from "./drafts.js";
import { Grants } from "./grants.js";
import { half, keepHalf, onOtherTab } from "./session.js";

const ANONYMOUS = "anonymous";
const ASK_AGAIN_MS = 5_000;

export class Login {
  /** @param {{ onChange: () => void }} listeners called once it is known who the reader is, and whenever that, or
   *   what they may do, has changed */
  constructor({ onChange }) {
    this.onChange = onChange;
    this.grants = new Grants(null);
    this.dialog = byId("login");
    this.field = byId("token");
    /** @type {string | undefined} the name, undefined until the service told it */
    this.name = undefined;
    this.told = "";
    this.askedAt = 0;
    this.isNeeded = false;
    byId("login-form").addEventListener("submit", (/** @type {Event} */ event) => (event.preventDefault(), this.#submit()));
    byId("login-cancel").addEventListener("click", () => (this.isSomebody ? location.reload() : this.dialog.close()));
    byId("log-in").addEventListener("click", () => this.#ask());
    byId("log-out").addEventListener("click", () => this.#leave());
    this.dialog.addEventListener("close", () => this.isNeeded && this.dialog.showModal());
    this.dialog.addEventListener("cancel", (/** @type {Event} */ event) => this.isNeeded && event.preventDefault());
    reach.addEventListener("refused", (event) => this.#onRefusal(/** @type {CustomEvent} */ (event).detail));
    onOtherTab(() => this.refresh());
  }

  /** Ask the service who the reader is. If it cannot be reached, that stays as it was. `why` is the refusal of what they
   * did; `isBack` says that something may have been missed. @param {{ why?: Problem, isBack?: boolean }} [cause]
   * @returns {Promise<void>} */
  async refresh({ why, isBack = false } = {}) {
    let who;
    const asked = half();
    this.askedAt = Date.now();
    try {
      who = await whoami();
    } catch (error) {
      const problem = /** @type {Problem} */ (error);
      if (problem.status !== 401) return;
      if (half() !== asked) return this.refresh({ isBack });
      if (!half()) return this.#demand(problem, true);
      keepHalf("");
      return this.refresh({ why: problem });
    }
    // what came is of the session before a login that was meanwhile
    if (half() !== asked) return this.refresh({ isBack });
    const isNobody = who.name === ANONYMOUS;
    if (isNobody && (why || !who.grants.length)) this.#demand(why, !who.grants.length);
    if (isNobody && this.isSomebody) return; // what they saw stays until they are back, or go
    if (isNobody && this.isNeeded) return void this.#take(who);
    const goesOn = isBack || this.dialog.open;
    if (!isNobody) this.#stopAsking();
    if (this.#take(who) || goesOn) this.onChange();
  }

  get isSomebody() {
    return Boolean(this.name) && this.name !== ANONYMOUS;
  }

  /** Take note; whether anything is another than before. @param {import("./api.js").Who} who */
  #take(who) {
    const told = JSON.stringify([who.name, who.grants]);
    if (told === this.told) return false;
    if (this.isSomebody && this.name !== who.name) location.reload(); // what the one saw is not for the other
    this.told = told;
    this.name = who.name;
    this.grants = new Grants(who.name ? who.grants : null);
    byId("who").hidden = !who.name;
    byId("who-name").textContent = who.name;
    byId("log-in").hidden = this.isSomebody;
    byId("log-out").hidden = !this.isSomebody;
    return true;
  }

  /** @param {Problem} problem */
  #onRefusal(problem) {
    if (this.dialog.open) return;
    if (problem.status === 401) this.refresh({ why: problem });
    else if (Date.now() - this.askedAt > ASK_AGAIN_MS) this.refresh(); // the grants may be others by now
  }

  // ── the question ──────────────────────────────────────────────────────────────────────────────

  /** Nothing goes on, or not this, without a token. @param {Problem | undefined} why @param {boolean} isNeeded */
  #demand(why, isNeeded) {
    this.isNeeded = isNeeded;
    this.#ask(why);
  }

  /** @param {Problem} [why] */
  #ask(why) {
    byId("login-cancel").hidden = this.isNeeded;
    byId("login-problem").replaceChildren(...(why ? [problemBox(why)] : []));
    if (!this.dialog.open) this.dialog.showModal();
    this.field.focus();
  }

  #stopAsking() {
    this.isNeeded = false;
    if (this.dialog.open) this.dialog.close();
  }

  async #submit() {
    const token = this.field.value.trim();
    this.field.value = "";
    try {
      if (!isSecureContext) throw new Problem({ title: "The connection is not safe", detail: "Others could read the token on its way. Open this page by https, or by localhost through a tunnel." });
      if (!token) return;
      await logIn(token);
    } catch (problem) {
      this.#ask(/** @type {Problem} */ (problem));
      return;
    }
    await this.refresh();
    if (half()) announce(`Logged in as ${this.name}.`);
  }

  async #leave() {
    const body = ["What you typed and did not save is discarded."];
    if (hasDrafts() && !(await confirmed("Log out?", body, "Log out"))) return;
    dropDrafts();
    await logOut();
    location.reload(); // so that nothing stays to be seen
  }
}
