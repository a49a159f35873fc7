// @ts-check
// What the page asks of the service. Addresses are relative to the page's own, so that it works below any
// path, and keys stand in the query, where neither browsers nor proxies tidy them up.

import { HOME, half, keepHalf } from "./session.js";

const ROOT = new URL("../", document.baseURI);
const PATIENCE_MS = 20_000;

/** What the service refused, or that it cannot be reached (`status` 0). `message` is the detail. */
export class Problem extends Error {
  /** @param {Record<string, any>} document */
  constructor(document) {
    super(document.detail ?? "");
    this.title = document.title ?? "Something went wrong";
    this.code = document.code ?? "unknown";
    this.status = document.status ?? 0;
    this.retryable = document.retryable ?? false;
    this.revision = document.revision;
  }
}

/**
 * @typedef {{ key: string, revision: number, create_revision: number, version: number, content_type: string,
 *   modified_at: string, expires_at?: string, author?: string, message?: string, value?: string, value_b64?: string }} Fields
 * @typedef {Fields & { bytes: Uint8Array, text: string | null }} Value
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

/** A request with the page's half of its session. Whoever makes it ends it. @param {string} url @param {RequestInit} init */
const send = (url, init) => fetch(url, { cache: "no-store", ...init, headers: { ...(half() && { "X-Kvstore-Page": half() }), ...init.headers } });

/** The problem in an answer; told to whoever asks for another token, or for other grants. @param {Record<string, any>} answer */
export function problemOf(answer) {
  const problem = new Problem(answer);
  if (problem.status === 401 || problem.status === 403) reach.dispatchEvent(new CustomEvent("refused", { detail: problem }));
  return problem;
}

/** @param {"yes" | "daemon" | "service"} detail */
const tellReach = (detail) => reach.dispatchEvent(new CustomEvent("reached", { detail }));

/**
 * @param {string} method @param {string} path @param {Record<string, any>} [query]
 * @param {{ headers?: Record<string, string>, body?: BodyInit }} [rest]
 */
async function ask(method, path, query = {}, { headers = {}, body } = {}) {
  const url = address(path, query);
  const signal = AbortSignal.timeout(PATIENCE_MS);
  let response;
  let answer;
  try {
    response = await send(url, { method, headers: { Accept: "application/json", ...headers }, body, signal });
    answer = await response.json();
  } catch (error) {
    tellReach("service");
    const detail = response
      ? "The answer was cut off, or does not come from kvstore."
      : "No answer came. It may have stopped, or the network between is gone.";
    throw new Problem({ title: "The service cannot be reached", detail, code: "unreachable", retryable: true });
  }
  tellReach(answer.code === "unavailable" || answer.code === "timed_out" ? "daemon" : "yes");
  noteClock(Date.parse(response.headers.get("Date") ?? ""));
  if (!response.ok) throw problemOf(answer);
  return answer;
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

/** A page of records without values. @param {{ prefix: string, start?: string, cursor?: string, limit: number }} query
 * @returns {Promise<{ items: Fields[], revision: number, cursor: string | null }>} */
export const list = (query) => ask("GET", "v1/kv", { ...query, keys: 1 });

/** The condition that `key` has `revision`, 0: that it does not exist. @param {number} revision
 * @returns {Record<string, string>} */
const condition = (revision) => (revision ? { "If-Match": `"${revision}"` } : { "If-None-Match": "*" });

/** Why a change is made, "" if nobody says. @param {string} message @returns {Record<string, string>} */
const reason = (message) => (message ? { "X-Kvstore-Message": encodeURIComponent(message) } : {});

/**
 * Store a value, once however often it is sent under the same `number`.
 * @param {string} key @param {Uint8Array} bytes
 * @param {{ contentType: string, ttl?: string, keepsTtl?: boolean, revision: number, number: string, message?: string }} how
 * @returns {Promise<Fields>}
 */
export const put = (key, bytes, { contentType, ttl, keepsTtl, revision, number, message = "" }) =>
  ask("PUT", "v1/kv", { key, ttl, keep_ttl: keepsTtl ? "1" : undefined }, {
    headers: { "Content-Type": contentType, "Idempotency-Key": number, ...condition(revision), ...reason(message) },
    body: /** @type {any} */ (bytes),
  });

/** @param {string} key @param {number} revision */
export const remove = (key, revision) => ask("DELETE", "v1/kv", { key }, { headers: condition(revision) });

/** One operation of a batch: those routes have the key in their path, where `..` cannot stand.
 * @param {Record<string, any>} op */
async function operate(op) {
  const body = JSON.stringify({ ops: [op] });
  const { results } = await ask("POST", "v1/batch", {}, { headers: { "Content-Type": "application/json" }, body });
  if (results[0].error) throw new Problem(results[0].error);
  return results[0];
}

/** @param {string} key @param {string} ttl @param {number} revision */
export const touch = (key, ttl, revision) => operate({ op: "touch", key, ttl, if_revision: revision });

/** @param {string} key @param {number} revision */
export const persist = (key, revision) => operate({ op: "persist", key, if_revision: revision });

/** @param {string} key @param {string | null} cursor @param {number} limit */
export const history = (key, cursor, limit) => ask("GET", "v1/history", { key, limit, cursor: cursor ?? undefined });

export const status = () => ask("GET", "v1/status");

/** A stream of changes; raises whatever keeps it from beginning. @param {[string, string][]} query @param {AbortSignal} signal */
export async function subscribe(query, signal) {
  const text = query.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&");
  const response = await send(`${address("v1/subscribe")}?${text}`, { headers: { Accept: "text/event-stream" }, signal });
  if (!response.ok) throw problemOf(await response.json());
  return response;
}

/** @typedef {{ name: string, grants: string[], expires_at?: string }} Who `name` is empty where access is off */

/** @returns {Promise<Who>} */
export const whoami = () => ask("GET", "v1/whoami");

/** Begin a session. The token goes to the service and is not kept. @param {string} token */
export async function logIn(token) {
  keepHalf("");
  const body = JSON.stringify({ token, page: HOME });
  const answer = await ask("POST", "v1/session", {}, { headers: { "Content-Type": "application/json" }, body });
  keepHalf(answer.half);
}

export async function logOut() {
  keepHalf("");
  await send(address("v1/session"), { method: "DELETE" }).catch(() => null); // without its half the cookie is nothing
}

/** A number that no other write uses. Not randomUUID: browsers have it on https and localhost only. */
export function writeNumber() {
  const random = crypto.getRandomValues(new Uint8Array(16));
  return `ui-${Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
