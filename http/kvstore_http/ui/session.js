// @ts-check
// The page's half of its session. The other half is a cookie that no script can read, and neither is worth
// anything alone; the token that both came from is kept nowhere.

/** The path of the service, with its slash: services below two paths of a host have two sessions. */
export const HOME = new URL("../", document.baseURI).pathname;

const NAME = `kvstore.half:${HOME}`;
let kept = ""; // where the browser stores nothing

export function half() {
  try {
    return localStorage.getItem(NAME) ?? "";
  } catch {
    return kept;
  }
}

/** @param {string} text empty: there is no session */
export function keepHalf(text) {
  kept = text;
  try {
    if (text) localStorage.setItem(NAME, text);
    else localStorage.removeItem(NAME);
  } catch {
    // It lasts as long as the page.
  }
}

/** Call `react` when another tab logs in or out. @param {() => void} react */
export function onOtherTab(react) {
  addEventListener("storage", ({ key }) => key === NAME && react());
}
