// @ts-check
// Server-Sent Events out of a body that `fetch` reads: an EventSource cannot send a header.

/**
 * One event, field by field; `retry` comes alone. The service ends lines with a line feed and writes each
 * field once. @typedef {{ event?: string, id?: string, data?: string, retry?: string }} ServerEvent
 */

/**
 * The events of a body, in order, each as soon as all of it is there. One that was cut off is left out, and a
 * connection that breaks ends them. @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<ServerEvent, void>}
 */
export async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => ({ value: undefined, done: true }));
    if (done) return;
    const blocks = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = blocks.pop() ?? "";
    for (const block of blocks) yield fieldsOf(block);
  }
}

/** @param {string} block @returns {ServerEvent} */
function fieldsOf(block) {
  /** @type {Record<string, string>} */
  const fields = {};
  for (const line of block.split("\n")) {
    const [, name, text] = /^([a-z]+): ?(.*)$/s.exec(line) ?? []; // what begins with a colon is a comment
    if (name) fields[name] = text;
  }
  return fields;
}
