// @ts-check
// What somebody may do, by the grants that the service told (docs/access.md). The service decides; this only
// keeps the page from offering what would be refused.

/** @typedef {"read" | "list" | "watch" | "write" | "delete"} Verb */
/** @typedef {{ scope: string, isPrefix: boolean }} Scope */

const ALL = ["read", "list", "watch", "write", "delete"];
/** @type {Record<string, string[]>} */
const SHORT = { ro: ["read", "list", "watch"], rw: ALL, all: ALL };

export class Grants {
  /** @param {string[] | null} texts null: everything, as where access is off */
  constructor(texts) {
    this.isOpen = texts === null;
    this.rules = (texts ?? []).filter((text) => text.includes(":")).map(ruleOf);
  }

  /** Whether `verb` is allowed on `key`. @param {Verb} verb @param {string} key */
  may(verb, key) {
    return this.isOpen || this.rules.some(({ verbs, scope, isPrefix }) => verbs.has(verb) && (isPrefix ? key.startsWith(scope) : key === scope));
  }

  /** Whether `verb` is allowed on all keys that begin with `prefix`. @param {Verb} verb @param {string} prefix */
  covers(verb, prefix) {
    return this.isOpen || this.rules.some(({ verbs, scope, isPrefix }) => isPrefix && verbs.has(verb) && prefix.startsWith(scope));
  }

  /** The scopes inside `prefix`, which is none of them, that have one of these verbs; none is inside another. @param {string} prefix @param {Verb[]} verbs
   * @returns {Scope[]} */
  below(prefix, verbs) {
    const isInner = (/** @type {Scope} */ { scope, isPrefix }) => scope.startsWith(prefix) && !(isPrefix && scope === prefix);
    const found = this.rules.filter((rule) => isInner(rule) && verbs.some((verb) => rule.verbs.has(verb)));
    const outer = found.filter((one) => !found.some((other) => other !== one && isInside(one, other, found)));
    return outer.map(({ scope, isPrefix }) => ({ scope, isPrefix }));
  }
}

/** @param {string} text */
function ruleOf(text) {
  const colon = text.indexOf(":");
  const verbs = text.slice(0, colon).split(",").flatMap((verb) => SHORT[verb] ?? [verb]);
  const scope = text.slice(colon + 1);
  return { verbs: new Set(verbs), scope: scope.replace(/\*$/, ""), isPrefix: /[/*]$/.test(scope) };
}

/** Whether `other` has all of `one`; of two that are the same, the first is kept. @param {Scope} one @param {Scope} other @param {Scope[]} all */
function isInside(one, other, all) {
  if (one.scope === other.scope && one.isPrefix === other.isPrefix) return all.indexOf(other) < all.indexOf(one);
  return other.isPrefix && one.scope.startsWith(other.scope);
}
