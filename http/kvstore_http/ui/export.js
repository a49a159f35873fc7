// @ts-check
// What is below a prefix as a file: lines as `kvstore import` takes them, or one JSON array.

import { records } from "./api.js";
import { button, dialog, el, problemBox } from "./dom.js";
import { saveFile } from "./download.js";
import { matcher } from "./find.js";
import { counted, grouped } from "./format.js";
import { fileName, shownKey } from "./keys.js";

const PIECE_CHARACTERS = 4 * 1024 * 1024; // what is kept as text until the browser takes it as a part of the file

/** The file, piece by piece. `advance` is told how many records it has. @param {AsyncIterable<string>} lines @param {boolean} isJson
 * @param {(count: number) => void} advance */
async function fileOf(lines, isJson, advance) {
  /** @type {Blob[]} */
  const pieces = [];
  let text = isJson ? "[\n" : "";
  let count = 0;
  for await (const line of lines) {
    text += isJson ? (count ? ",\n" : "") + line : `${line}\n`;
    count++;
    if (text.length < PIECE_CHARACTERS) continue;
    pieces.push(new Blob([text]));
    text = "";
    advance(count);
  }
  advance(count);
  return new Blob([...pieces, isJson ? `${text}\n]\n` : text], { type: "application/octet-stream" });
}

/** @param {string} prefix @param {string} find @param {AbortSignal} signal */
async function* linesOf(prefix, find, signal) {
  const pattern = find && matcher(find);
  for await (const line of records(prefix, signal)) {
    if (!pattern || pattern.test(JSON.parse(line).key)) yield line;
  }
}

/** Ask for the form, and make the file. @param {{ prefix: string, find: string }} place */
export function exportDialog({ prefix, find }) {
  const stopping = new AbortController();
  const state = el("p", { role: "status", class: "quiet" });
  const trouble = el("div");
  const save = async (/** @type {"ndjson" | "json"} */ form) => {
    for (const choice of choices) choice.disabled = true;
    trouble.replaceChildren();
    try {
      const lines = linesOf(prefix, find, stopping.signal);
      const file = await fileOf(lines, form === "json", (count) => (state.textContent = `${counted(count, "record")} …`));
      saveFile(`${prefix ? fileName(prefix) : "kvstore"}.${form}`, file);
      state.textContent = `Done: ${grouped(file.size)} bytes.`;
    } catch (problem) {
      if (!stopping.signal.aborted) trouble.replaceChildren(problemBox(/** @type {any} */ (problem)));
    }
    for (const choice of choices) choice.disabled = false;
  };
  const choices = [button("JSON", () => save("json")), button("NDJSON", () => save("ndjson"), { class: "primary" })];
  const what = [prefix ? el("code", {}, shownKey(prefix)) : "everything", find && " in whose key is ", find && el("code", {}, shownKey(find))];
  const root = dialog(
    "Export",
    el("p", {}, "All records, with their values, below ", ...what, ". NDJSON has a record a line, as ", el("code", {}, "kvstore import"), " takes it."),
    state,
    trouble,
    el("div", { class: "actions" }, button("Close", () => root.close()), ...choices),
  );
  root.addEventListener("close", () => stopping.abort());
}
