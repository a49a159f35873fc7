// @ts-check
// Following changes: one event stream, kept open, resumed where it stopped.

import { address } from "./api.js";

const SILENCE_MS = 60_000; // heartbeats come every 15 s unless the operator chose otherwise
const RETRY_MS = 1_000;
const MAX_RETRY_MS = 10_000;

/**
 * @typedef {{ op: "put" | "delete" | "expire", key: string, revision: number, index: number, count: number, time: string,
 *   previous_revision: number, content_type?: string, create_revision?: number, version?: number,
 *   modified_at?: string, expires_at?: string }} Change
 * @typedef {{ prefixes?: string[], keys?: string[], since?: string | number }} Wish
 */

/**
 * Calls `onChange` with each change, once and in order; `onState` with "live", "connecting" or "lost";
 * `onSync` with the revision up to which everything came; and `onReset` with the reason when the stream
 * had to start over, whereupon what lies between is not known.
 *
 * A page that is out of sight lets go of its stream, since browsers open only six connections to one
 * server, and goes on where it stopped when it is seen again.
 */
export class Follower {
  /** @param {{ onChange: (change: Change) => void, onState?: (state: string) => void,
   *   onSync?: (revision: number) => void, onReset?: (reason: string) => void }} listeners */
  constructor({ onChange, onState = () => {}, onSync = () => {}, onReset = () => {} }) {
    this.listeners = { onChange, onState, onSync, onReset };
    /** @type {Wish | null} */
    this.wish = null;
    /** @type {EventSource | null} */
    this.source = null;
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

  /** Follow nothing, and begin anew the next time. */
  forget() {
    this.stop();
    this.cursor = "";
  }

  #close() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  #open() {
    if (!this.wish || this.source || document.hidden) return;
    const { prefixes = [], keys = [], since } = this.wish;
    const filters = [...prefixes.filter(Boolean).map((text) => ["prefix", text]), ...keys.map((text) => ["key", text])];
    const pairs = prefixes.includes("") ? [] : filters;
    const from = this.cursor || since;
    if (from !== undefined && from !== "") pairs.push(["since", String(from)]);
    const query = ["values=0", ...pairs.map(([name, text]) => `${name}=${encodeURIComponent(text)}`)].join("&");
    const source = new EventSource(address("v1/subscribe") + `?${query}`);
    this.source = source;
    this.listeners.onState("connecting");
    this.#listen(source);
  }

  /** @param {EventSource} source */
  #listen(source) {
    let isSnapshot = false;
    /** @param {string} name @param {(data: any) => void} react */
    const on = (name, react) =>
      source.addEventListener(name, (event) => {
        if (source !== this.source) return;
        if (event.lastEventId) this.cursor = event.lastEventId;
        this.#watch();
        react(JSON.parse(event.data));
      });
    for (const op of ["put", "delete", "expire"]) on(op, (change) => isSnapshot || this.listeners.onChange(change));
    on("heartbeat", () => {});
    on("reset", ({ reason }) => {
      isSnapshot = true;
      this.listeners.onReset(reason);
    });
    on("sync", ({ revision }) => {
      isSnapshot = false;
      this.listeners.onSync(revision);
    });
    source.addEventListener("open", () => {
      this.retry = RETRY_MS;
      this.#watch();
      this.listeners.onState("live");
    });
    source.addEventListener("error", () => {
      if (source !== this.source) return;
      this.listeners.onState("lost");
      // After an answer that is no stream, a 503 say, a browser does not try again by itself.
      if (source.readyState === EventSource.CLOSED) this.#again();
    });
  }

  #again() {
    this.#close();
    this.timer = setTimeout(() => this.#open(), this.retry);
    this.retry = Math.min(this.retry * 2, MAX_RETRY_MS);
  }

  /** A connection that fell silent is dead, whatever the browser thinks of it. */
  #watch() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.listeners.onState("lost");
      this.#again();
    }, SILENCE_MS);
  }
}
