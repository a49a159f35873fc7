// Following changes. Each watch knows up to where everything of it has come, and takes what follows from wherever it can be
// had: from the stream of all tabs, or from one of its own, with which it begins and which fills every gap.

import { type Kv, type Message, anyOf, backoff, pause, toList, withValue } from "./client.js";
import { KvError } from "./errors.js";
import { hubOf } from "./tabs.js";
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

/** A watch, as the part that speaks with other tabs knows it. */
export interface Follower {
  readonly wish: Wish;
  /** The cursor up to which everything was taken; undefined before the first. */
  at: string | undefined;
  /** Whether it is fed by the stream of all tabs now. */
  isShared: boolean;
  /** Take what the stream of all tabs says, if it goes on from where this is. Says no where it does not. */
  offer(facts: Facts): boolean;
  /** Go on with a stream of its own, once there is room. */
  leave(full?: Promise<void>): void;
  told(state: "live" | "lost"): void;
}

const changeOf = ({ event: _, ...fields }: Message): Change => withValue<Change>(fields);

/** Follows until `signal` is aborted; rejects with what trying again cannot cure. */
export async function follow(kv: Kv, options: Watch, sink: Sink, signal: AbortSignal): Promise<void> {
  const { ops, since, deliver, sample, snapshot } = options;
  const wish = wishOf(options);
  let own = new AbortController();
  let known = "";
  /** Own events after the last cursor. */
  let pending: Message[] = [];
  /** Whether a reset, or records of a snapshot, were told, and the `sync` that ends them was not. */
  let isHalf = false;
  /** Whether its own stream has sent nothing yet. */
  let isNew = true;
  /** Whether the service ended its own stream; the next answer says why. */
  let isEnded = false;
  /** Whether it can take nothing from others now: what it had is being taken, or it is on its way to a stream of its own. */
  let isBusy = false;
  let left: (full?: Promise<void>) => void = () => {};

  const offer = (facts: Facts): boolean => {
    const { at } = self;
    if (isBusy) return true;
    if (!at || isHalf || !covers(facts.wish, wish) || !isSameStore(facts.from, at) || revisionOf(facts.from) > revisionOf(at)) return false;
    if (!self.isShared) {
      self.isShared = true;
      own.abort();
      queueMicrotask(() => self.isShared && hub?.want(self));
    }
    told("live");
    const isNews = (revision: number) => revision > revisionOf(at);
    if (!isNews(revisionOf(facts.to))) return true;
    self.at = facts.to;
    const news = facts.events.filter(({ revision, key, op }) => isNews(revision) && takes(wish, key) && (!ops || ops.includes(op)));
    const items = news.map((event, index) => {
      const { cursor: _, ...item } = changeOf(event);
      if (!wish.values) delete item.value;
      if (!wish.prev) delete item.previous;
      return event.revision === news[index + 1]?.revision ? item : { ...item, cursor: event.revision + epochOf(facts.to) };
    });
    const full = items.length ? sink.take(items) : undefined;
    if (full) leave(full);
    return true;
  };

  const leave = (full?: Promise<void>): void => {
    self.isShared = false;
    isBusy = true;
    hub?.forget(self);
    left(full);
  };

  const told = (state: "live" | "lost"): void => {
    if (known !== state) sink.state?.((known = state));
  };

  const readOwn = async (onMessages: () => void): Promise<void> => {
    pending = [];
    isNew = true;
    isEnded = false;
    const mine = own.signal;
    // beside a cursor the snapshot does not count
    const asked = { ...wish, ops, deliver, sample, snapshot, since: self.at ?? since };
    for await (const messages of kv.stream(asked, anyOf(mine, signal))) {
      if (mine.aborted) return;
      onMessages();
      told("live");
      isBusy = true;
      await takeOwn(messages);
      isBusy = false;
      if (mine.aborted) return;
      // again with each heartbeat, in case nobody heard it
      if (self.at && messages.some(({ event }) => /sync|heartbeat/.test(event))) hub?.want(self);
    }
  };

  const takeOwn = async (messages: Message[]): Promise<void> => {
    const items: Item[] = [];
    // what a snapshot that was cut off has told may be gone by now
    if (isNew && isHalf && messages[0]?.event !== "reset") items.push({ op: "reset", reason: "interrupted" });
    isNew = false;
    for (const message of messages) {
      const { event, cursor, reason, floor, revision } = message;
      isEnded = event === "end";
      if (event === "reset") {
        pending = [];
        isHalf = true;
        items.push({ op: event, reason, floor });
        continue;
      }
      if (message.snapshot) {
        isHalf = true;
        items.push(changeOf(message));
      } else if (message.op) pending.push(message);
      if (!cursor) continue;
      items.push(...pending.map(changeOf));
      pending = [];
      self.at = cursor;
      if (event === "sync") {
        isHalf = false;
        items.push({ op: event, revision, cursor });
      }
    }
    if (items.length) await sink.take(items);
  };

  const self: Follower = { wish, at: undefined, isShared: false, offer, leave, told };
  const hub = await hubOf(kv, { deliver, sample });
  hub?.attach(self);
  const stop = () => left();
  signal.addEventListener("abort", stop);
  try {
    for (let failures = 0; !signal.aborted; ) {
      own = new AbortController();
      isBusy = false;
      const stay = new Promise<Promise<void> | undefined>((done) => (left = done));
      try {
        await readOwn(() => (failures = 0));
      } catch (error) {
        if (!own.signal.aborted && !signal.aborted && !(error as KvError).retryable) throw error;
      }
      if (own.signal.aborted) await (await stay);
      else if (!signal.aborted) {
        if (!isEnded) told("lost");
        await pause(backoff(failures++), signal);
      }
    }
  } finally {
    signal.removeEventListener("abort", stop);
    own.abort();
    hub?.detach(self);
  }
}

const MOST_WEIGHT = 4 << 20; // characters and bytes of values, with 200 for what is beside each

export const FILTERS_AND_MANNER = ["prefix", "prefixes", "key", "keys", "values", "deliver", "sample", "onState", "signal"];

/** A misspelt option would follow everything, or nothing. */
export function checkOptions(of: string, options: object, known: string[]): void {
  if (typeof options !== "object") throw new TypeError(`It is ${of}({ prefix: "a/" }), not ${JSON.stringify(options)}`);
  const unknown = Object.keys(options).filter((name) => !known.includes(name));
  if (unknown.length) throw new TypeError(`${of} has no option ${unknown.join(", ")}; it takes: ${known.join(", ")}`);
}

export async function* watch(kv: Kv, options: Watch = {}): AsyncGenerator<Item, void, undefined> {
  checkOptions("watch", options, [...FILTERS_AND_MANNER, "since", "snapshot", "ops", "prev"]);
  const stop = new AbortController();
  const signal = anyOf(stop.signal, options.signal);
  let items: Item[] = [];
  let weight = 0;
  let isOver = false;
  let error: unknown;
  let wake = () => {};
  let makeRoom = () => {};

  const take = (more: Item[]): Promise<void> | undefined => {
    for (const item of more) {
      items.push(item);
      weight += 200 + ("value" in item ? (item.value?.length ?? 0) : 0);
    }
    wake();
    return weight > MOST_WEIGHT ? new Promise((done) => (makeRoom = done)) : undefined;
  };
  const end = (thrown?: unknown) => {
    isOver = true;
    error = thrown;
    wake();
  };

  if (signal.aborted) return;
  signal.addEventListener("abort", () => end());
  follow(kv, options, { take, state: options.onState }, signal).then(end, end);
  try {
    for (;;) {
      makeRoom();
      while (!items.length) {
        if (error) throw error;
        if (isOver) return;
        await new Promise<void>((done) => (wake = done));
      }
      const taken = items;
      items = [];
      weight = 0;
      for (const item of taken) {
        if (signal.aborted) return;
        yield item;
      }
    }
  } finally {
    stop.abort();
  }
}
