// @ts-check
// A field for JSON: coloured, checked while it is typed, searched and folded. It is used as a text area is.
//
// It is in a shadow root because there CodeMirror adopts its styles as sheets; in the document it would insert
// a style element, which the page's policy forbids.

import { Compartment, EditorState, EditorView, HighlightStyle, bracketMatching, defaultKeymap, foldGutter, foldKeymap, highlightSpecialChars, history, historyKeymap, json, jsonParseLinter, keymap, lineNumbers, lintGutter, linter, search, searchKeymap, syntaxHighlighting, tags } from "./vendor/codemirror.js";

const OURS = new Set(["Mod-Enter"]); // saves the form

const colours = HighlightStyle.define([
  { tag: tags.propertyName, color: "var(--accent)" },
  { tag: tags.string, color: "var(--good)" },
  { tag: tags.number, color: "var(--warn)" },
  { tag: [tags.bool, tags.null], color: "var(--danger)" },
]);

const theme = EditorView.theme({
  "&": { maxHeight: "60dvh", color: "var(--ink)", backgroundColor: "transparent", borderRadius: "inherit", fontSize: "inherit" },
  "&.cm-focused": { outline: "none" }, // the host shows it
  ".cm-scroller": { fontFamily: "var(--mono)", lineHeight: "1.5", borderRadius: "inherit" },
  ".cm-content, .cm-gutter": { minHeight: "14rem" },
  ".cm-content": { caretColor: "var(--ink)", padding: "0.5rem 0" },
  ".cm-gutters": { color: "var(--quiet)", backgroundColor: "transparent", border: "0" },
  "&.cm-focused .cm-matchingBracket": { backgroundColor: "var(--accent-soft)" },
  ".cm-panels, .cm-tooltip": { color: "var(--ink)", backgroundColor: "var(--raised)", borderColor: "var(--line) !important" },
  ".cm-panels input, .cm-panels button": { color: "inherit", backgroundColor: "var(--sheet)", backgroundImage: "none", borderColor: "var(--line)" },
  // CodeMirror's own marks are pictures in data addresses, which the policy forbids
  ".cm-lintRange-error": { backgroundImage: "none", textDecoration: "underline wavy var(--danger)" },
  ".cm-lint-marker-error": { content: "none", width: "0.6em", height: "0.6em", margin: "0.45em 0.2em", borderRadius: "50%", backgroundColor: "var(--danger)" },
  ".cm-foldPlaceholder": { color: "var(--quiet)", backgroundColor: "var(--hover)", borderColor: "var(--line)" },
});

export class CodeField extends HTMLElement {
  static formAssociated = true; // so that a label is for it

  /** @param {string} [text] what it holds at first, beyond which nothing is undone */
  constructor(text = "") {
    super();
    const root = this.attachShadow({ mode: "open", delegatesFocus: true });
    this.access = new Compartment();
    this.isChecked = () => true;
    const check = jsonParseLinter();
    this.view = new EditorView({
      doc: text,
      root,
      parent: /** @type {any} */ (root),
      extensions: [
        lineNumbers(),
        foldGutter(),
        history(),
        highlightSpecialChars(),
        json(),
        syntaxHighlighting(colours),
        bracketMatching(),
        search({ top: true }),
        linter((/** @type {any} */ view) => (this.isChecked() && view.state.doc.length ? check(view) : [])),
        lintGutter(),
        keymap.of([...defaultKeymap, ...historyKeymap, ...foldKeymap, ...searchKeymap].filter(({ key }) => !key || !OURS.has(key))),
        EditorView.lineWrapping,
        EditorView.contentAttributes.of({ "aria-label": "Value", autocapitalize: "off", spellcheck: "false" }),
        EditorView.updateListener.of((/** @type {any} */ update) => update.docChanged && this.dispatchEvent(new Event("input"))),
        this.access.of([]),
        theme,
      ],
    });
  }

  get value() {
    return this.view.state.doc.toString();
  }

  /** Another text, as one step that can be undone. */
  set value(text) {
    this.view.dispatch({ changes: { from: 0, to: this.view.state.doc.length, insert: text } });
  }

  /** @param {boolean} isReadOnly */
  set readOnly(isReadOnly) {
    this.view.dispatch({ effects: this.access.reconfigure(EditorState.readOnly.of(isReadOnly)) });
  }

  focus() {
    this.view.focus();
  }

  select() {
    this.setSelectionRange(0, this.view.state.doc.length);
  }

  /** @param {number} from @param {number} to */
  setSelectionRange(from, to) {
    this.view.dispatch({ selection: { anchor: from, head: to }, scrollIntoView: true });
  }
}

customElements.define("code-field", CodeField);
