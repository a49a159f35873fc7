// @ts-check
// Following changes, with what the page needs to know of how that goes.

import { Problem, kv, noteRefusal } from "./api.js";
import { half } from "./session.js";

const RETRY_MS = 10_000;

/**
 * @typedef {{ op: "put" | "delete" | "expire", key: string, revision: number, index: number, count: number, time: string,
 *   previous_revision: number, content_type?: string, create_revision?: number, version?: number,
 *   modified_at?: string, expires_at?: string, author?: string, message?: string, value?: string | Uint8Array }} Change
 * @typedef {{ prefixes?: string[], keys?: string[], since?: string | number }} Wish
 */

/** Whether all tabs share a stream. Where they cannot, one out of sight lets go of its own, since browsers open only six
 * connections to one server. */
const isShared = isSecureContext && "locks" in navigator;

/**
 * Calls `onChange` with each change, once and in order; `onState` with "live", "connecting", "lost", or
 * "refused" and the problem, which another token or other grants may cure; `onSync` with the revision up to which everything came; and `onReset` with the reason when the stream
 * had to start over, whereupon what lies between is not known.
 */
export class Follower {
  /** @param {{ onChange: (change: Change) => void, onState?: (state: string, problem?: Problem) => void,
   *   onSync?: (revision: number) => void, onReset?: (reason: string) => void, values?: boolean }} listeners with `values` changes have
   * what was stored */
  constructor({ onChange, onState = () => {}, onSync = () => {}, onReset = () => {}, values = false }) {
    this.values = values;
    this.listeners = { onChange, onState, onSync, onReset };
    /** @type {Wish | null} */
    this.wish = null;
    /** @type {AbortController | null} */
    this.watching = null;
    this.cursor = "";
    this.timer = 0;
    if (!isShared) document.addEventListener("visibilitychange", () => (document.hidden ? this.#close() : this.resume()));
  }

  /** Follow what is wished for: from where it stopped if that was the same, else from now on or from `since`. @param {Wish} wish */
  follow(wish) {
    const isSame = JSON.stringify([wish.prefixes, wish.keys]) === this.followed;
    if (isSame && this.wish) return;
    if (!isSame) this.forget();
    this.followed = JSON.stringify([wish.prefixes, wish.keys]);
    this.wish = wish;
    this.resume();
  }

  /** Follow nothing; where it stopped is remembered. */
  stop() {
    this.wish = null;
    this.#close();
  }

  /** Go on where a refusal stopped it. */
  resume() {
    clearTimeout(this.timer);
    if (!this.watching && this.wish && !(document.hidden && !isShared)) this.#watch(this.wish);
  }

  /** Follow nothing, and start over the next time. */
  forget() {
    this.stop();
    this.followed = "";
    this.cursor = "";
  }

  #close() {
    clearTimeout(this.timer);
    this.watching?.abort();
    this.watching = null;
  }

  /** @param {Wish} wish */
  async #watch({ prefixes = [], keys = [], since }) {
    if (!prefixes.length && !keys.length) return;
    const { signal } = (this.watching = new AbortController());
    const { onState } = this.listeners;
    onState("connecting");
    try {
      for await (const item of kv.watch({ prefixes, keys, values: this.values, since: this.cursor || since, signal, onState })) {
        try {
          this.#take(item);
        } catch (error) {
          reportError(error);
        }
        if (signal.aborted) return;
      }
    } catch (problem) {
      if (!signal.aborted) this.#refused(/** @type {Problem} */ (problem));
    }
  }

  /** @param {any} item */
  #take(item) {
    if (item.cursor) this.cursor = item.cursor;
    if (item.op === "reset") this.listeners.onReset(item.reason);
    else if (item.op === "sync") this.listeners.onSync(item.revision);
    else if (!item.snapshot) this.listeners.onChange(item);
  }

  /** Without a token there is no use in asking again; grants may be given back, and what was asked while somebody logged
   * in may be refused though they are in. @param {Problem} problem */
  #refused(problem) {
    this.#close();
    noteRefusal(problem);
    this.listeners.onState("refused", problem);
    if (problem.status === 403 || half()) this.timer = setTimeout(() => this.resume(), RETRY_MS);
  }
}
