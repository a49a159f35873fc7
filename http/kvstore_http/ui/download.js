// @ts-check
// Values as files.

import { valueAddress } from "./api.js";
import { el } from "./dom.js";
import { fileName } from "./keys.js";
import { half } from "./session.js";

/**
 * A link to a value as a file. With a session the browser cannot fetch it by itself, as only the page has the
 * other half: the file is then made of the bytes that are here. It has no type that a browser would show, since
 * it is of this page's origin.
 * @param {string} key @param {() => Uint8Array} bytes @param {number} [revision]
 */
export function downloadLink(key, bytes, revision) {
  const link = el("a", { class: "button", download: fileName(key), href: valueAddress(key, revision), onclick: save }, "Download");
  /** @param {Event} event */
  function save(event) {
    if (!half()) return;
    event.preventDefault();
    saveFile(fileName(key), new Blob([/** @type {any} */ (bytes())], { type: "application/octet-stream" }));
  }
  return link;
}

/** Have the browser keep `file` under `name`. @param {string} name @param {Blob} file */
export function saveFile(name, file) {
  const href = URL.createObjectURL(file);
  el("a", { download: name, href }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}
