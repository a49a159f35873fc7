// @ts-check
// Renaming, duplicating and deleting, of a key or of all keys below a prefix. A record moves in an atomic batch: it is put on
// condition that there is none of its new name, and taken away on condition that it did not change.

import { countBelow, list, move, records, removeBelow, status } from "./api.js";
import { announce, button, dialog, el, problemBox, VERBATIM } from "./dom.js";
import { counted, grouped } from "./format.js";
import { faultOf, shownKey } from "./keys.js";

const MOST_AT_ONCE = 250; // records of one batch, which keeps a request small

/** @typedef {import("./api.js").Fields} Fields */

/** Records of a prefix, or of one key alone, in parts that fit into one batch. @param {string} source @param {boolean} isFolder
 * @param {{ atomic_ops: number, atomic_bytes: number }} limits @param {string} after a key, behind which it begins
 * @param {AbortSignal} signal */
async function* parts(source, isFolder, limits, after, signal) {
  const most = Math.min(MOST_AT_ONCE, Math.floor(limits.atomic_ops / 2));
  /** @type {Fields[]} */
  let part = [];
  let bytes = 0;
  for await (const line of records(source, signal, after)) {
    const record = JSON.parse(line);
    if (record.key === after) continue;
    if (!isFolder && record.key !== source) break; // the key itself is the first that begins with it
    const size = record.value_b64 ? record.value_b64.length * 0.75 : new TextEncoder().encode(record.value).length;
    if (part.length && (part.length === most || bytes + size > limits.atomic_bytes)) {
      yield part;
      [part, bytes] = [[], 0];
    }
    part.push(record);
    bytes += size;
  }
  if (part.length) yield part;
}

/** What is wrong with moving `source` to `target`; "" if nothing is. @param {string} source @param {string} target @param {boolean} isFolder */
export function moveFault(source, target, isFolder) {
  if (target === source) return "This is its present name.";
  if (isFolder && !target.endsWith("/")) return "The name of a folder ends with a slash.";
  if (isFolder && target.startsWith(source)) return "A folder cannot be put inside itself.";
  return faultOf(target);
}

/** Ask for a new name, and give it to a key or a folder; or to a copy. @param {{ source: string, isFolder: boolean, isCopy: boolean,
 *   onDone: (target: string) => void }} how */
export async function moveDialog({ source, isFolder, isCopy, onDone }) {
  const stopping = new AbortController();
  const name = el("input", { id: "move-name", value: isCopy ? (isFolder ? `${source.slice(0, -1)}-copy/` : `${source}-copy`) : source, ...VERBATIM, oninput: () => check() });
  const hint = el("p", { class: "quiet", id: "move-hint", role: "status" });
  const trouble = el("div");
  let [last, done, about] = ["", 0, "Counting …"];
  let [limits, count] = [{ atomic_ops: 0, atomic_bytes: 0 }, isFolder ? null : 1];
  const go = button(isCopy ? "Duplicate" : "Rename", () => work(), { class: "primary" });
  const what = isFolder ? "folder" : "key";
  const root = dialog(
    `${isCopy ? "Duplicate" : "Rename"} ${isFolder ? "this folder" : "this key"}`,
    el("div", { class: "field" }, el("label", { for: "move-name" }, "New name"), name),
    el("p", {}, "Values, media types and times to live are kept; the history begins again under the new name. Nothing is overwritten."),
    hint,
    trouble,
    el("div", { class: "actions" }, button("Cancel", () => root.close()), go),
  );
  root.addEventListener("close", () => stopping.abort());
  check();
  try {
    [{ limits }, count] = await Promise.all([status(), isFolder ? countBelow(source) : 1]);
  } catch (problem) {
    trouble.replaceChildren(problemBox(/** @type {any} */ (problem)));
    return;
  }
  const most = Math.min(MOST_AT_ONCE, Math.floor(limits.atomic_ops / 2));
  about = !isFolder ? "" : `${counted(count, "key")}. ${count > most ? `This takes several steps, of at most ${most} keys; each is done as a whole or not at all.` : "All of it or nothing."}`;
  check();

  function check() {
    const fault = moveFault(source, name.value, isFolder);
    go.disabled = Boolean(fault) || !limits.atomic_ops;
    hint.textContent = (name.value !== source && fault) || about;
  }

  async function work() {
    const target = name.value;
    name.disabled = go.disabled = true;
    trouble.replaceChildren();
    try {
      for await (const part of parts(source, isFolder, limits, last, stopping.signal)) {
        await move(part, (key) => target + key.slice(source.length), isCopy);
        last = /** @type {Fields} */ (part.at(-1)).key;
        done += part.length;
        hint.textContent = `${grouped(done)} of ${counted(count ?? done, "key")} …`;
      }
    } catch (problem) {
      if (stopping.signal.aborted) return;
      const far = done ? `${counted(done, "key")} ${isCopy ? "are copied" : "have the new name"}; the others are as they were. Going on does the rest.` : `The ${what} is as it was.`;
      trouble.replaceChildren(problemBox(/** @type {any} */ (problem)), el("p", { class: "quiet" }, far));
      go.textContent = done ? "Go on" : "Try again";
      go.disabled = false;
      name.disabled = done > 0;
      return;
    }
    announce(`${counted(done, "key")} ${isCopy ? "copied" : "renamed"}.`);
    root.close();
    onDone(target);
  }
}

/** Delete what is below a prefix, when the reader has seen how much that is and typed its name. @param {string} prefix @param {() => void} onDone */
export async function deleteDialog(prefix, onDone) {
  const trouble = el("div");
  const typed = el("input", { id: "delete-name", ...VERBATIM, oninput: () => (yes.disabled = typed.value !== prefix) });
  const yes = button("Delete", () => work(), { class: "danger", disabled: true });
  const size = el("strong", {}, "…");
  const root = dialog(
    "Delete this folder?",
    el("p", {}, size, " begin with ", el("code", {}, shownKey(prefix)), ". They are deleted in steps of up to 1,000, with what is put there meanwhile. The history keeps their values for a while."),
    el("div", { class: "field" }, el("label", { for: "delete-name" }, "To delete them, type the name of the folder"), typed),
    trouble,
    el("div", { class: "actions" }, button("Cancel", () => root.close()), yes),
  );
  countBelow(prefix).then(
    (count) => {
      size.textContent = counted(count, "key");
      yes.textContent = `Delete ${counted(count, "key")}`;
    },
    (problem) => trouble.replaceChildren(problemBox(problem)),
  );

  async function work() {
    yes.disabled = true;
    try {
      const { deleted } = await removeBelow(prefix);
      announce(`${counted(deleted, "key")} deleted.`);
    } catch (problem) {
      const left = await list({ prefix, limit: 1 }).catch(() => null);
      trouble.replaceChildren(problemBox(/** @type {any} */ (problem)), el("p", { class: "quiet" }, left?.items.length === 0 ? "Nothing is left." : "What is left can be deleted by pressing the button again."));
      yes.disabled = false;
      return;
    }
    root.close();
    onDone();
  }
}
