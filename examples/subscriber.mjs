// Follow a kvstore from Node: every change once, in order, none missing.
//
//     npm ci && node subscriber.mjs [--requests ENDPOINT] [--changes ENDPOINT] [--since CURSOR] [PREFIX]
//
// Prints a JSON object for each change, with the cursor from which to continue after it. This is
// section 5 of docs/protocol.md in its simplest form: a message that continues where the last one ended
// is used, and in every other case the log is asked, which always has all of it.

import { setTimeout } from "node:timers/promises";
import { parseArgs } from "node:util";
import { Request, Subscriber } from "zeromq";

const HEARTBEAT = "\0heartbeat";
const SILENCE_MS = 3_000;
const PING_MS = 1_000;
const DEAD_MS = 7_000;
const PAUSE_MS = 100;

const { values: options, positionals } = parseArgs({
  options: {
    requests: { type: "string", default: "tcp://127.0.0.1:5555" },
    changes: { type: "string", default: "tcp://127.0.0.1:5556" },
    since: { type: "string" },
  },
  allowPositionals: true,
});
const prefix = positionals[0] ?? "";

// Everything up to `revision` in the history `epoch` has been shown.
let revision, epoch;
const cursor = () => `${revision}-${epoch}`;
const print = (line) => console.log(JSON.stringify(line));

function connect() {
  const sub = new Subscriber({ linger: 0, receiveTimeout: SILENCE_MS });
  sub.subscribe(prefix, HEARTBEAT);
  sub.connect(options.changes);
  return sub;
}

// The next message, or null after a time without even a heartbeat.
async function receive(socket) {
  try {
    return await socket.receive();
  } catch (error) {
    if (error.code === "EAGAIN") return null;
    throw error;
  }
}

// The result of one op and its values, however long the daemon is away.
async function ask(op) {
  for (;;) {
    // A request is repeated only when its connection was lost, which the socket's events tell (section 6): a
    // daemon that is slow is not helped by more to do. A REQ socket whose reply is lost can never send again,
    // so each attempt has its own.
    const req = new Request({ linger: 0, heartbeatInterval: PING_MS, heartbeatTimeout: DEAD_MS });
    const lost = new Promise((resolve) => req.events.on("disconnect", () => resolve(null)));
    req.connect(options.requests);
    await req.send(JSON.stringify({ v: 1, ops: [op] }));
    const received = req.receive();
    received.catch(() => {}); // it fails when the socket is closed
    const frames = await Promise.race([received, lost]);
    req.close();
    if (frames === null) {
      await setTimeout(PAUSE_MS);
      continue;
    }
    const reply = JSON.parse(frames[0].toString());
    if (reply.error) fail(reply.error);
    return [reply.results[0], frames[1] ?? Buffer.alloc(0)];
  }
}

function fail({ code, message }) {
  console.error(`${code}: ${message}`);
  process.exit(1);
}

function show(op, key, value) {
  print({ cursor: cursor(), op, key, ...(op === "put" && { value: value.toString() }) });
}

// Show what the log holds after the position.
async function catchUp() {
  for (;;) {
    const [page, values] = await ask({ op: "events", since: cursor(), prefixes: [prefix] });
    if (page.error) return reset(page.error);
    let offset = 0;
    for (const event of page.events) {
      // all values stand one after another in one frame
      const value = values.subarray(offset, (offset += event.size ?? 0));
      offset += event.previous?.size ?? 0;
      // the cursor moves on only with the last event of a revision
      revision = event.index < event.count - 1 ? event.revision - 1 : event.revision;
      show(event.op, event.key, value);
    }
    revision = page.next;
    if (page.next === page.head) return;
  }
}

// The position has no continuation. A program that keeps state would now read it anew, as section 5.3
// says; this one only shows what happens from here on.
function reset(error) {
  if (error.code !== "cursor_expired") fail(error);
  revision = error.head;
  epoch = error.epoch;
  print({ reset: error.reason, cursor: cursor() });
}

async function hear([topic, header, value]) {
  const message = JSON.parse(header.toString());
  if (message.v !== 1) return;
  const isBeat = topic.toString() === HEARTBEAT;
  if (message.epoch !== epoch || (isBeat && message.revision < revision)) {
    // the store may have been restored, or rolled back
    await catchUp();
  } else if (message.revision <= revision) {
    return;
  } else if (!isBeat && message.prev <= revision && message.count === 1) {
    revision = message.revision;
    show(message.op, topic.toString(), value);
  } else {
    // something is missing, or this is a part of a batch: the log has all of it
    await catchUp();
  }
}

let sub = connect();
if (options.since === undefined) {
  const [status] = await ask({ op: "status" });
  ({ revision, epoch } = status);
} else {
  const [number, name] = options.since.split("-");
  [revision, epoch] = [Number(number), name];
}
print({ start: cursor() });
await catchUp();
for (;;) {
  const message = await receive(sub);
  if (message !== null) {
    await hear(message);
  } else {
    // not even a heartbeat: the connection is dead, whatever TCP thinks
    sub.close();
    sub = connect();
    await catchUp();
  }
}
