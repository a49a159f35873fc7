// What goes in and out. The members of answers are called as the service calls them (docs/http.md).

/** Text is stored as text, bytes as bytes, and anything else as the JSON that it is. */
export type Value = string | Uint8Array | ArrayBuffer | number | boolean | null | object;

/** A record, as `get`, `list` and `live` give it. `value` is a text, or bytes where it is none; it is not there where values
 * were not asked for. Times are RFC 3339 in UTC. */
export interface Entry {
  key: string;
  value?: string | Uint8Array;
  content_type: string;
  /** The store's revision that changed the key last. */
  revision: number;
  /** The revision that created the key. */
  create_revision: number;
  /** 1 for a new key, and 1 more with each write of its value. */
  version: number;
  /** When the value was written. */
  modified_at: string;
  /** When the key will be gone; not there without a TTL. */
  expires_at?: string;
  /** Who changed it last, where that is known. */
  author?: string;
  /** Why, where that was said. */
  message?: string;
}

/** A change. With `cursor`, which the last event of a revision has, all of it can be resumed: `watch({ since: cursor })`.
 * `snapshot` is a record that was there before; it is told as a put. */
export interface Change extends Partial<Omit<Entry, "key" | "revision">> {
  op: "put" | "delete" | "expire";
  key: string;
  /** The store's revision that the change made. */
  revision: number;
  /** Which of the `count` changes of the revision it is, from 0. */
  index: number;
  /** How many changes share the revision. */
  count: number;
  /** When it happened: RFC 3339, in UTC. */
  time: string;
  /** The revision that the key had before, 0 for none. */
  previous_revision: number;
  /** What was replaced or removed, with `prev`. */
  previous?: Entry;
  /** How many changes of the key were left out before it, with `deliver` or `sample`. */
  skipped?: number;
  /** It was there when the snapshot was read, and is no change. */
  snapshot?: true;
  /** Where to go on after all of its revision. */
  cursor?: string;
}

/** What was told so far has no continuation: forget it; the records that are there now follow, and then a `sync`. The log no
 * longer reaches back to the cursor (`expired`), the store is another one (`epoch`), or a snapshot was cut off (`interrupted`). */
export interface Reset {
  op: "reset";
  reason: "expired" | "epoch" | "interrupted";
  floor?: number;
}

/** Everything up to `revision` has come: the snapshot, or what was missed, is complete. */
export interface Sync {
  op: "sync";
  revision: number;
  cursor: string;
}

export type Item = Change | Reset | Sync;

export interface Connect {
  /** Where the service is: `http://127.0.0.1:5000/`. Left out, it is the service that served this module, or the page. */
  url?: string | URL;
  /** Sent as `Authorization: Bearer …`; a function is asked before each request. */
  token?: string | (() => string | undefined | Promise<string | undefined>);
  /** Further headers of each request. */
  headers?: () => Record<string, string>;
  /** What sends requests, `globalThis.fetch` if not given. */
  fetch?: typeof fetch;
  /** Milliseconds in which a request has to be answered, with all times that it is sent again: 20,000. */
  timeout?: number;
  /** How often a request is sent again that got no answer, or a 503; writes carry an `Idempotency-Key`, so that each is done
   * once: 3. */
  retries?: number;
  /** `false`: a stream for each watch, instead of one for all tabs. A text: tabs share where this is the same, instead of the
   * credential; for tokens that are others each time. Name the user, then, since all who share see what the leader may see. */
  shared?: boolean | string;
}

export interface Signal {
  /** Ends the request, or the stream. */
  signal?: AbortSignal | undefined;
}

export interface Get extends Signal {
  /** The value as it was after this revision. */
  revision?: number;
  /** Wait up to this long, `"30s"`, for the key to change after `since`, or for `until` to hold. */
  wait?: string;
  /** The revision or cursor that you know; 0 if you know the key as missing. */
  since?: number | string;
  /** What the key is to fulfil, instead of a change: `'/state == "done"'`. */
  until?: string;
  /** A read at least as new as this revision. */
  minRevision?: number;
  /** At once, what this daemon has. */
  stale?: boolean;
}

/** What has to hold for a write to happen; else it is refused with `condition_failed`, and all stays as it was. */
export interface Conditions {
  /** The revision that the key has, 0: it does not exist. */
  ifRevision?: number;
  /** The value that the key has, byte for byte. */
  ifValue?: string | Uint8Array;
}

export interface Write extends Conditions, Signal {
  /** Revisions that other keys have, 0: they do not exist: `{ "locks/deploy": 41 }`. */
  guard?: Record<string, number>;
  /** Why, in up to 200 bytes; kept with the change. */
  message?: string;
  /** Requests with the same key are done once. Left out, each call has one of its own. */
  idempotencyKey?: string;
}

export interface Put extends Write {
  /** `"30s"`, or seconds. */
  ttl?: string | number;
  /** The key expires when it would have. */
  keepTtl?: boolean;
  /** RFC 3339, or milliseconds since 1970. */
  expiresAt?: string | number;
  /** The media type; left out, it is that of the kind of value: text, bytes or JSON. */
  contentType?: string;
  /** The key is a prefix: what is stored under it gets the revision as its name. The answer has the whole `key`. */
  sequence?: boolean;
}

export interface Written {
  /** 201: the key was not there before; else 200. */
  status: number;
  key: string;
  revision: number;
  create_revision: number;
  version: number;
  expires_at?: string;
}

export interface List extends Signal {
  /** Only keys that begin with this. */
  prefix?: string;
  /** Only keys from this one on. */
  start?: string;
  /** Only keys before this one. */
  end?: string;
  /** The most items of the page, 1 to 1000. */
  limit?: number;
  /** The `cursor` of the page before. */
  cursor?: string | null;
  /** Without values. */
  keys?: boolean;
  /** Keys that go on after this text are told as one common prefix. */
  delimiter?: string;
  /** The last keys first. */
  reverse?: boolean;
  /** With `delimiter`: also how many keys each prefix has. */
  counts?: boolean;
  /** A read at least as new as this revision. */
  minRevision?: number;
  /** At once, what this daemon has. */
  stale?: boolean;
}

export interface Page {
  items: Entry[];
  /** The revision of the store that the page shows. */
  revision: number;
  /** Where the next page begins, null on the last. */
  cursor: string | null;
  /** With `delimiter`: what keys further down begin with, each once. */
  prefixes?: string[];
  /** How many keys each of `prefixes` has; null where that takes long to count. */
  counts?: (number | null)[];
}

/** Which keys: those that are named, and those that begin with a prefix; without any, all. */
export interface Filter {
  prefix?: string;
  prefixes?: readonly string[];
  key?: string;
  keys?: readonly string[];
}

export interface Changes extends Filter, Signal {
  /** After this cursor, revision, time (`"10m-ago"`, RFC 3339). */
  since?: string | number;
  /** Only these kinds of changes. */
  ops?: readonly Change["op"][];
  /** About how many events, 1 to 1000; a page never ends inside a revision. */
  limit?: number;
  /** Where there is nothing yet, wait up to this long for something. */
  wait?: string;
  /** `false`: without values. */
  values?: boolean;
  /** With what each change replaced, in `previous`. */
  prev?: boolean;
}

export interface ChangesPage {
  events: Change[];
  /** Where the next page begins. */
  cursor: string;
  /** The log begins after this revision. */
  floor: number;
  /** The newest revision of the store. */
  head: number;
  /** Whether there are changes behind the cursor already. */
  more: boolean;
}

export interface History extends Signal {
  /** The most events of the page, 1 to 1000: 100. */
  limit?: number;
  /** The `cursor` of the page before. */
  cursor?: string | null;
  /** Only what is of a lower revision. */
  before?: number;
  values?: boolean;
  minRevision?: number;
  stale?: boolean;
}

export interface HistoryPage {
  key: string;
  events: Change[];
  /** Where the next page begins, null on the last. */
  cursor: string | null;
  /** On the last page: whether there was more once. */
  truncated: boolean;
}

export interface Watch extends Filter, Signal {
  /** Go on after this cursor, revision or time (`"10m-ago"`, RFC 3339); left out, it begins now. */
  since?: string | number;
  /** Begin with the records that are there. It does not count beside `since`. */
  snapshot?: boolean;
  /** Only these kinds of changes. */
  ops?: readonly Change["op"][];
  /** `false`: without values. */
  values?: boolean;
  /** With what each change replaced, in `previous`. */
  prev?: boolean;
  /** `latest`: of several changes of a key that wait to be told, the last, with how many were `skipped`. */
  deliver?: "all" | "latest";
  /** At most one event for each key in this time, `"1s"`. */
  sample?: string;
  /** Called when the stream is there, and when it is lost and tried again. */
  onState?: (state: "live" | "lost") => void;
}

/** What a live view takes; it begins with what is there, and follows every change. */
export type LiveOptions = Omit<Watch, "since" | "snapshot" | "ops" | "prev">;

/** An operation of a batch: `op`, and the same names as in the single calls. `check` changes nothing. */
export type Op = { op: "put"; key: string; value: Value } & Omit<Put, "guard" | "signal" | "idempotencyKey"> |
  { op: "delete" | "persist"; key: string } & Conditions & { message?: string } |
  { op: "incr"; key: string; by?: number } & Conditions & { message?: string } |
  { op: "touch"; key: string; ttl: string | number } & Conditions & { message?: string } |
  { op: "check"; key: string; exists?: boolean } & Conditions |
  { op: "get"; key: string } |
  { op: "delete_prefix"; prefix: string; limit?: number };
