// Requests: one at a time, with its answer; and the bytes of a stream, message by message.

import { KvError, unreachable } from "./errors.js";
import { live, type Live } from "./live.js";
import type {
  Changes, ChangesPage, Connect, Entry, Get, History, HistoryPage, Item, List, LiveOptions, Op, Page, Put, Signal, Value, Watch, Write, Written,
} from "./types.js";
import { watch } from "./watch.js";

const JSON_TYPE = "application/json";
const TIMEOUT_MS = 20_000;
const RETRIES = 3;
const SILENCE_MS = 60_000; // a stream has a heartbeat every 15 s unless the operator chose otherwise
const LONGEST_ADDRESS = 4_000; // some proxies take no more than 8 KiB of a request's head

type Fields = Record<string, any>;

/** A message of a stream: an event, or `sync`, `heartbeat`, `reset`, `end`. */
export type Message = Fields & { event: string; cursor?: string };

export interface Request extends Signal {
  /** Lists are given several times, what is undefined or null not at all; true is 1 and false 0. Names may be written `likeThis`. */
  query?: Fields;
  headers?: Record<string, string>;
  body?: BodyInit | null;
}

/** Waits; ends at once when `signal` does. */
export const pause = (milliseconds: number, signal?: AbortSignal): Promise<void> =>
  new Promise((done) => {
    const end = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      done();
    };
    const timer = setTimeout(end, milliseconds);
    if (signal?.aborted) end();
    signal?.addEventListener("abort", end);
  });

/** What is given, by itself or as lists; without what is not. */
export const toList = <T>(...given: (T | readonly T[] | null | undefined)[]): T[] => given.flatMap((each) => (each ?? []) as T);

/** Twice as long each time, up to ten seconds; and not the same for all tabs and machines. */
export const backoff = (failures: number): number => Math.min(200 * 2 ** failures, 10_000) * (0.5 + Math.random());

export const anyOf = (...signals: (AbortSignal | undefined)[]): AbortSignal => AbortSignal.any(toList(...signals));

/** What nobody else has, and no secret. Not of crypto: randomUUID is there in secure contexts only, and older Nodes have none of it. */
export const randomText = (): string => `${Math.random()}-${Math.random()}`;

const snake = (name: string): string => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

/** A query: lists are given several times, what is undefined or null not at all; true is 1 and false 0. */
function search(query: Fields): string {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const each of toList(value)) found.append(snake(name), typeof each === "boolean" ? `${+each}` : each);
  }
  return `?${found}`;
}

const encode = (bytes: Uint8Array | ArrayBuffer): string => btoa(Array.from(new Uint8Array(bytes), (byte) => String.fromCharCode(byte)).join(""));

/** What the service sent, with its value as a text or as bytes. */
export function withValue<T>({ value_b64: encoded, previous, ...fields }: Fields): T {
  if (encoded !== undefined) fields.value = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
  if (previous) fields.previous = withValue(previous);
  return fields as T;
}

/** The members of an operation, as the service calls them. */
function wire(op: Fields): Fields {
  const fields: Fields = {};
  for (const [name, value] of Object.entries(op)) {
    const isBytes = value instanceof ArrayBuffer || value instanceof Uint8Array;
    const isJson = name === "value" && !isBytes && typeof value !== "string";
    if (isJson) fields.content_type ??= JSON_TYPE;
    fields[snake(name) + (isBytes ? "_b64" : "")] = isBytes ? encode(value) : isJson ? JSON.stringify(value) : value;
  }
  return fields;
}

const defaultUrl = () => (import.meta.url.endsWith("/ui/kvstore.js") ? new URL("../", import.meta.url) : globalThis.location?.origin);

/** What `connect` gives: a service, to be read, written and followed. */
export class Kv {
  /** The service's address, with a slash at its end. */
  readonly url: string;
  /** @internal */
  readonly options: Connect;

  constructor(options: Connect = {}) {
    this.url = new URL(options.url ?? defaultUrl()).href.replace(/\/?$/, "/");
    this.options = options;
  }

  /** The record of `key`, with its value; undefined where there is none. Rejects with `KvError`, as all of these do. */
  async get(key: string, { signal, ...query }: Get = {}): Promise<Entry | undefined> {
    try {
      return withValue(await this.request("GET", "v1/kv", { query: { key, format: "json", ...query }, signal }));
    } catch (error) {
      if ((error as KvError).code === "not_found") return undefined;
      throw error;
    }
  }

  /** Stores `value`. Where a condition does not hold: `condition_failed`, with the present `revision`. */
  put(key: string, value: Value, options?: Put): Promise<Written> {
    return this.#write({ op: "put", key, value }, options);
  }

  /** Removes `key`; `not_found` where there is none. */
  delete(key: string, options?: Write): Promise<{ key: string; revision: number }> {
    return this.#write({ op: "delete", key }, options);
  }

  /** Adds `by`, 1 if not given, to a number of 64 bits. `text` has all of its digits. */
  incr(key: string, { by = 1, ...options }: Write & { by?: number } = {}): Promise<Written & { value: number; text: string }> {
    return this.#write({ op: "incr", key, by }, options);
  }

  /** Several operations in one request. Atomic: all or none, in one revision, and rejected with the first that cannot be done.
   * Otherwise each has its result in its place: the fields of its answer, or `error`. */
  async batch(
    ops: Op[],
    { atomic = false, idempotencyKey, signal }: { atomic?: boolean } & Pick<Write, "idempotencyKey" | "signal"> = {},
  ): Promise<({ status: number; error?: KvError } & Fields)[]> {
    const headers: Record<string, string> = { "Content-Type": JSON_TYPE };
    if (ops.some(({ op }) => op !== "get")) headers["Idempotency-Key"] = idempotencyKey || randomText();
    const body = JSON.stringify({ atomic, ops: ops.map(wire) });
    const { results } = await this.request("POST", "v1/batch", { headers, body, signal });
    return results.map((each: Fields) => (each.error ? { ...each, error: new KvError(each.error) } : withValue(each)));
  }

  /** A page of records, in the order of their keys' bytes. */
  list(options?: List): Promise<Page> {
    return this.#page("kv", "items", options);
  }

  /** A page of what has changed; where to go on is in its `cursor`. Too old a cursor is `cursor_expired`. */
  async changes({ prefix, prefixes, key, keys, ops, ...rest }: Changes = {}): Promise<ChangesPage> {
    return this.#page("changes", "events", { prefix: toList(prefix, prefixes), key: toList(key, keys), ops: ops?.join(), ...rest });
  }

  /** A page of what happened to `key`, newest first. `not_found` where there is neither the key nor anything left of it in the log. */
  history(key: string, options?: History): Promise<HistoryPage> {
    return this.#page("history", "events", { key, ...options });
  }

  /** Every change, in order, each once, for as long as it is iterated and `signal` is not aborted: it connects again where it
   * stopped as often as it takes, and throws only what trying again cannot cure (401, 403, 400). It begins when it is iterated. */
  watch(options?: Watch): AsyncGenerator<Item, void, undefined> {
    return watch(this, options);
  }

  /** The records of a prefix, kept as they are now. */
  live(options?: LiveOptions): Live {
    return live(this, options);
  }

  /** Any request of docs/http.md: its answer, which is JSON. One that may be sent twice is sent again where no answer came.
   * `path` is below the service's address, with or without a slash at its beginning. */
  async request(method: string, path: string, { query = {}, headers = {}, body = null, signal }: Request = {}): Promise<Fields> {
    if (!/^[A-Z]+$/i.test(method) || typeof path !== "string") throw new TypeError("request takes a method and a path");
    const { timeout = TIMEOUT_MS, retries = RETRIES } = this.options;
    const limit = anyOf(signal, query.wait ? undefined : AbortSignal.timeout(timeout));
    const mayRepeat = !query.wait && (method === "GET" || "Idempotency-Key" in headers);
    for (let attempt = 0; ; attempt++) {
      try {
        const response = await this.#send(path + search(query), { method, headers, body, signal: limit });
        return await response.json().catch((cause: unknown) => {
          throw unreachable("The answer is cut off, or not from kvstore.", cause);
        });
      } catch (error) {
        signal?.throwIfAborted();
        if (!mayRepeat || !(error as KvError).retryable || attempt >= retries || limit.aborted) throw error;
        await pause(backoff(attempt), limit);
      }
    }
  }

  /** The messages of a stream, those that came together together. Rejects when it cannot begin, breaks or falls silent.
   * @internal */
  async *stream(wish: Fields, signal: AbortSignal): AsyncGenerator<Message[], void, undefined> {
    const silent = new AbortController();
    const within = async <T>(milliseconds: number, wanted: Promise<T>): Promise<T> => {
      const timer = setTimeout(() => silent.abort(), milliseconds);
      try {
        return await wanted;
      } finally {
        clearTimeout(timer);
      }
    };
    const { prefixes: prefix, keys: key, ops, ...rest } = wish;
    const query = search({ prefix, key, ops: ops?.join(), ...rest });
    const headers = { Accept: "application/x-ndjson" };
    const inBody = { method: "POST", headers: { ...headers, "Content-Type": JSON_TYPE }, body: JSON.stringify(wish) };
    const [path, init] = query.length > LONGEST_ADDRESS ? ["", inBody] : [query, { headers }];
    try {
      const response = await within(this.options.timeout ?? TIMEOUT_MS, this.#send("v1/subscribe" + path, { ...init, signal: anyOf(signal, silent.signal) }));
      const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await within(SILENCE_MS, reader.read());
        if (done) return;
        const lines = (rest + value).split("\n");
        rest = lines.pop()!;
        if (lines.length) yield lines.map((line) => JSON.parse(line));
      }
    } catch (error) {
      throw error instanceof KvError ? error : unreachable("The stream broke.", error);
    } finally {
      silent.abort(); // lets go of the connection, wherever it was left
    }
  }

  /** The headers that say who asks. @internal */
  async credentials(): Promise<Record<string, string>> {
    const { token, headers } = this.options;
    const text = typeof token === "function" ? await token() : token;
    return { ...(text && { Authorization: `Bearer ${text}` }), ...headers?.() };
  }

  async #send(path: string, init: RequestInit): Promise<Response> {
    const ask = this.options.fetch ?? fetch;
    const headers = { ...(await this.credentials()), ...(init.headers as {}) };
    const response = await ask(this.url + path.replace(/^\//, ""), { cache: "no-store", ...init, headers }).catch((cause: unknown) => {
      throw unreachable(this.#silence(init.signal!.aborted), cause);
    });
    if (response.ok) return response;
    throw new KvError({ status: response.status, retryable: response.status > 501, ...(await response.json().catch(() => ({}))) });
  }

  /** Why no answer may have come; a browser says the same of all. */
  #silence(isLate: boolean): string {
    const { origin } = globalThis;
    const within = isLate ? ` within ${(this.options.timeout ?? TIMEOUT_MS) / 1000} s` : "";
    const foreign = origin && origin !== new URL(this.url).origin ? `, or pages of ${origin} not be let in (--cors-origins)` : "";
    return `No answer came from ${this.url}${within}: it or the network may be gone${foreign}.`;
  }

  /** A page, whose list `of` is of records or changes. */
  async #page<T>(path: string, of: string, { signal, ...query }: Fields = {}): Promise<T> {
    const page = await this.request("GET", `v1/${path}`, { query, signal });
    page[of] = page[of].map(withValue);
    return page as T;
  }

  /** One operation, with what it depends on. */
  async #write<T>(op: Fields, { guard, signal, idempotencyKey, ...more }: Write = {}): Promise<T> {
    const checks = Object.entries(guard ?? {}).map(([key, revision]) => ({ op: "check" as const, key, ifRevision: revision }));
    const options = { atomic: checks.length > 0, signal, idempotencyKey };
    const result = (await this.batch([...checks, { ...op, ...more } as Op], options)).at(-1)!;
    if (result.error) throw result.error;
    return result as T;
  }
}

/** A service, to be read, written and followed. Nothing is sent yet. */
export const connect = (options?: Connect): Kv => new Kv(options);
