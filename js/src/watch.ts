// Following changes. Each watch knows up to where everything of it has come, and takes what follows from wherever it can be
// had: from the stream of all tabs, or from one of its own, with which it begins and which fills every gap.

import { type Kv, type Message, anyOf, backoff, pause, toList, withValue } from "./client.js";
import { KvError } from "./errors.js";
import { type Hub, hubOf } from "./tabs.js";
import type { Change, Filter, Item, Watch } from "./types.js";

/** What is asked of a stream: keys, and what comes with a change. */
export interface Wish {
  prefixes: readonly string[];
  keys: readonly string[];
  values: boolean;
  prev: boolean;
}

/** All changes of `wish` after the cursor `from`, up to the cursor `to`. */
export interface Facts {
  wish: Wish;
  from: string;
  to: string;
  events: readonly Message[];
}

export interface Sink {
  /** Takes items; a promise asks to wait before there are more. */
  take(items: Item[]): Promise<void> | undefined;
  state?: ((state: "live" | "lost") => void) | undefined;
}

export const revisionOf = (cursor: string): number => parseInt(cursor);
const epochOf = (cursor: string): string => cursor.slice(cursor.indexOf("-"));

/** Whether two cursors are of one store; only then one is before the other. */
export const isSameStore = (one: string, other: string): boolean => epochOf(one) === epochOf(other);

const takes = ({ prefixes, keys }: Wish, key: string): boolean => keys.includes(key) || prefixes.some((prefix) => key.startsWith(prefix));

/** Whether who has `wide` has all that `wish` asks for. */
export const covers = (wide: Wish, wish: Wish): boolean =>
  (wide.values || !wish.values) &&
  (wide.prev || !wish.prev) &&
  wish.keys.every((key) => takes(wide, key)) &&
  wish.prefixes.every((wanted) => wide.prefixes.some((prefix) => wanted.startsWith(prefix)));

/** Keys and prefixes as lists; where nothing is named, it is everything. */
export function wishOf({ prefix, prefixes, key, keys, values = true, prev = false }: Filter & { values?: boolean; prev?: boolean }): Wish {
  const wish = { prefixes: toList(prefix, prefixes), keys: toList(key, keys), values, prev };
  if (!wish.prefixes.length && !wish.keys.length) wish.prefixes.push("");
  return wish;
}

export class Follower {
  readonly wish: Wish;
  /** The cursor up to which everything was taken; undefined before the first. */
  at: string | undefined;
  /** Whether it is fed by the stream of all tabs now. */
  isShared = false;
  #kv: Kv;
  #options: Watch;
  #sink: Sink;
  #signal: AbortSignal;
  #hub: Hub | undefined;
  #own = new AbortController();
  #state = "";
  /** Own events after the last cursor. */
  #pending: Message[] = [];
  /** Whether a reset, or records of a snapshot, were told, and the `sync` that ends them was not. */
  #isHalf = false;
  /** Whether its own stream has sent nothing yet. */
  #isNew = true;
  /** Whether the service ended its own stream; the next answer says why. */
  #isEnded = false;
  /** Whether it can take nothing from others now: what it had is being taken, or it is on its way to a stream of its own. */
  #isBusy = false;
  #left: (full?: Promise<void>) => void = () => {};

  constructor(kv: Kv, options: Watch, sink: Sink, signal: AbortSignal) {
    this.#kv = kv;
    this.#options = options;
    this.#sink = sink;
    this.#signal = signal;
    this.wish = wishOf(options);
  }

  /** Follows until the signal is aborted; rejects with what trying again cannot cure. */
  async run(): Promise<void> {
    const { deliver, sample } = this.#options;
    this.#hub = await hubOf(this.#kv, { deliver, sample });
    this.#hub?.attach(this);
    const stop = () => this.#left();
    this.#signal.addEventListener("abort", stop);
    try {
      for (let failures = 0; !this.#signal.aborted; ) {
        this.#own = new AbortController();
        this.#isBusy = false;
        const stay = new Promise<Promise<void> | undefined>((left) => (this.#left = left));
        try {
          await this.#readOwn(() => (failures = 0));
        } catch (error) {
          if (!this.#own.signal.aborted && !this.#signal.aborted && !(error as KvError).retryable) throw error;
        }
        if (this.#own.signal.aborted) await (await stay);
        else if (!this.#signal.aborted) {
          if (!this.#isEnded) this.told("lost");
          await pause(backoff(failures++), this.#signal);
        }
      }
    } finally {
      this.#signal.removeEventListener("abort", stop);
      this.#own.abort();
      this.#hub?.detach(this);
    }
  }

  /** Take what the stream of all tabs says, if it goes on from where this is. Says no where it does not. */
  offer({ wish, from, to, events }: Facts): boolean {
    if (this.#isBusy) return true;
    if (!this.at || this.#isHalf || !covers(wish, this.wish) || !isSameStore(from, this.at) || revisionOf(from) > revisionOf(this.at)) return false;
    if (!this.isShared) {
      this.isShared = true;
      this.#own.abort();
      queueMicrotask(() => this.isShared && this.#hub?.want(this));
    }
    this.told("live");
    const known = revisionOf(this.at);
    if (revisionOf(to) <= known) return true;
    this.at = to;
    const { ops } = this.#options;
    const news = events.filter(({ revision, key, op }) => revision > known && takes(this.wish, key) && (!ops || ops.includes(op)));
    const items = news.map((event, index) => {
      const { cursor: _, ...item } = this.#change(event);
      if (!this.wish.values) delete item.value;
      if (!this.wish.prev) delete item.previous;
      return event.revision === news[index + 1]?.revision ? item : { ...item, cursor: event.revision + epochOf(to) };
    });
    const full = items.length ? this.#sink.take(items) : undefined;
    if (full) this.leave(full);
    return true;
  }

  /** Go on with a stream of its own, once there is room. */
  leave(full?: Promise<void>): void {
    this.isShared = false;
    this.#isBusy = true;
    this.#hub?.forget(this);
    this.#left(full);
  }

  told(state: "live" | "lost"): void {
    if (this.#state !== state) this.#sink.state?.((this.#state = state));
  }

  async #readOwn(onMessages: () => void): Promise<void> {
    const { ops, since, deliver, sample } = this.#options;
    // beside a cursor the snapshot does not count
    const wish = { ...this.wish, ops, deliver, sample, snapshot: this.#options.snapshot, since: this.at ?? since };
    this.#pending = [];
    this.#isNew = true;
    this.#isEnded = false;
    const own = this.#own.signal;
    for await (const messages of this.#kv.stream(wish, anyOf(own, this.#signal))) {
      if (own.aborted) return;
      onMessages();
      this.told("live");
      this.#isBusy = true;
      await this.#takeOwn(messages);
      this.#isBusy = false;
      if (own.aborted) return;
      // again with each heartbeat, in case nobody heard it
      if (this.at && messages.some(({ event }) => /sync|heartbeat/.test(event))) this.#hub?.want(this);
    }
  }

  async #takeOwn(messages: Message[]): Promise<void> {
    const items: Item[] = [];
    // what a snapshot that was cut off has told may be gone by now
    if (this.#isNew && this.#isHalf && messages[0]?.event !== "reset") items.push({ op: "reset", reason: "interrupted" });
    this.#isNew = false;
    for (const message of messages) {
      const { event, cursor } = message;
      this.#isEnded = event === "end";
      if (event === "reset") {
        this.#pending = [];
        this.#isHalf = true;
        items.push({ op: "reset", reason: message.reason, floor: message.floor });
      } else if (message.snapshot) {
        this.#isHalf = true;
        items.push(this.#change(message));
      } else if (message.op) this.#pending.push(message);
      if (!cursor || event === "reset") continue;
      items.push(...this.#pending.map((each) => this.#change(each)));
      this.#pending = [];
      this.at = cursor;
      if (event === "sync") {
        this.#isHalf = false;
        items.push({ op: "sync", revision: message.revision, cursor });
      }
    }
    if (items.length) await this.#sink.take(items);
  }

  #change({ event: _, ...fields }: Message): Change {
    return withValue<Change>(fields);
  }
}

const MOST_WEIGHT = 4 << 20; // characters and bytes of values, with 200 for what is beside each

class Queue implements Sink {
  state;
  #items: Item[] = [];
  #weight = 0;
  #isOver = false;
  #error: unknown;
  #wake: () => void = () => {};
  #makeRoom: () => void = () => {};

  constructor(state: Watch["onState"]) {
    this.state = state;
  }

  take(items: Item[]): Promise<void> | undefined {
    for (const item of items) {
      this.#items.push(item);
      this.#weight += 200 + ("value" in item ? (item.value?.length ?? 0) : 0);
    }
    this.#wake();
    return this.#weight > MOST_WEIGHT ? new Promise((done) => (this.#makeRoom = done)) : undefined;
  }

  end(error?: unknown): void {
    this.#isOver = true;
    this.#error = error;
    this.#wake();
  }

  /** All that has come; nothing at the end. */
  async next(): Promise<Item[]> {
    this.#makeRoom();
    while (!this.#items.length) {
      if (this.#error) throw this.#error;
      if (this.#isOver) return [];
      await new Promise<void>((wake) => (this.#wake = wake));
    }
    const items = this.#items;
    this.#items = [];
    this.#weight = 0;
    return items;
  }
}

export const FILTERS_AND_MANNER = ["prefix", "prefixes", "key", "keys", "values", "deliver", "sample", "onState", "signal"];

/** A misspelt option would follow everything, or nothing. */
export function checkOptions(of: string, options: object, known: string[]): void {
  if (typeof options !== "object") throw new TypeError(`${of} takes options, as in ${of}({ prefix: "a/" }), not ${JSON.stringify(options)}`);
  const unknown = Object.keys(options).filter((name) => !known.includes(name));
  if (unknown.length) throw new TypeError(`${of} has no option ${unknown.join(", ")}; it takes: ${known.join(", ")}`);
}

export async function* watch(kv: Kv, options: Watch = {}): AsyncGenerator<Item, void, undefined> {
  checkOptions("watch", options, [...FILTERS_AND_MANNER, "since", "snapshot", "ops", "prev"]);
  const stop = new AbortController();
  const queue = new Queue(options.onState);
  const signal = anyOf(stop.signal, options.signal);
  signal.addEventListener("abort", () => queue.end());
  if (signal.aborted) return;
  new Follower(kv, options, queue, signal).run().then(() => queue.end(), (error) => queue.end(error));
  try {
    for (let items; (items = await queue.next()).length; ) {
      for (const item of items) {
        if (signal.aborted) return;
        yield item;
      }
    }
  } finally {
    stop.abort();
  }
}
