export { connect, type Kv, type Request } from "./client.js";
export { KvError } from "./errors.js";
export type { Live, Snapshot } from "./live.js";
export type * from "./types.js";
