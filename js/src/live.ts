// The records of a prefix as they are now: a snapshot, and the changes since.

import { type Kv, anyOf } from "./client.js";
import type { KvError } from "./errors.js";
import type { Change, Item, LiveOptions } from "./types.js";
import { FILTERS_AND_MANNER, checkOptions, follow } from "./watch.js";

/** The records that are there, by key, each as the put that it was told by; and up to which revision that is so. It is never
 * changed: after a change there is another. */
export interface Snapshot {
  readonly entries: ReadonlyMap<string, Change>;
  readonly revision: number;
}

export interface Live {
  /** The same object until something has changed; empty, of revision 0, before the first snapshot is complete. */
  getSnapshot(): Snapshot;
  /** Have `listener` called after each change, also of `connected`; what is returned ends that. */
  subscribe(listener: () => void): () => void;
  /** Up to where everything came. */
  readonly revision: number;
  /** Fulfilled when the first snapshot is complete; rejected when there will be none. */
  readonly ready: Promise<void>;
  /** Whether changes come at the moment when they happen. Before the first connection, while a lost one is tried again, and at
   * the end it is false, and what is shown may be old. */
  readonly connected: boolean;
  /** Why it goes on no more, where that cannot be cured by trying again. Listeners are called then, too. */
  readonly error: KvError | undefined;
  close(): void;
}

export function live(kv: Kv, options: LiveOptions = {}): Live {
  checkOptions("live", options, FILTERS_AND_MANNER);
  const stop = new AbortController();
  const listeners = new Set<() => void>();
  let resolve!: () => void;
  let reject!: (reason: unknown) => void;
  const ready = new Promise<void>((yes, no) => ((resolve = yes), (reject = no)));
  ready.catch(() => {}); // who does not wait for it has `error`
  let entries = new Map<string, Change>();
  /** What comes after a reset, until it is complete: what was there is shown until then. */
  let next: Map<string, Change> | undefined = new Map();
  let revision = 0;
  let snapshot: Snapshot | undefined = { entries: new Map(), revision };
  let error: KvError | undefined;
  let isConnected = false;

  // each by itself: one that throws is the page's fault, and reported as such
  const notify = () => listeners.forEach((listener) => queueMicrotask(listener));

  /** Whether what is shown changes by it. */
  const apply = (item: Item): boolean => {
    if (item.op === "reset") next = new Map();
    else if (item.op === "sync") {
      revision = item.revision;
      if (!next) return false;
      entries = next;
      next = undefined;
      resolve();
    } else {
      const into = next ?? entries;
      if (item.op === "put") into.set(item.key, item);
      else into.delete(item.key);
      if (!next) revision = item.revision;
    }
    return !next;
  };

  const take = (items: Item[]): undefined => {
    // each is applied, not only those up to the first that matters
    if (items.filter(apply).length) {
      snapshot = undefined;
      notify();
    }
  };

  const connect = (isSo: boolean) => {
    isConnected = isSo;
    notify();
  };
  const state = (state: "live" | "lost") => {
    connect(state === "live");
    options.onState?.(state);
  };

  const signal = anyOf(stop.signal, options.signal);
  follow(kv, { ...options, snapshot: true }, { take, state }, signal)
    .then(() => signal.reason, (thrown) => (error = thrown))
    .then((reason) => {
      reject(reason);
      connect(false);
    });

  return {
    getSnapshot: () => (snapshot ??= { entries: new Map(entries), revision }),
    subscribe: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    get revision() {
      return revision;
    },
    get connected() {
      return isConnected;
    },
    get error() {
      return error;
    },
    ready,
    close: () => stop.abort(),
  };
}
