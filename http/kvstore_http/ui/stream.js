// @ts-check
// Following changes: one event stream, kept open, resumed where it stopped.

import { Problem, subscribe } from "./api.js";
import { eventsOf } from "./events.js";

const SILENCE_MS = 60_000; // heartbeats come every 15 s unless the operator chose otherwise
const RETRY_MS = 1_000;
const MAX_RETRY_MS = 10_000;

/**
 * @typedef {{ op: "put" | "delete" | "expire", key: string, revision: number, index: number, count: number, time: string,
 *   previous_revision: number, content_type?: string, create_revision?: number, version?: number,
 *   modified_at?: string, expires_at?: string, author?: string, message?: string }} Change
 * @typedef {{ prefixes?: string[], keys?: string[], since?: string | number }} Wish
 */

/** @param {string} name @param {string[]} texts @returns {[string, string][]} */
const named = (name, texts) => texts.filter(Boolean).map((text) => [name, text]);

/**
 * Calls `onChange` with each change, once and in order; `onState` with "live", "connecting", "lost", or
 * "refused" and the problem, which another token or other grants may cure; `onSync` with the revision up to which everything came; and `onReset` with the reason when the stream
 * had to start over, whereupon what lies between is not known.
 *
 * A page that is out of sight lets go of its stream, since browsers open only six connections to one
 * server, and goes on where it stopped when it is seen again.
 */
export class Follower {
  /** @param {{ onChange: (change: Change) => void, onState?: (state: string, problem?: Problem) => void,
   *   onSync?: (revision: number) => void, onReset?: (reason: string) => void }} listeners */
  constructor({ onChange, onState = () => {}, onSync = () => {}, onReset = () => {} }) {
    this.listeners = { onChange, onState, onSync, onReset };
    /** @type {Wish | null} */
    this.wish = null;
    /** @type {AbortController | null} the connection that is open or being opened */
    this.connection = null;
    this.isSnapshot = false;
    this.isRefused = false;
    this.cursor = "";
    this.retry = RETRY_MS;
    this.timer = 0;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#close() : this.#open()));
  }

  /** Follow what is wished for. What was followed before goes on without a gap. @param {Wish} wish */
  follow(wish) {
    if (this.wish && JSON.stringify([wish.prefixes, wish.keys]) === JSON.stringify([this.wish.prefixes, this.wish.keys])) return;
    this.wish = wish;
    this.#close();
    this.#open();
  }

  /** Follow nothing; where it stopped is remembered. */
  stop() {
    this.wish = null;
    this.#close();
  }

  /** Go on where a refusal stopped it. */
  resume() {
    if (this.isRefused) this.#close();
    this.#open();
  }

  /** Follow nothing, and begin anew the next time. */
  forget() {
    this.stop();
    this.cursor = "";
  }

  #close() {
    clearTimeout(this.timer);
    this.connection?.abort();
    this.connection = null;
  }

  #open() {
    if (!this.wish || this.connection || document.hidden) return;
    if (!this.wish.prefixes?.length && !this.wish.keys?.length) return;
    clearTimeout(this.timer);
    this.isRefused = false;
    this.connection = new AbortController();
    this.listeners.onState("connecting");
    this.#read(this.connection.signal);
  }

  /** @returns {[string, string][]} */
  #query() {
    const { prefixes = [], keys = [], since } = /** @type {Wish} */ (this.wish);
    /** @type {[string, string][]} */
    const pairs = [["values", "0"]];
    if (!prefixes.includes("")) pairs.push(...named("prefix", prefixes), ...named("key", keys));
    const from = this.cursor || since;
    if (from !== undefined && from !== "") pairs.push(["since", String(from)]);
    return pairs;
  }

  /** Take events until the connection ends; then begin again, unless it was given up. @param {AbortSignal} signal */
  async #read(signal) {
    this.isSnapshot = false;
    this.#watch();
    const answer = await subscribe(this.#query(), signal).catch((problem) => problem);
    if (signal.aborted) return;
    if (answer.status === 401 || answer.status === 403) return this.#refused(answer);
    if (answer instanceof Response && answer.body) {
      this.retry = RETRY_MS;
      this.listeners.onState("live");
      for await (const event of eventsOf(answer.body)) {
        if (signal.aborted) return;
        this.#watch();
        try {
          this.#take(event);
        } catch (error) {
          reportError(error);
        }
      }
    }
    if (!signal.aborted) this.#again();
  }

  /** @param {import("./events.js").ServerEvent} event */
  #take({ event: name, id, data, retry }) {
    if (retry) this.retry = Number(retry);
    if (id) this.cursor = id;
    if (!name || !data) return;
    const told = JSON.parse(data);
    if (name === "reset") {
      this.isSnapshot = true;
      this.listeners.onReset(told.reason);
    } else if (name === "sync") {
      this.isSnapshot = false;
      this.listeners.onSync(told.revision);
    } else if (name === "end") {
      this.cursor = told.cursor ?? this.cursor; // everything up to there came; the next answer says why it ended
      this.#close();
      this.#open();
    } else if (name !== "heartbeat" && !this.isSnapshot) {
      this.listeners.onChange(told);
    }
  }

  /** Without a token there is no use in asking again; grants may be given back. @param {Problem} problem */
  #refused(problem) {
    clearTimeout(this.timer);
    this.isRefused = true;
    this.listeners.onState("refused", problem);
    if (problem.status === 403) this.timer = setTimeout(() => this.resume(), MAX_RETRY_MS);
  }

  #again() {
    this.#close();
    this.listeners.onState("lost");
    this.timer = setTimeout(() => this.#open(), this.retry);
    this.retry = Math.min(this.retry * 2, MAX_RETRY_MS);
  }

  /** A connection that fell silent is dead, whatever the browser thinks of it. */
  #watch() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#again(), SILENCE_MS);
  }
}
