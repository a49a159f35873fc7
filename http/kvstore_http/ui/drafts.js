// @ts-check
// What was typed and is not stored yet. It outlasts reloads, in the tab's own storage.

/**
 * `base` is the state of the key that was edited: its revision (0: there was none) and its text.
 * @typedef {{ key: string, isNew: boolean, text: string, contentType: string, expiry: "none" | "keep" | "set", ttl: string, message: string,
 *   base: { revision: number, text: string, crlf: boolean, expiresAt?: string } }} Draft
 */

const NAME = "kvstore.draft:";

/** @type {Map<string, Draft>} */
const drafts = new Map();

/** @param {string} key @param {boolean} isNew */
const nameOf = (key, isNew) => (isNew ? "new" : `key:${key}`);

try {
  for (const name of Object.keys(sessionStorage)) {
    if (name.startsWith(NAME)) drafts.set(name.slice(NAME.length), JSON.parse(sessionStorage[name]));
  }
} catch {
  // A browser that keeps nothing: drafts then last as long as the page.
}

/** @param {string} key @param {boolean} [isNew] */
export const draftOf = (key, isNew = false) => drafts.get(nameOf(key, isNew));

/** @param {Draft} draft */
export function keepDraft(draft) {
  const name = nameOf(draft.key, draft.isNew);
  drafts.set(name, draft);
  try {
    sessionStorage.setItem(NAME + name, JSON.stringify(draft));
  } catch {
    // No room: it stays in memory, and leaving the page asks first.
  }
}

/** @param {string} key @param {boolean} [isNew] */
export function dropDraft(key, isNew = false) {
  const name = nameOf(key, isNew);
  drafts.delete(name);
  try {
    sessionStorage.removeItem(NAME + name);
  } catch {
    // Nothing was kept there either.
  }
}

export const hasDrafts = () => drafts.size > 0;

/** Forget all that was typed. */
export function dropDrafts() {
  for (const name of drafts.keys()) {
    try {
      sessionStorage.removeItem(NAME + name);
    } catch {
      // Nothing was kept there.
    }
  }
  drafts.clear();
}

addEventListener("beforeunload", (event) => {
  if (drafts.size) event.preventDefault();
});
