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

type Note =
  | { tab: string; wants: Want[] } // what a tab wants; all of it
  | { who: true } // a new leader asks for that
  | { facts: Omit<Facts, "wish">; stream: string; wish?: Wish } // the first of a stream has what it is of
  | { state: "live" | "lost"; isOver?: boolean } // how the leader's stream is; over: it cannot have it
  | { ask: true }; // is anybody there?

/** The part of a tab that speaks with the others. */
export class Hub {
  readonly id = randomText();
  #followers = new Set<Follower>();
  #wanted = new Map<Follower, string>();
  #channel: BroadcastChannel | undefined;
  #stop = new AbortController();
  #leader: Leader | undefined;
  /** Of the last streams, what they are of. */
  #streams = new Map<string, Wish>();
  #newest = "";
  #missed = 0;
  #wake: () => void = () => {};
  /** How often the stream could not be had since this tab last had it. */
  failures = 0;

  constructor(
    readonly kv: Kv,
    readonly name: string,
    readonly delivery: Delivery,
  ) {
    // a page that is frozen, or kept for going back, must hold nothing, and hears nothing
    const sleep = () => this.#end();
    const wake = () => this.#followers.size && this.#begin();
    for (const name of ["pagehide", "freeze"]) addEventListener(name, sleep, true);
    for (const name of ["pageshow", "resume"]) addEventListener(name, wake, true);
  }

  attach(follower: Follower): void {
    this.#followers.add(follower);
    this.#begin();
  }

  detach(follower: Follower): void {
    this.#followers.delete(follower);
    if (this.#wanted.delete(follower)) this.#tell();
    if (!this.#followers.size) this.#end();
  }

  /** Have the leader's stream include what `follower` wants, from where it is. */
  want(follower: Follower): void {
    if (!this.#wanted.has(follower)) this.#wanted.set(follower, randomText());
    this.#tell();
  }

  forget(follower: Follower): void {
    this.#wanted.delete(follower);
  }

  #begin(): void {
    if (this.#channel) return;
    this.#wake();
    this.#channel = new BroadcastChannel(this.name);
    this.#channel.onmessage = ({ data }) => this.#hear(data);
    this.#stop = new AbortController();
    const { signal } = this.#stop;
    // says to leaders that this tab lives
    void this.#hold(this.name + this.id, { signal }, () => this.#tell());
    void this.#stand();
    const timer = setInterval(() => this.#tick(), TICK_MS);
    signal.addEventListener("abort", () => clearInterval(timer));
  }

  #end(): void {
    if (!this.#channel) return;
    this.post({ tab: this.id, wants: [] });
    this.#stop.abort();
    this.#channel.close();
    this.#channel = undefined;
    this.#wanted.clear();
    const awake = new Promise<void>((done) => (this.#wake = done));
    for (const follower of this.#shared()) follower.leave(awake);
  }

  #shared(): Follower[] {
    return [...this.#followers].filter(({ isShared }) => isShared);
  }

  /** Hold a lock until this ends, it is taken away, or what `act` returns is fulfilled; whether it was given at all. */
  async #hold(name: string, options: LockOptions, act: () => Promise<void> | void): Promise<boolean> {
    const { signal } = this.#stop;
    let isGiven = false;
    const held = async () => {
      isGiven = true;
      const ended = signal.aborted || new Promise((done) => signal.addEventListener("abort", done));
      await Promise.race([ended, act() ?? ended]);
    };
    await navigator.locks.request(name, options, held).catch(() => {});
    return isGiven;
  }

  /** Lead as soon as no other tab does, or at once, until it cannot have the stream and another tab may. */
  async #lead(options: LockOptions): Promise<boolean> {
    let leader: Leader | undefined;
    const isGiven = await this.#hold(`lead ${this.name}`, options, () => {
      this.#leader = leader = new Leader(this);
      return leader.run();
    });
    leader?.stop.abort();
    if (this.#leader === leader) this.#leader = undefined;
    return isGiven;
  }

  async #stand(): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted && (await this.#lead({ signal })));
  }

  /** A tab that neither leads nor answers is stopped or stuck. */
  #tick(): void {
    if (this.#leader || ++this.#missed < MISSED_TICKS) {
      if (this.#missed > 1) this.post({ ask: true });
      return;
    }
    this.#missed = 0;
    // of all tabs that notice, one at a time
    navigator.locks.request(`take ${this.name}`, { ifAvailable: true }, async (lock) => {
      if (!lock || !this.#channel || this.#leader) return;
      void this.#lead({ steal: true });
      await pause(TICK_MS, this.#stop.signal);
    }).catch(() => {});
  }

  /** Say something to all tabs, this one too. */
  post(note: Note): void {
    this.#channel?.postMessage(note);
    this.#hear(note);
  }

  #tell(): void {
    const wants = [...this.#wanted].map(([{ wish, at }, id]) => ({ id, wish, at: at! }));
    this.post({ tab: this.id, wants });
  }

  #hear(note: Note): void {
    if ("tab" in note) {
      this.#leader?.hear(note.tab, note.wants);
      return;
    }
    if ("ask" in note) {
      this.#leader?.answer();
      return;
    }
    this.#missed = 0;
    if ("who" in note) this.#tell();
    else if ("facts" in note) this.#take(note);
    else for (const follower of this.#shared()) note.isOver ? follower.leave() : follower.told(note.state);
  }

  #take({ facts, stream, wish }: { facts: Omit<Facts, "wish">; stream: string; wish?: Wish }): void {
    if (wish) {
      if (stream !== this.#newest && this.#streams.size > KEPT) this.#streams.clear();
      this.#newest = stream;
      this.#streams.set(stream, wish);
    }
    const known = this.#streams.get(stream);
    if (!known) return;
    for (const follower of this.#followers) {
      if (!follower.offer({ ...facts, wish: known }) && follower.isShared && stream === this.#newest) follower.leave();
    }
  }
}

/** Has the one stream, while it leads. */
class Leader {
  readonly stop = new AbortController();
  readonly #hub: Hub;
  /** What each tab wants, and in which stream it is. */
  #wants = new Map<string, (Want & { stream?: string })[]>();
  #stream = "";
  #wish: Wish | undefined;
  #at = "";
  #isOpen = false;
  #state: "live" | "lost" = "lost";
  #again = new AbortController();
  #news = new AbortController();

  constructor(hub: Hub) {
    this.#hub = hub;
    this.#wants.set(hub.id, []);
  }

  /** A tab says what it wants. What of it the stream has from where that is goes on; else the stream begins again. */
  hear(tab: string, wants: Want[]): void {
    const before = new Map(this.#wants.get(tab)?.map((want) => [want.id, want]));
    const all: (Want & { stream?: string })[] = wants.map((want) => before.get(want.id) ?? want);
    this.#wants.set(tab, all);
    this.#news.abort();
    const news = wants.filter(({ id }) => !before.has(id));
    if (news.length ? !this.#isOpen || !news.every((want) => this.#has(want)) : !this.#all().length) return this.#reopen();
    for (const want of all) want.stream ??= this.#stream;
    this.answer();
  }

  /** Say that this tab leads, and up to where it is. */
  answer(): void {
    if (this.#isOpen) this.#tell([], this.#at);
    else this.#hub.post({ state: this.#state });
  }

  #all(): (Want & { stream?: string })[] {
    return [...this.#wants.values()].flat();
  }

  #has({ wish, at }: Want): boolean {
    return covers(this.#wish!, wish) && isSameStore(at, this.#at) && revisionOf(at) >= revisionOf(this.#at);
  }

  /** Begin the stream again; one that is about to begin does so first, so that those who come together are in one. */
  #reopen(): void {
    if (this.#isOpen) this.#again.abort();
    else this.#stream = "";
  }

  #tell(events: Facts["events"], to: string): void {
    // where nothing has happened there is time to say again what the stream is of, for tabs that have come since
    this.#hub.post({ facts: { from: this.#at, to, events }, stream: this.#stream, ...(!events.length && { wish: this.#wish! }) });
    this.#at = to;
  }

  /** Wait, or until a tab says something. */
  #rest(milliseconds: number): Promise<void> {
    this.#news = new AbortController();
    return pause(milliseconds, anyOf(this.stop.signal, this.#news.signal));
  }

  /** Lead until `stop` is aborted, or it makes room for another tab. */
  async run(): Promise<void> {
    const { signal } = this.stop;
    let lostAt = Infinity;
    this.#hub.post({ who: true });
    const tabs = await this.#tabs();
    const end = performance.now() + GATHER_MS;
    for (let left = GATHER_MS; left > 0 && tabs.some((tab) => !this.#wants.has(tab)); left = end - performance.now()) await this.#rest(left);
    while (!signal.aborted) {
      this.#join();
      if (!this.#at) {
        await this.#rest(FOR_LONG_MS);
        continue;
      }
      this.#again = new AbortController();
      const again = this.#again.signal;
      let isOver = false;
      lostAt = Math.min(lostAt, performance.now());
      try {
        await this.#read(anyOf(signal, again), () => {
          this.#hub.failures = 0;
          lostAt = Infinity;
        });
      } catch (error) {
        isOver = !(error as KvError).retryable;
      }
      this.#isOpen = false;
      if (signal.aborted || again.aborted || !this.#stream) continue;
      // where it is over, each of the tabs learns by a stream of its own what it is for it
      if (isOver) this.#wants.clear();
      this.#hub.post({ state: (this.#state = "lost"), isOver });
      await pause(navigator.onLine ? backoff(this.#hub.failures++) : OFFLINE_MS, signal);
      if ((!navigator.onLine || performance.now() - lostAt > LOST_MS) && (await this.#isAwaited())) return;
    }
  }

  /** Whether another tab would lead. */
  async #isAwaited(): Promise<boolean> {
    const { pending } = await navigator.locks.query();
    return pending!.some(({ name }) => name === `lead ${this.#hub.name}`);
  }

  /** Join what all tabs want, from the first of where they are on. What does not fit stays with streams of its own. */
  #join(): void {
    const all = this.#all();
    for (const want of all) if (want.stream && want.stream === this.#stream) want.at = this.#at;
    this.#stream = randomText();
    this.#at = "";
    const [prefixes, keys] = [new Set<string>(), new Set<string>()];
    const wish = { values: false, prev: false };
    const store = all.at(-1)?.at;
    for (const want of all) {
      const { values, prev, ...wanted } = want.wish;
      const fits = prefixes.size + wanted.prefixes.length <= MOST_FILTERS && keys.size + wanted.keys.length <= MOST_FILTERS;
      want.stream = "";
      if (!fits || !isSameStore(want.at, store!)) continue;
      for (const each of wanted.prefixes) prefixes.add(each);
      for (const each of wanted.keys) keys.add(each);
      wish.values ||= values;
      wish.prev ||= prev;
      if (!this.#at || revisionOf(want.at) < revisionOf(this.#at)) this.#at = want.at;
      want.stream = this.#stream;
    }
    this.#wish = { prefixes: [...prefixes], keys: [...keys], ...wish };
  }

  async #read(signal: AbortSignal, onMessages: () => void): Promise<void> {
    const stream = this.#stream;
    let events: Message[] = [];
    for await (const messages of this.#hub.kv.stream({ ...this.#wish, ...this.#hub.delivery, since: this.#at }, signal)) {
      if (signal.aborted || this.#stream !== stream) return;
      onMessages();
      if (!this.#isOpen) {
        this.#isOpen = true;
        this.#state = "live";
        this.answer();
      }
      let to = "";
      let told: Message[] = [];
      for (const message of messages) {
        const { event, op, cursor } = message;
        if (/reset|end/.test(event)) throw new KvError({});
        if (event === "heartbeat") void this.#prune();
        if (op) events.push(message);
        if (!cursor) continue;
        to = cursor;
        told = told.concat(events);
        events = [];
      }
      if (to) this.#tell(told, to);
    }
  }

  /** Forget tabs that are gone, and what only they wanted. */
  async #prune(): Promise<void> {
    const tabs = await this.#tabs();
    for (const tab of this.#wants.keys()) if (!tabs.includes(tab)) this.#wants.delete(tab);
    const isWanted = (which: "prefixes" | "keys") => this.#wish![which].every((each) => this.#all().some(({ wish }) => wish[which].includes(each)));
    if (!isWanted("prefixes") || !isWanted("keys")) this.#reopen();
  }

  /** The tabs that live, by the locks that they hold. */
  async #tabs(): Promise<string[]> {
    const { held } = await navigator.locks.query();
    const { name } = this.#hub;
    return held!.flatMap((lock) => (lock.name!.startsWith(name) ? lock.name!.slice(name.length) : []));
  }
}

const hubs = new Map<string, Hub>();

/** The hub for all watches of one service, by one caller, in one manner of delivery; undefined where tabs cannot share. Who
 * does not know url and credentials cannot find it: they are in its name by a digest. */
export async function hubOf(kv: Kv, delivery: Delivery): Promise<Hub | undefined> {
  // there are no locks and digests but in secure contexts, and Node shares nothing
  const { shared } = kv.options;
  if (shared === false || !globalThis.isSecureContext || origin === "null" || !navigator.locks || !globalThis.BroadcastChannel) return undefined;
  const about = JSON.stringify([NOTES, kv.url, typeof shared === "string" ? shared : await kv.credentials(), delivery]);
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(about));
  const name = `kvstore:${new BigUint64Array(digest).join("-")}:`;
  let hub = hubs.get(name);
  if (!hub) hubs.set(name, (hub = new Hub(kv, name, delivery)));
  return hub;
}
