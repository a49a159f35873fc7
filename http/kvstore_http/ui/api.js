// @ts-check
// What the page asks of the service. Addresses are relative to the page's own, so that it works below any
// path, and keys stand in the query, where neither browsers nor proxies tidy them up.

import { KvError, connect } from "./kvstore.js";
import { shownKey } from "./keys.js";
import { HOME, half, keepHalf } from "./session.js";

const ROOT = new URL("../", document.baseURI);

/** What the service refused, or that it cannot be reached (`status` 0). `message` is the detail. */
export { KvError as Problem };

/**
 * @typedef {{ key: string, revision: number, create_revision: number, version: number, content_type: string,
 *   modified_at: string, expires_at?: string, author?: string, message?: string, value?: string, value_b64?: string, bytes?: number }} Fields
 * @typedef {Omit<Fields, "bytes"> & { bytes: Uint8Array, text: string | null }} Value
 */

/** Tells "reached" with `detail` "yes", "daemon" or "service": what could not be; and "refused" with the
 * problem where the credential is no good or the grants are too few. */
export const reach = new EventTarget();

let clockAhead = 0;
/** The service's present time, in milliseconds, by what it said last. */
export const serviceNow = () => Date.now() - clockAhead;

/** @param {number} date what the service's clock shows, by whole seconds */
function noteClock(date) {
  const ahead = Date.now() - date;
  if (date) clockAhead = Math.abs(ahead) < 2000 ? 0 : ahead;
}

/** The address of `path` below the service. @param {string} path @param {Record<string, any>} [query] */
export function address(path, query = {}) {
  const pairs = Object.entries(query).filter(([, value]) => value !== undefined && value !== "");
  const text = pairs.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&");
  return new URL(path + (text && `?${text}`), ROOT).href;
}

/** Where the value of `key` lies, for links and pictures. @param {string} key @param {number} [revision] */
export const valueAddress = (key, revision) => address("v1/kv", { key, revision });

/** The service, with the page's half of its session. What is not answered the reader tries again, or not. */
export const kv = connect({
  url: ROOT,
  retries: 0,
  headers: () => ({ ...(half() && { "X-Kvstore-Page": half() }) }),
  fetch: async (url, init) => {
    const response = await fetch(url, init);
    noteClock(Date.parse(response.headers.get("Date") ?? ""));
    return response;
  },
});

/** Note a refusal that another token, or other grants, may cure. @param {KvError} problem */
export function noteRefusal(problem) {
  if (problem.status === 401 || problem.status === 403) reach.dispatchEvent(new CustomEvent("refused", { detail: problem }));
}

/** @param {"yes" | "daemon" | "service"} detail */
const tellReach = (detail) => reach.dispatchEvent(new CustomEvent("reached", { detail }));

/** Note how the service fares, by what becomes of a request. @template T @param {Promise<T>} request @returns {Promise<T>} */
async function noted(request) {
  try {
    const answer = await request;
    tellReach("yes");
    return answer;
  } catch (error) {
    const problem = /** @type {KvError} */ (error);
    const { code } = problem;
    tellReach(code === "unreachable" ? "service" : code === "unavailable" || code === "timed_out" ? "daemon" : "yes");
    noteRefusal(problem);
    throw problem;
  }
}

/** @param {string} method @param {string} path @param {Record<string, any>} [query] @param {object} [json] @returns {Promise<any>} */
function ask(method, path, query = {}, json) {
  const given = Object.fromEntries(Object.entries(query).filter(([, value]) => value !== ""));
  const body = json && { body: JSON.stringify(json), headers: { "Content-Type": "application/json" } };
  return noted(kv.request(method, path, { query: given, ...body }));
}

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();

/** @param {string} text */
export const bytesOf = (text) => encoder.encode(text);

/** The text that `bytes` are, null if they are none. @param {Uint8Array} bytes */
export function textOf(bytes) {
  try {
    return strict.decode(bytes);
  } catch {
    return null;
  }
}

/** A record, or an event with a value, with the value's bytes and text. @template T @param {T & { value?: string, value_b64?: string }} fields */
export function withBytes(fields) {
  if (fields.value_b64 !== undefined) {
    const bytes = Uint8Array.from(atob(fields.value_b64), (character) => character.charCodeAt(0));
    return { ...fields, bytes, text: null };
  }
  return { ...fields, bytes: bytesOf(fields.value ?? ""), text: fields.value ?? "" };
}

/** @param {string} key @param {number} [revision] @returns {Promise<Value>} */
export const get = async (key, revision) => withBytes(await ask("GET", "v1/kv", { key, revision, format: "json" }));

/** @typedef {{ items: Fields[], prefixes?: string[], counts?: (number | null)[], revision: number, cursor: string | null }} ListPage */

/** A page of records without values. @param {Record<string, any>} query @returns {Promise<ListPage>} */
export const list = (query) => ask("GET", "v1/kv", { ...query, keys: 1 });

/**
 * Store a value, once however often it is sent under the same `number`.
 * @param {string} key @param {Uint8Array} bytes
 * @param {{ contentType: string, ttl?: string, keepsTtl?: boolean, revision: number, number: string, message?: string }} how
 * @returns {Promise<any>}
 */
export const put = (key, bytes, { contentType, ttl, keepsTtl, revision, number, message }) =>
  noted(kv.put(key, bytes, { contentType, ttl: ttl || undefined, keepTtl: keepsTtl || undefined, ifRevision: revision, idempotencyKey: number, message: message || undefined }));

/** @param {string} key @param {number} revision */
export const remove = (key, revision) => noted(kv.delete(key, { ifRevision: revision }));

/** @param {any} op */
const operate = (op) => noted(kv.batch([op], { atomic: true }).then(([result]) => result));

/** @param {string} key @param {string} ttl @param {number} revision */
export const touch = (key, ttl, revision) => operate({ op: "touch", key, ttl, ifRevision: revision });

/** @param {string} key @param {number} revision */
export const persist = (key, revision) => operate({ op: "persist", key, ifRevision: revision });

/** How many keys begin with `prefix`. @param {string} prefix @returns {Promise<number>} */
export const countBelow = async (prefix) => (await ask("GET", "v1/kv", { prefix, count: 1 })).count;

/** Delete all keys that begin with `prefix`. @param {string} prefix @returns {Promise<{ deleted: number }>} */
export const removeBelow = (prefix) => ask("DELETE", "v1/kv", { prefix });

/** Put records under other names, where there must be none, and take the old ones away unless they are to stay: all or nothing.
 * @param {any[]} items @param {(key: string) => string} nameOf @param {boolean} isCopy */
export function move(items, nameOf, isCopy) {
  const ops = items.flatMap(({ key, revision, value, value_b64, content_type, expires_at }) => {
    const put = { op: "put", key: nameOf(key), content_type, if_revision: 0, ...(value === undefined ? { value_b64 } : { value }), ...(expires_at && { expires_at }) };
    return isCopy ? [put] : [put, { op: "delete", key, if_revision: revision }];
  });
  return noted(kv.batch(/** @type {any} */ (ops), { atomic: true }).catch((problem) => Promise.reject(naming(problem, ops))));
}

/** The problem of a batch with the key that it is about. @param {KvError} problem @param {{ key: string }[]} ops */
function naming(problem, ops) {
  const at = /** @type {any} */ (problem).op ?? /** @type {any} */ (problem).details?.op;
  if (ops[at]) problem.message = `${shownKey(ops[at].key)}: ${problem.message}`;
  return problem;
}

/** A response of the service that is no JSON, or is long. @param {string} path @param {Record<string, any>} query @param {string} accept
 * @param {AbortSignal} [signal] @param {number[]} [good] further statuses whose body is wanted */
async function fetched(path, query, accept, signal, good = []) {
  const headers = { Accept: accept, ...(half() && { "X-Kvstore-Page": half() }) };
  let response;
  try {
    response = await fetch(address(path, query), { headers, signal });
  } catch (cause) {
    signal?.throwIfAborted();
    throw new KvError({ code: "unreachable", title: "Unreachable", detail: "The service cannot be reached.", retryable: true });
  }
  if (response.ok || good.includes(response.status)) return response;
  throw new KvError({ status: response.status, ...(await response.json().catch(() => ({}))) });
}

/** The text at `path`; with the reason also where the service is not ready. @param {string} path @param {string} accept */
export const plain = (path, accept = "text/plain", query = {}) => noted(fetched(path, query, accept, undefined, [503])).then((response) => response.text());

/** All records that begin with `prefix`, as lines of JSON, read as fast as they are taken. @param {string} prefix @param {AbortSignal} signal
 * @param {string} [start] a key from which on */
export async function* records(prefix, signal, start = "") {
  const response = await noted(fetched("v1/kv", { prefix, start }, "application/x-ndjson", signal));
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      signal.throwIfAborted();
      throw new KvError({ code: "unreachable", title: "Cut off", detail: "The answer was cut off, and is not whole. Try again.", retryable: true });
    });
    const lines = (rest + decoder.decode(value, { stream: !done })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) if (line) yield line;
    if (done) return;
  }
}

/** @param {string} key @param {string | null} cursor @param {number} limit */
export const history = (key, cursor, limit) => ask("GET", "v1/history", { key, limit, cursor: cursor ?? undefined });

export const status = () => ask("GET", "v1/status");

/** @typedef {{ name: string, grants: string[], expires_at?: string }} Who `name` is empty where access is off */

/** @returns {Promise<Who>} */
export const whoami = () => ask("GET", "v1/whoami");

/** Begin a session. The token goes to the service and is not kept. @param {string} token */
export async function logIn(token) {
  keepHalf("");
  const answer = await ask("POST", "v1/session", {}, { token, page: HOME });
  keepHalf(answer.half);
}

export async function logOut() {
  keepHalf("");
  await kv.request("DELETE", "v1/session").catch(() => null); // without its half the cookie is nothing
}

/** A number that no other write uses. Not randomUUID: browsers have it on https and localhost only. */
export function writeNumber() {
  const random = crypto.getRandomValues(new Uint8Array(16));
  return `ui-${Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
