// A client for Node through CURVE, from docs/protocol.md section 9.1.
//
// node native_client.mjs REQUESTS CHANGES SERVER_KEY PUBLIC_KEY SECRET_KEY: puts app/node, prints the reply, and the
// change as it was published; or "refused STATUS" where the daemon does not know the key.

import { Request, Subscriber, capability } from "zeromq";

const [requests, changes, curveServerKey, curvePublicKey, curveSecretKey] = process.argv.slice(2);
if (!capability.curve) throw new Error("this zeromq has no CURVE");
const keys = { curveServerKey, curvePublicKey, curveSecretKey, linger: 0 };

const req = new Request(keys);
req.events.on("handshake:error:auth", ({ error }) => {
  console.log(`refused ${error.status}`);
  process.exit(0);
});
const sub = new Subscriber(keys);
sub.subscribe("app/", "\0heartbeat");
sub.connect(changes);
req.connect(requests);

const status = { v: 1, ops: [{ op: "status" }] };
await req.send(JSON.stringify(status));
await req.receive();
await sub.receive(); // a heartbeat: the subscription has arrived
await req.send([JSON.stringify({ v: 1, ops: [{ op: "put", key: "app/node", size: 2 }] }), "hi"]);
const [header] = await req.receive();
console.log(header.toString());
for (;;) {
  const [topic, , value] = await sub.receive();
  if (topic[0] === 0) continue;
  console.log(`${topic} ${value}`);
  break;
}
process.exit(0);
