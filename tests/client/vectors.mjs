// A client in another language, written from docs/protocol.md alone, that runs docs/vectors.
//
// node vectors.mjs FOLDER ENDPOINT: prints a line for each vector that it passed, and fails at the first other.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Request } from "zeromq";

const [folder, endpoint] = process.argv.slice(2);

// Integers that a JavaScript number would round are kept as text, with a mark, until they are written again.
const MARK = "\u0001";
const parse = (text) => JSON.parse(text.replace(/([:[,]\s*)(-?\d{16,})(?=\s*[,\]}])/g, `$1"\\u0001$2"`));
const write = (json) => JSON.stringify(json).replace(/"\\u0001(-?\d+)"/g, "$1");
const isAny = (value) => value === "…";

const read = (name) => parse(readFileSync(join(folder, name), "utf8"));
const frameOf = ({ json, text, hex }) =>
  json !== undefined ? Buffer.from(write(json)) : text !== undefined ? Buffer.from(text) : Buffer.from(hex, "hex");

function same(shown, real) {
  if (isAny(shown)) return true;
  if (Array.isArray(shown)) return Array.isArray(real) && shown.length === real.length && shown.every((s, i) => same(s, real[i]));
  if (shown === null || typeof shown !== "object") return shown === real;
  const names = Object.keys(shown);
  return real !== null && typeof real === "object" && names.length === Object.keys(real).length
    && names.every((name) => name in real && same(shown[name], real[name]));
}

// ── section 3.1: which bytes of the second frame belong to what ─────────────────────────────────────

function* holders(results) {
  for (const result of results ?? []) {
    if ("size" in result) yield result;
    for (const item of result.items ?? []) if ("size" in item) yield item;
    for (const event of result.events ?? []) {
      if ("size" in event) yield event;
      if (event.previous && "size" in event.previous) yield event.previous;
    }
  }
}

function valuesOf([header, blob]) {
  let offset = 0;
  const values = [...holders(parse(header.toString()).results)].map(({ size }) => blob.subarray(offset, (offset += size)));
  assert.equal(offset, blob?.length ?? 0, "the sizes add up");
  return values;
}

// ── section 5.2: a subscriber that drops what PUB brings while it reads the log ─────────────────────

class Subscriber {
  constructor(start, prefixes) {
    const [revision, epoch] = start.split("-");
    Object.assign(this, { position: Number(revision), epoch, prefixes, part: [], state: "read" });
  }

  published(frames) {
    const header = understood(frames);
    if (!header || this.state !== "wait") return [];
    if (header.epoch !== this.epoch) return this.readLog();
    if (frames[0].toString() === "\0heartbeat") return header.revision !== this.position ? this.readLog() : [];
    if (header.revision <= this.position) return [];
    this.part.push({ key: frames[0].toString(), ...header });
    const isWhole = this.part.length === header.count;
    const isOther = this.part.some((event, index) => event.revision !== header.revision || event.index !== index);
    const mayWait = !this.prefixes.length && header.index < header.count - 1;
    if (header.prev > this.position || isOther || !(isWhole || mayWait)) return this.readLog();
    if (!isWhole) return [];
    const whole = this.part;
    this.part = [];
    this.position = header.revision;
    return whole;
  }

  reply([header, _values]) {
    const [result] = parse(header.toString()).results;
    this.part = [];
    if (result.error) {
      this.state = "reset";
      return [];
    }
    this.state = result.next < result.head ? "read" : "wait";
    this.position = result.next;
    return result.events;
  }

  readLog() {
    this.state = "read";
    this.part = [];
    return [];
  }
}

function understood(frames) {
  if (frames.length < 2 || (frames[0][0] === 0 && frames[0].toString() !== "\0heartbeat")) return null;
  try {
    const header = parse(frames[1].toString());
    return header.v === 1 ? header : null;
  } catch {
    return null;
  }
}

for (const { name, start, prefixes, steps } of read("subscriptions.json").scenarios) {
  const subscriber = new Subscriber(start, prefixes);
  for (const [number, step] of steps.entries()) {
    const used = step.published
      ? subscriber.published(step.published.map(frameOf))
      : subscriber.reply(step.reply.map(frameOf));
    const delivers = used.map(({ revision, index, op, key }) => [revision, index, op, key]);
    assert.deepEqual(
      { delivers, then: subscriber.state, position: subscriber.position },
      { delivers: step.delivers, then: step.then, position: step.position },
      `${name}, step ${number}`,
    );
  }
  console.log(`subscription: ${name}`);
}

// ── the digest of a set of records ──────────────────────────────────────────────────────────────────

function hashOf({ key, revision, value }) {
  const name = Buffer.from(key);
  const head = Buffer.alloc(10);
  head.writeBigUInt64BE(BigInt(String(revision).replace(MARK, "")));
  head.writeUInt16BE(name.length, 8);
  return createHash("sha256").update(head).update(name).update(frameOf(value)).digest("hex");
}

for (const { name, records, digest } of read("digests.json").sets) {
  const hashes = records.map(hashOf);
  assert.deepEqual(hashes, records.map(({ hash }) => hash), name);
  const sum = hashes.reduce((total, hash) => BigInt.asUintN(256, total + BigInt(`0x${hash}`)), 0n);
  assert.equal(sum.toString(16).padStart(64, "0"), digest, name);
  console.log(`digest: ${name}`);
}

const requests = new Request({ linger: 0, receiveTimeout: 20000 });
requests.connect(endpoint);
for (const { name, exchanges } of read("requests.json").conversations) {
  for (const { request, reply, values } of exchanges) {
    await requests.send(request.map(frameOf));
    const frames = await requests.receive();
    assert.equal(frames.length, reply.length, name);
    assert.ok(same(reply[0].json, parse(frames[0].toString())), `${name}: ${frames[0]}`);
    assert.deepEqual(frames.slice(1).map((f) => f.toString("hex")), reply.slice(1).map((f) => frameOf(f).toString("hex")), name);
    assert.deepEqual(valuesOf(frames).map((f) => f.toString("hex")), values.map((f) => frameOf(f).toString("hex")), name);
  }
  console.log(`requests: ${name}`);
}
requests.close();
