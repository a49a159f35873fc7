// Run by tests/js/test_js_node.py, which starts the service: `KVSTORE_JS=module KVSTORE_URL=address node FILE`.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, test } from "node:test";

const { KvError, connect } = await import(process.env.KVSTORE_JS);
const url = process.env.KVSTORE_URL;
const kv = connect({ url });

// Node 18, which Debian 12 has, may forget a signal of AbortSignal.any, and a stream that it was to end keeps the process.
if (parseInt(process.versions.node) < 20) after(() => setTimeout(() => process.exit(), 1000).unref());

/** A prefix of the test's own. */
const fresh = () => `${randomUUID()}/`;

/** The first `count` items of a watch, but for syncs. */
async function take(options, count) {
  const items = [];
  if (!count) return items;
  for await (const item of kv.watch(options)) {
    if (item.op !== "sync" && items.push(item) === count) break;
  }
  return items;
}

const until = async (isSo) => {
  while (!(await isSo())) await new Promise((done) => setTimeout(done, 5));
};

const refused = (code, more = {}) => (error) => {
  assert.ok(error instanceof KvError);
  for (const [name, value] of Object.entries({ code, ...more })) assert.equal(error[name], value, `${name} of ${error}`);
  return true;
};

// ── requests ────────────────────────────────────────────────────────────────────────────────────

for (const [name, value, read, type] of [
  ["text", "grün \u2028 🎉", "grün \u2028 🎉", "text/plain; charset=utf-8"],
  ["no text", "", "", "text/plain; charset=utf-8"],
  ["bytes", new Uint8Array([0, 255, 128]), new Uint8Array([0, 255, 128]), "application/octet-stream"],
  ["a buffer", new Uint8Array([200, 0]).buffer, new Uint8Array([200, 0]), "application/octet-stream"],
  ["an object", { a: [1, null] }, '{"a":[1,null]}', "application/json"],
  ["null", null, "null", "application/json"],
  ["a number", 1.5, "1.5", "application/json"],
]) {
  test(`a value comes back: ${name}`, async () => {
    const key = `${fresh()}a/../+ %2F?&#`;
    const { revision, status } = await kv.put(key, value);
    assert.equal(status, 201);
    const record = await kv.get(key);
    assert.deepEqual([record.key, record.revision, record.value, record.content_type], [key, revision, read, type]);
  });
}

test("a key that is not there is undefined", async () => {
  assert.equal(await kv.get(fresh()), undefined);
});

test("a put takes what the service takes", async () => {
  const key = fresh();
  await kv.put(key, { n: 1 }, { contentType: "application/vnd.n+json", ttl: "1h", message: "für später 50%" });
  const record = await kv.get(key);
  assert.deepEqual([record.content_type, record.message], ["application/vnd.n+json", "für später 50%"]);
  const { expires_at: kept } = await kv.put(key, "x", { keepTtl: true });
  assert.equal(kept, record.expires_at);
  assert.equal((await kv.put(key, "x", { expiresAt: "2099-01-01T00:00:00Z" })).expires_at, "2099-01-01T00:00:00.000Z");
  assert.equal((await kv.put(key, "x")).expires_at, undefined);
  assert.equal((await kv.get(key, { revision: record.revision })).value, '{"n":1}');
});

test("a write whose condition does not hold is refused with the present revision", async () => {
  const key = fresh();
  const { revision } = await kv.put(key, "one", { ifRevision: 0 });
  await assert.rejects(kv.put(key, "two", { ifRevision: 0 }), refused("condition_failed", { status: 412, revision, retryable: false }));
  await assert.rejects(kv.put(key, "two", { ifValue: "two" }), refused("condition_failed", { revision }));
  await assert.rejects(kv.delete(key, { ifRevision: revision - 1 }), refused("condition_failed", { revision }));
  await kv.put(key, new Uint8Array([0, 255]), { ifValue: "one" });
  await kv.delete(key, { ifValue: new Uint8Array([0, 255]) });
  await assert.rejects(kv.delete(key), refused("not_found", { status: 404 }));
});

test("a write depends on other keys", async () => {
  const prefix = fresh();
  const lock = `${prefix}lock@home`;
  const { revision } = await kv.put(lock, "me");
  await kv.put(`${prefix}state`, "1", { guard: { [lock]: revision, [`${prefix}none`]: 0 } });
  const { revision: next } = await kv.put(lock, "somebody else");
  const guard = { [lock]: revision };
  for (const write of [() => kv.put(`${prefix}state`, "2", { guard }), () => kv.delete(`${prefix}state`, { guard })]) {
    await assert.rejects(write, refused("condition_failed", { key: lock, revision: next }));
  }
  assert.equal((await kv.get(`${prefix}state`)).value, "1");
});

test("keys number themselves", async () => {
  const prefix = fresh();
  const first = await kv.put(prefix, "a", { sequence: true });
  const second = await kv.put(prefix, "b", { sequence: true });
  assert.equal(first.key, prefix + String(first.revision).padStart(20, "0"));
  assert.ok(first.key < second.key);
});

test("numbers are added to with all their digits", async () => {
  const key = fresh();
  await kv.put(key, "9007199254740992");
  assert.equal((await kv.incr(key)).text, "9007199254740993");
  assert.equal((await kv.incr(key, { by: -3 })).text, "9007199254740990");
});

test("a batch is atomic, or each operation has its result", async () => {
  const prefix = fresh();
  const one = await kv.batch([
    { op: "put", key: `${prefix}a`, value: new Uint8Array([255]) },
    { op: "get", key: `${prefix}a` },
    { op: "get", key: `${prefix}none` },
  ]);
  assert.deepEqual(one[1].value, new Uint8Array([255]));
  assert.ok(refused("not_found")(one[2].error));
  const ops = [
    { op: "put", key: `${prefix}b`, value: { x: 1 } },
    { op: "check", key: `${prefix}a`, exists: false },
  ];
  await assert.rejects(kv.batch(ops, { atomic: true }), refused("condition_failed", { op: 1, revision: one[0].revision }));
  assert.equal(await kv.get(`${prefix}b`), undefined);
});

test("lists come in pages and by level", async () => {
  const prefix = fresh();
  await kv.batch(["a", "b/1", "b/2", "c"].map((name) => ({ op: "put", key: prefix + name, value: name })));
  const first = await kv.list({ prefix, limit: 3 });
  const second = await kv.list({ prefix, cursor: first.cursor });
  assert.deepEqual([...first.items, ...second.items].map(({ value }) => value), ["a", "b/1", "b/2", "c"]);
  assert.equal(second.cursor, null);
  const level = await kv.list({ prefix, delimiter: "/", reverse: true, counts: true, keys: true });
  assert.deepEqual([level.items.map(({ key }) => key), level.prefixes, level.counts], [[`${prefix}c`, `${prefix}a`], [`${prefix}b/`], [2]]);
  assert.equal("value" in level.items[0], false);
});

test("what changed comes in pages", async () => {
  const prefix = fresh();
  const { revision } = await kv.put(`${prefix}a`, "1");
  await kv.put(`${prefix}a`, new Uint8Array([254]));
  await kv.delete(`${prefix}a`);
  const first = await kv.changes({ prefix, since: revision, limit: 1, prev: true });
  assert.deepEqual([first.events[0].value, first.events[0].previous.value, first.more], [new Uint8Array([254]), "1", true]);
  const second = await kv.changes({ prefixes: [prefix], since: first.cursor, ops: ["delete", "expire"] });
  assert.deepEqual(second.events.map(({ op }) => op), ["delete"]);
  const waiting = kv.changes({ keys: [`${prefix}b`], since: second.cursor, wait: "60s" });
  await kv.put(`${prefix}b`, "x");
  assert.deepEqual((await waiting).events.map(({ value }) => value), ["x"]);
});

test("a get waits for what is to come", async () => {
  const key = fresh();
  const waiting = kv.get(key, { wait: "60s", since: 0, until: '/state == "done"' });
  await kv.put(key, { state: "begun" });
  await kv.put(key, { state: "done" });
  assert.equal((await waiting).value, '{"state":"done"}');
});

test("a request is given up by its signal, with its reason", async () => {
  const stop = new AbortController();
  const waiting = kv.get(fresh(), { wait: "600s", since: 0, signal: stop.signal });
  stop.abort(new Error("enough"));
  await assert.rejects(waiting, /enough/);
  await assert.rejects(kv.put(fresh(), "x", { signal: stop.signal }), /enough/);
});

test("a request that nobody answers is given up after its time, however often it may be sent", async () => {
  const asked = [];
  const hole = (address, { signal }) =>
    new Promise((_, fail) => {
      asked.push(address);
      const open = setInterval(() => {}, 1000); // a connection keeps the process, which the timer of a signal does not
      signal.addEventListener("abort", () => {
        clearInterval(open);
        fail(signal.reason);
      });
    });
  const lost = connect({ url: "http://kv.example/", timeout: 50, fetch: hole });
  const late = refused("unreachable", { message: "No answer came from http://kv.example/ within 0.05 s: it or the network may be gone." });
  await assert.rejects(lost.put("a", "x"), late);
  await assert.rejects(lost.get("a"), late);
  assert.equal(asked.length, 2);
});

test("a page of another origin is told of --cors-origins where no answer comes", async (t) => {
  t.after(() => delete globalThis.origin);
  globalThis.origin = "http://localhost:8000";
  const silent = (address) => connect({ url: address, retries: 0, fetch: () => Promise.reject(new TypeError("Failed to fetch")) }).get("a");
  await assert.rejects(silent("http://127.0.0.1:5000"), /or pages of http:\/\/localhost:8000 not be let in \(--cors-origins\)/);
  await assert.rejects(silent("http://localhost:8000/kv"), ({ message }) => !message.includes("--cors-origins"));
});

test("a path may begin with a slash, and what is no method and path is refused", async () => {
  const { epoch } = await kv.request("GET", "v1/status");
  assert.equal((await kv.request("GET", "/v1/status")).epoch, epoch);
  await assert.rejects(kv.request("/v1/status"), { name: "TypeError", message: /a method and a path/ });
  await assert.rejects(kv.request("v1/status", "GET"), TypeError);
});

test("the history of a key comes in pages, newest first", async () => {
  const key = fresh();
  const { revision } = await kv.put(key, "1");
  await kv.put(key, new Uint8Array([254]));
  const first = await kv.history(key, { limit: 1 });
  assert.deepEqual(first.events.map(({ op, value }) => [op, value]), [["put", new Uint8Array([254])]]);
  const second = await kv.history(key, { cursor: first.cursor });
  assert.deepEqual([second.events.map((event) => event.revision), second.cursor, second.truncated], [[revision], null, false]);
  assert.deepEqual((await kv.history(key, { before: revision + 1, values: false })).events.map(({ value }) => value), [undefined]);
  await assert.rejects(kv.history(fresh()), refused("not_found"));
});

test("a write whose answer is lost is sent again and done once", async () => {
  const key = fresh();
  let asked = 0;
  const forgetful = connect({
    url,
    fetch: async (...request) => {
      const response = await fetch(...request);
      if (++asked < 3) throw new TypeError("the answer is lost");
      return response;
    },
  });
  assert.equal((await forgetful.incr(key)).text, "1");
  assert.equal(asked, 3);
  assert.equal((await kv.get(key)).value, "1");
});

test("where nobody answers it says so", async () => {
  const nobody = connect({ url: "http://127.0.0.1:9", retries: 1 });
  await assert.rejects(nobody.get("a"), refused("unreachable", { status: 0, retryable: true, title: "The service cannot be reached" }));
  const other = connect({ url, retries: 0, fetch: async () => new Response("<html>", { status: 502 }) });
  await assert.rejects(other.get("a"), refused("unknown", { status: 502, retryable: true }));
});

test("credentials are sent with each request, and a function is asked for them", async () => {
  const seen = [];
  const told = connect({
    url,
    token: async () => "kv_one",
    headers: () => ({ "X-Kvstore-Page": "half" }),
    fetch: (address, init) => {
      seen.push([init.headers.Authorization, init.headers["X-Kvstore-Page"], String(address).includes("kv_one")]);
      return fetch(address, { ...init, headers: {} });
    },
  });
  await told.request("GET", "v1/status");
  assert.deepEqual(seen, [["Bearer kv_one", "half", false]]);
});

// ── following ───────────────────────────────────────────────────────────────────────────────────

test("a watch begins with what is there and goes on with each change", async () => {
  const prefix = fresh();
  await kv.put(`${prefix}a`, "1");
  const seen = [];
  for await (const { op, key, value, snapshot, cursor } of kv.watch({ prefix, snapshot: true })) {
    seen.push([op, key?.slice(prefix.length), value, Boolean(snapshot), Boolean(cursor)]);
    const ops = [{ op: "put", key: `${prefix}b`, value: new Uint8Array([255]) }, { op: "delete", key: `${prefix}a` }];
    if (op === "sync") await kv.batch(ops, { atomic: true });
    if (op === "delete") break;
  }
  assert.deepEqual(seen, [
    ["put", "a", "1", true, false],
    ["sync", undefined, undefined, false, true],
    ["put", "b", new Uint8Array([255]), false, false], // a revision is resumed as a whole
    ["delete", "a", undefined, false, true],
  ]);
});

test("a watch takes filters, and goes on after any cursor", async () => {
  const prefix = fresh();
  const { revision } = await kv.put(`${prefix}a`, "1");
  await kv.put(`${prefix}b`, "2");
  await kv.put(`${prefix}a`, "3");
  await kv.delete(`${prefix}b`);
  const since = revision - 1;
  const events = await take({ prefix, since }, 4);
  assert.deepEqual(events.map(({ op, value }) => [op, value]), [["put", "1"], ["put", "2"], ["put", "3"], ["delete", undefined]]);
  for (const [at, { cursor }] of events.entries()) assert.deepEqual(await take({ prefix, since: cursor }, 3 - at), events.slice(at + 1));
  assert.deepEqual(await take({ key: `${prefix}b`, since }, 2), [events[1], events[3]]);
  assert.deepEqual(await take({ prefixes: [prefix], since, ops: ["delete"] }, 1), [events[3]]);
  const [{ value, previous }] = await take({ keys: [`${prefix}a`], since: events[1].cursor, values: false, prev: true }, 1);
  assert.deepEqual([value, previous.revision], [undefined, revision]);
});

test("the latest of each key comes with how many were skipped", async () => {
  const prefix = fresh();
  const { revision } = await kv.put(`${prefix}a`, "1");
  await kv.put(`${prefix}a`, "2");
  await kv.put(`${prefix}b`, "3");
  await kv.put(`${prefix}a`, "4");
  for (const manner of [{ deliver: "latest" }, { sample: "10ms" }]) {
    const events = await take({ prefix, since: revision - 1, ...manner }, 2);
    assert.deepEqual(events.map(({ value, skipped }) => [value, skipped]), [["3", 0], ["4", 2]]);
  }
});

test("more is asked for than an address holds", async () => {
  const prefix = fresh();
  const keys = Array.from({ length: 500 }, (_, number) => prefix + number);
  const { revision } = await kv.put(keys[499], "last");
  assert.deepEqual((await take({ keys, since: revision - 1 }, 1)).map(({ value }) => value), ["last"]);
});

test("a watch that cannot be had says why, and one that is given up just ends", async () => {
  await assert.rejects(take({ ops: ["nonsense"] }, 1), refused("bad_request", { status: 400 }));
  const stop = new AbortController();
  const seen = [];
  for await (const { op } of kv.watch({ prefix: fresh(), signal: stop.signal })) {
    seen.push(op);
    stop.abort();
  }
  for await (const { op } of kv.watch({ signal: stop.signal })) seen.push(op);
  assert.deepEqual(seen, ["sync"]);
});

test("events are the same however their bytes arrive, and none that was cut off is told", async () => {
  const lines = ["grün", "\u2028\u0085", "日本語 🎉", '"\\n'].map((value, index) =>
    JSON.stringify({ event: "put", op: "put", key: "k", revision: index + 1, index: 0, count: 1, value, cursor: `${index + 1}-e` }),
  );
  const bytes = new TextEncoder().encode(`${lines.join("\n")}\n{"event":"put","op":"put","revi`);
  for (const size of [1, 2, 3, 7, 50, 10_000]) {
    let asked = 0;
    const cut = connect({
      url,
      fetch: async (address) => {
        if (asked++) {
          assert.equal(new URL(address).searchParams.get("since"), "4-e");
          return new Response(JSON.stringify({ code: "not_allowed", status: 403 }), { status: 403 });
        }
        const chunks = Array.from({ length: Math.ceil(bytes.length / size) }, (_, at) => bytes.subarray(at * size, at * size + size));
        return new Response(
          new ReadableStream({
            pull(stream) {
              if (chunks.length) stream.enqueue(chunks.shift());
              else stream.close();
            },
          }),
        );
      },
    });
    const seen = [];
    await assert.rejects(async () => {
      for await (const { value } of cut.watch()) seen.push(value);
    }, refused("not_allowed"));
    assert.deepEqual(seen, ["grün", "\u2028\u0085", "日本語 🎉", '"\\n']);
  }
});

test("a snapshot that is cut off is begun again, and what it told is taken back", async () => {
  const record = (key) => ({ event: "put", op: "put", key, revision: 1, snapshot: true });
  const answers = [[record("gone"), record("kept")], [record("kept"), { event: "sync", revision: 2, cursor: "2-e" }]];
  const cut = connect({ url, fetch: async () => new Response(answers.shift().map((each) => `${JSON.stringify(each)}\n`).join("")) });
  const seen = [];
  for await (const { op, key, reason } of cut.watch({ snapshot: true })) {
    seen.push([op, key ?? reason]);
    if (op === "sync") break;
  }
  assert.deepEqual(seen, [["put", "gone"], ["put", "kept"], ["reset", "interrupted"], ["put", "kept"], ["sync", undefined]]);
});

test("one who does not iterate keeps little, and misses nothing", async (t) => {
  const prefix = fresh();
  let read = 0;
  const counted = connect({
    url,
    fetch: async (...request) => {
      const response = await fetch(...request);
      const counter = new TransformStream({
        transform: (chunk, stream) => {
          read += chunk.length;
          stream.enqueue(chunk);
        },
      });
      return new Response(response.body.pipeThrough(counter), response);
    },
  });
  const watch = counted.watch({ prefix });
  t.after(() => watch.return());
  assert.equal((await watch.next()).value.op, "sync");
  const revisions = [];
  for (let number = 0; number < 24; number++) revisions.push((await kv.put(prefix + number, "x".repeat(1_000_000))).revision);
  assert.ok(read < 14_000_000, `${read} bytes were read of 24 MB that nobody took`);
  const seen = [];
  for await (const { op, revision } of watch) {
    assert.ok(["put", "sync"].includes(op), op);
    if (op === "put") seen.push(revision);
    if (seen.length === revisions.length) break;
  }
  assert.deepEqual(seen, revisions);
});

test("a live view has the same snapshot until something changes, and then another", async () => {
  const prefix = fresh();
  await kv.put(`${prefix}a`, "1");
  const live = kv.live({ prefix });
  assert.deepEqual([live.getSnapshot().revision, live.getSnapshot().entries.size], [0, 0]);
  await live.ready;
  const before = live.getSnapshot();
  assert.equal(live.getSnapshot(), before);
  assert.deepEqual([...before.entries].map(([key, { value }]) => [key, value]), [[`${prefix}a`, "1"]]);
  let told = 0;
  const end = live.subscribe(() => told++);
  await kv.put(`${fresh()}elsewhere`, "x");
  const { revision } = await kv.put(`${prefix}b`, "2");
  await until(() => told);
  const after = live.getSnapshot();
  assert.notEqual(after, before);
  assert.deepEqual([before.entries.size, after.entries.size, after.revision, live.revision], [1, 2, revision, revision]);
  await kv.delete(`${prefix}a`);
  await until(() => !live.getSnapshot().entries.has(`${prefix}a`));
  end();
  const last = told;
  const quiet = live.subscribe(() => quiet() && told === last);
  await kv.put(`${prefix}b`, "3");
  await until(() => live.getSnapshot().entries.get(`${prefix}b`).value === "3");
  assert.equal(told, last);
  live.close();
});

test("a live view says whether it is connected, and is told of that", async () => {
  const prefix = fresh();
  let isCut = false;
  let cut;
  const cuttable = connect({
    url,
    fetch: (address, init) => {
      cut = new AbortController();
      return isCut ? Promise.reject(new TypeError("cut")) : fetch(address, { ...init, signal: AbortSignal.any([init.signal, cut.signal]) });
    },
  });
  const live = cuttable.live({ prefix });
  const states = [live.connected];
  live.subscribe(() => states.at(-1) === live.connected || states.push(live.connected));
  await live.ready;
  await until(() => states.length === 2);
  isCut = true;
  cut.abort();
  await until(() => states.length === 3);
  assert.equal(live.error, undefined);
  isCut = false;
  await until(() => states.length === 4);
  live.close();
  await until(() => states.length === 5);
  assert.deepEqual(states, [false, true, false, true, false]);
});

test("an option that there is not is refused by its name", async () => {
  assert.throws(() => kv.live({ prefx: "a/" }), { name: "TypeError", message: /prefx; it takes: prefix, / });
  assert.throws(() => kv.live({ since: 1 }), TypeError);
  assert.throws(() => kv.live("a/"), { name: "TypeError", message: /live\(\{ prefix: "a\/" \}\), not "a\/"/ });
  await assert.rejects(take({ ifRevision: 1 }, 1), TypeError);
});

test("a live view that cannot be had says why", async () => {
  const refusing = connect({ url, fetch: async () => new Response(JSON.stringify({ code: "not_allowed", status: 403 }), { status: 403 }) });
  const live = refusing.live({ prefix: "a/" });
  const told = new Promise((done) => live.subscribe(done));
  await assert.rejects(live.ready, refused("not_allowed"));
  await told;
  assert.equal(live.error.code, "not_allowed");
});
