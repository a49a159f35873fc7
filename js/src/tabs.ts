// One stream for all tabs. The tab that holds a Web Lock leads: it follows what all of them want, joined, and tells what comes
// as facts, "all changes of these keys after this cursor, up to that one". Each tab has its own cursors and takes the facts that
// go on from them, so nothing comes twice or is missed, whichever tab leads, however often that changes, and even while two believe
// that they do. A watch that no facts fit has a stream of its own until they do again (watch.ts).

import { type Kv, type Message, anyOf, backoff, pause, randomText } from "./client.js";
import { KvError } from "./errors.js";
import type { Watch } from "./types.js";
import { type Facts, type Follower, type Wish, covers, isSameStore, revisionOf } from "./watch.js";

const TICK_MS = 3_000;
const MISSED_TICKS = 3; // after the second the leader is asked whether it is there, after this one it is not
const GATHER_MS = 500; // for the wishes of tabs that are there but do not answer
const MOST_FILTERS = 1_000; // of either kind, as one request may have
const FOR_LONG_MS = 2 ** 31 - 1;
const LOST_MS = 5_000; // after that the leader makes room for a tab that may have the stream
const OFFLINE_MS = 500; // and after that where the browser says that this tab is offline
const KEPT = 8;
const NOTES = 1; // other forms of Note get another number: tabs may have modules of different age

/** Whose streams can be joined: those of one manner of delivery. */
type Delivery = Pick<Watch, "deliver" | "sample">;

interface Want {
  id: string;
  wish: Wish;
  at: string;
}

/** What came; the first of a stream has what it is of. */
interface Told {
  facts: Omit<Facts, "wish">;
  stream: string;
  wish?: Wish | undefined;
}

type Note =
  | { tab: string; wants: Want[] } // what a tab wants; all of it
  | { who: true } // a new leader asks for that
  | Told
  | { state: "live" | "lost"; isOver?: boolean } // how the leader's stream is; over: it cannot have it
  | { ask: true }; // is anybody there?

/** The part of a tab that speaks with the others. */
export interface Hub {
  readonly id: string;
  readonly name: string;
  readonly kv: Kv;
  readonly delivery: Delivery;
  /** How often the stream could not be had since this tab last had it. */
  failures: number;
  attach(follower: Follower): void;
  detach(follower: Follower): void;
  /** Have the leader's stream include what `follower` wants, from where it is. */
  want(follower: Follower): void;
  forget(follower: Follower): void;
  /** Say something to all tabs, this one too. */
  post(note: Note): void;
}

function newHub(kv: Kv, name: string, delivery: Delivery): Hub {
  const id = randomText();
  const followers = new Set<Follower>();
  const wanted = new Map<Follower, string>();
  let channel: BroadcastChannel | undefined;
  let stop = new AbortController();
  let leader: Leader | undefined;
  /** Of the last streams, what they are of. */
  const streams = new Map<string, Wish>();
  let newest = "";
  let missed = 0;
  let wake = () => {};

  const shared = (): Follower[] => [...followers].filter(({ isShared }) => isShared);

  const post = (note: Note): void => {
    channel?.postMessage(note);
    hear(note);
  };

  const tell = (): void => {
    const wants = [...wanted].map(([{ wish, at }, id]) => ({ id, wish, at: at! }));
    post({ tab: id, wants });
  };

  const begin = (): void => {
    if (channel) return;
    wake();
    channel = new BroadcastChannel(name);
    channel.onmessage = ({ data }) => hear(data);
    stop = new AbortController();
    const { signal } = stop;
    // says to leaders that this tab lives
    void hold(name + id, { signal }, tell);
    void stand();
    const timer = setInterval(tick, TICK_MS);
    signal.addEventListener("abort", () => clearInterval(timer));
  };

  const end = (): void => {
    if (!channel) return;
    post({ tab: id, wants: [] });
    stop.abort();
    channel.close();
    channel = undefined;
    wanted.clear();
    const awake = new Promise<void>((done) => (wake = done));
    for (const follower of shared()) follower.leave(awake);
  };

  /** Hold a lock until this ends, it is taken away, or what `act` returns is fulfilled; whether it was given at all. */
  const hold = async (lock: string, options: LockOptions, act: () => Promise<void> | void): Promise<boolean> => {
    const { signal } = stop;
    let isGiven = false;
    const held = async () => {
      isGiven = true;
      const ended = signal.aborted || new Promise((done) => signal.addEventListener("abort", done));
      await Promise.race([ended, act() ?? ended]);
    };
    await navigator.locks.request(lock, options, held).catch(() => {});
    return isGiven;
  };

  /** Lead as soon as no other tab does, or at once, until it cannot have the stream and another tab may. */
  const lead = async (options: LockOptions): Promise<boolean> => {
    const over = new AbortController();
    const own = leaderOf(hub);
    const isGiven = await hold(`lead ${name}`, options, () => {
      leader = own;
      return own.run(over.signal);
    });
    over.abort();
    if (leader === own) leader = undefined;
    return isGiven;
  };

  const stand = async (): Promise<void> => {
    const { signal } = stop;
    while (!signal.aborted && (await lead({ signal })));
  };

  /** A tab that neither leads nor answers is stopped or stuck. */
  const tick = (): void => {
    if (leader || ++missed < MISSED_TICKS) {
      if (missed > 1) post({ ask: true });
      return;
    }
    missed = 0;
    // of all tabs that notice, one at a time
    navigator.locks.request(`take ${name}`, { ifAvailable: true }, async (lock) => {
      if (!lock || !channel || leader) return;
      void lead({ steal: true });
      await pause(TICK_MS, stop.signal);
    }).catch(() => {});
  };

  const hear = (note: Note): void => {
    if ("tab" in note) return leader?.hear(note.tab, note.wants);
    if ("ask" in note) return leader?.answer();
    missed = 0;
    if ("who" in note) tell();
    else if ("facts" in note) take(note);
    else for (const follower of shared()) note.isOver ? follower.leave() : follower.told(note.state);
  };

  const take = ({ facts, stream, wish }: Told): void => {
    if (wish) {
      if (stream !== newest && streams.size > KEPT) streams.clear();
      newest = stream;
      streams.set(stream, wish);
    }
    const known = streams.get(stream);
    if (!known) return;
    for (const follower of followers) {
      if (!follower.offer({ ...facts, wish: known }) && follower.isShared && stream === newest) follower.leave();
    }
  };

  const hub: Hub = {
    id,
    name,
    kv,
    delivery,
    failures: 0,
    post,
    attach: (follower) => {
      followers.add(follower);
      begin();
    },
    detach: (follower) => {
      followers.delete(follower);
      if (wanted.delete(follower)) tell();
      if (!followers.size) end();
    },
    want: (follower) => {
      if (!wanted.has(follower)) wanted.set(follower, randomText());
      tell();
    },
    forget: (follower) => wanted.delete(follower),
  };
  // a page that is frozen, or kept for going back, must hold nothing, and hears nothing
  for (const event of ["pagehide", "freeze"]) addEventListener(event, end, true);
  for (const event of ["pageshow", "resume"]) addEventListener(event, () => followers.size && begin(), true);
  return hub;
}

/** Has the one stream, while it leads. */
interface Leader {
  /** A tab says what it wants. What of it the stream has from where that is goes on; else the stream begins again. */
  hear(tab: string, wants: Want[]): void;
  /** Say that this tab leads, and up to where it is. */
  answer(): void;
  /** Lead until `signal` is aborted, or it makes room for another tab. */
  run(signal: AbortSignal): Promise<void>;
}

/** A wish of a tab, and in which stream it is. */
type Joined = Want & { stream?: string };

function leaderOf(hub: Hub): Leader {
  /** What each tab wants. */
  const tabs = new Map<string, Joined[]>([[hub.id, []]]);
  let stream = "";
  let joined: Wish;
  let reached = "";
  let isOpen = false;
  let state: "live" | "lost" = "lost";
  let again = new AbortController();
  let news = new AbortController();

  const wants = (): Joined[] => [...tabs.values()].flat();

  const has = ({ wish, at }: Want): boolean => covers(joined, wish) && isSameStore(at, reached) && revisionOf(at) >= revisionOf(reached);

  /** Begin the stream again; one that is about to begin does so first, so that those who come together are in one. */
  const reopen = (): void => {
    if (isOpen) again.abort();
    else stream = "";
  };

  const tell = (events: Facts["events"], to: string): void => {
    // where nothing has happened there is time to say again what the stream is of, for tabs that have come since
    hub.post({ facts: { from: reached, to, events }, stream, wish: events.length ? undefined : joined });
    reached = to;
  };

  const answer = (): void => (isOpen ? tell([], reached) : hub.post({ state }));

  const hear = (tab: string, told: Want[]): void => {
    const before = new Map(tabs.get(tab)?.map((want) => [want.id, want]));
    const all: Joined[] = told.map((want) => before.get(want.id) ?? want);
    tabs.set(tab, all);
    news.abort();
    const added = told.filter(({ id }) => !before.has(id));
    if (added.length ? !isOpen || !added.every(has) : !wants().length) return reopen();
    for (const want of all) want.stream ??= stream;
    answer();
  };

  /** Wait, or until a tab says something. */
  const rest = (milliseconds: number, signal: AbortSignal): Promise<void> => {
    news = new AbortController();
    return pause(milliseconds, anyOf(signal, news.signal));
  };

  /** The tabs that live, by the locks that they hold. */
  const living = async (): Promise<string[]> => {
    const { held } = await navigator.locks.query();
    return held!.flatMap(({ name }) => (name!.startsWith(hub.name) ? name!.slice(hub.name.length) : []));
  };

  /** Whether another tab would lead. */
  const isAwaited = async (): Promise<boolean> => {
    const { pending } = await navigator.locks.query();
    return pending!.some(({ name }) => name === `lead ${hub.name}`);
  };

  /** Forget tabs that are gone, and what only they wanted. */
  const prune = async (): Promise<void> => {
    const alive = await living();
    for (const tab of tabs.keys()) if (!alive.includes(tab)) tabs.delete(tab);
    const isWanted = (which: "prefixes" | "keys") => joined[which].every((each) => wants().some(({ wish }) => wish[which].includes(each)));
    if (!isWanted("prefixes") || !isWanted("keys")) reopen();
  };

  /** Join what all tabs want, from the first of where they are on. What does not fit stays with streams of its own. */
  const join = (): void => {
    const all = wants();
    for (const want of all) if (want.stream && want.stream === stream) want.at = reached;
    stream = randomText();
    reached = "";
    const [prefixes, keys] = [new Set<string>(), new Set<string>()];
    const rest = { values: false, prev: false };
    const store = all.at(-1)?.at;
    for (const want of all) {
      const { wish, at } = want;
      const fits = prefixes.size + wish.prefixes.length <= MOST_FILTERS && keys.size + wish.keys.length <= MOST_FILTERS;
      want.stream = "";
      if (!fits || !isSameStore(at, store!)) continue;
      for (const each of wish.prefixes) prefixes.add(each);
      for (const each of wish.keys) keys.add(each);
      rest.values ||= wish.values;
      rest.prev ||= wish.prev;
      if (!reached || revisionOf(at) < revisionOf(reached)) reached = at;
      want.stream = stream;
    }
    joined = { prefixes: [...prefixes], keys: [...keys], ...rest };
  };

  const read = async (signal: AbortSignal, onMessages: () => void): Promise<void> => {
    const own = stream;
    let events: Message[] = [];
    for await (const messages of hub.kv.stream({ ...joined, ...hub.delivery, since: reached }, signal)) {
      if (signal.aborted || stream !== own) return;
      onMessages();
      if (!isOpen) {
        isOpen = true;
        state = "live";
        answer();
      }
      let to = "";
      const told: Message[] = [];
      for (const message of messages) {
        const { event, op, cursor } = message;
        if (/reset|end/.test(event)) throw new KvError({});
        if (event === "heartbeat") void prune();
        if (op) events.push(message);
        if (!cursor) continue;
        to = cursor;
        told.push(...events);
        events = [];
      }
      if (to) tell(told, to);
    }
  };

  const run = async (signal: AbortSignal): Promise<void> => {
    let lostAt = Infinity;
    hub.post({ who: true });
    const alive = await living();
    const end = performance.now() + GATHER_MS;
    for (let left; (left = end - performance.now()) > 0 && alive.some((tab) => !tabs.has(tab)); ) await rest(left, signal);
    while (!signal.aborted) {
      join();
      if (!reached) {
        await rest(FOR_LONG_MS, signal);
        continue;
      }
      again = new AbortController();
      const begun = again.signal;
      let isOver = false;
      lostAt = Math.min(lostAt, performance.now());
      try {
        await read(anyOf(signal, begun), () => {
          hub.failures = 0;
          lostAt = Infinity;
        });
      } catch (error) {
        isOver = !(error as KvError).retryable;
      }
      isOpen = false;
      if (signal.aborted || begun.aborted || !stream) continue;
      // where it is over, each of the tabs learns by a stream of its own what it is for it
      if (isOver) tabs.clear();
      hub.post({ state: (state = "lost"), isOver });
      await pause(navigator.onLine ? backoff(hub.failures++) : OFFLINE_MS, signal);
      if ((!navigator.onLine || performance.now() - lostAt > LOST_MS) && (await isAwaited())) return;
    }
  };

  return { hear, answer, run };
}

const hubs = new Map<string, Hub>();

/** The hub for all watches of one service, by one caller, in one manner of delivery; undefined where tabs cannot share. Who
 * does not know url and credentials cannot find it: they are in its name by a digest. */
export async function hubOf(kv: Kv, delivery: Delivery): Promise<Hub | undefined> {
  // there are no locks and digests but in secure contexts, and Node shares nothing
  const { shared } = kv.options;
  if (shared === false || !globalThis.isSecureContext || origin === "null" || !navigator.locks) return undefined;
  const about = JSON.stringify([NOTES, kv.url, typeof shared === "string" ? shared : await kv.credentials(), delivery]);
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(about));
  const name = `kvstore:${new BigUint64Array(digest).join("-")}:`;
  let hub = hubs.get(name);
  if (!hub) hubs.set(name, (hub = newHub(kv, name, delivery)));
  return hub;
}
