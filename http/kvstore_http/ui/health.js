// @ts-check
// How the service fares, from its metrics and checks, while the reader looks at it.

import { Problem, plain } from "./api.js";
import { byId, el, problemBox } from "./dom.js";
import { brief, grouped, span } from "./format.js";

const EVERY_MS = 2_000;
const KEPT = 90; // samples of a curve
const [WIDTH, HEIGHT] = [120, 28];

/** @typedef {{ name: string, labels: Record<string, string>, value: number }} Sample */

/** The samples of Prometheus' text format. @param {string} text @returns {Sample[]} */
export function samplesOf(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const [, name, labels = "", value] = /^([a-z_]\w*)(?:\{(.*)\})? (\S+)/.exec(line) ?? [];
    if (!name) continue;
    const pairs = [...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, label, given]) => [label, given]);
    samples.push({ name, labels: Object.fromEntries(pairs), value: Number(value.replace("Inf", "Infinity")) });
  }
  return samples;
}

/** @param {Sample[]} samples @param {string} name @returns {number | undefined} */
function sum(samples, name) {
  const found = samples.filter((sample) => sample.name === name);
  return found.length ? found.reduce((total, { value }) => total + value, 0) : undefined;
}

/** How many were at most so long, by bound, over all routes. @param {Sample[]} samples */
function durations(samples) {
  /** @type {Map<number, number>} */
  const counts = new Map();
  for (const { name, labels, value } of samples) {
    if (name !== "kvstore_http_request_duration_seconds_bucket") continue;
    const bound = Number(labels.le.replace("+Inf", "Infinity"));
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return counts;
}

/** The bound in milliseconds that 99 of 100 requests between two looks kept; null if there were none.
 * @param {Map<number, number>} before @param {Map<number, number>} after */
export function slowest(before, after) {
  const bounds = [...after].sort(([one], [other]) => one - other).map(([bound, count]) => [bound, count - (before.get(bound) ?? 0)]);
  const all = bounds.at(-1)?.[1] ?? 0;
  const found = all > 0 && bounds.find(([, count]) => count >= 0.99 * all);
  return found ? found[0] * 1000 : null;
}

/** @typedef {{ at: number, samples: Sample[] }} Look */

/** Per second between two looks; null if it began again in between. @param {string} name */
const rate = (name) => (/** @type {Look} */ before, /** @type {Look} */ after) => {
  const [was, is] = [sum(before.samples, name) ?? 0, sum(after.samples, name) ?? 0];
  return is < was ? null : ((is - was) * 1000) / (after.at - before.at);
};
/** @param {string} name */
const present = (name) => (/** @type {Look} */ _, /** @type {Look} */ after) => sum(after.samples, name) ?? null;

const perSecond = (/** @type {number} */ value) => (value < 10 ? value.toFixed(1) : grouped(Math.round(value)));
const milliseconds = (/** @type {number} */ value) => (value === Infinity ? "very long" : `≤ ${value >= 1000 ? `${value / 1000} s` : `${+value.toPrecision(3)} ms`}`);
const ago = (/** @type {number} */ seconds) => span(Date.now() - seconds * 1000);

/** @type {{ name: string, unit: string, read: (before: Look, after: Look) => number | null, show: (value: number) => string, of?: string }[]} */
const FIGURES = [
  { name: "Requests", unit: "/s", read: rate("kvstore_http_requests_total"), show: perSecond },
  { name: "Changes", unit: "/s", read: rate("kvstore_changes_published_total"), show: perSecond },
  { name: "99 of 100 requests", unit: "", read: (before, after) => slowest(durations(before.samples), durations(after.samples)), show: milliseconds },
  { name: "Streams", unit: "", read: present("kvstore_http_streams"), show: grouped },
  { name: "Native subscriptions", unit: "", read: present("kvstore_subscriptions"), show: grouped },
  { name: "Store", unit: "", read: present("kvstore_store_used_bytes"), show: brief, of: "kvstore_store_max_bytes" },
  { name: "Free on the disk", unit: "", read: present("kvstore_disk_free_bytes"), show: brief, of: "kvstore_disk_bytes" },
  { name: "The log reaches back", unit: "", read: present("kvstore_log_oldest_timestamp_seconds"), show: ago },
];

/** A curve of `values`, of which null are gaps. @param {(number | null)[]} values */
function sparkline(values) {
  const svg = byId("spark").content.firstElementChild.cloneNode(true);
  const most = Math.max(...values.map((value) => (Number.isFinite(value) ? Number(value) : 0)), 0) || 1;
  const points = values.flatMap((value, at) => (value === null ? [] : [`${((KEPT - values.length + at) / (KEPT - 1)) * WIDTH},${HEIGHT - 2 - (Math.min(value, most) / most) * (HEIGHT - 4)}`]));
  svg.firstElementChild.setAttribute("points", points.join(" "));
  return svg;
}

export class HealthView {
  constructor() {
    this.figures = el("dl", { class: "figures" });
    this.checks = el("ul", { class: "checks", "aria-label": "Checks" });
    this.trouble = el("div");
    byId("health-view").append(this.trouble, this.figures, el("h2", {}, "Checks"), this.checks);
    /** @type {Look | null} */
    this.last = null;
    /** @type {(number | null)[][]} */
    this.curves = FIGURES.map(() => []);
    this.timer = 0;
  }

  show() {
    this.stop();
    this.isShown = true;
    this.#look();
  }

  stop() {
    this.isShown = false;
    clearTimeout(this.timer);
  }

  async #look() {
    clearTimeout(this.timer);
    if (!document.hidden) await this.#read();
    if (this.isShown) this.timer = setTimeout(() => this.#look(), EVERY_MS);
  }

  async #read() {
    try {
      const [metrics, checks] = await Promise.all([plain("metrics"), plain("readyz?verbose=1", "application/json")]);
      this.trouble.replaceChildren();
      this.#take({ at: performance.now(), samples: samplesOf(metrics) });
      this.#showChecks(JSON.parse(checks));
    } catch (error) {
      const problem = /** @type {Problem} */ (error);
      const why = problem.status === 403 || problem.status === 401 ? el("p", {}, "This view needs the grant ", el("code", {}, "monitor"), ".") : "";
      this.trouble.replaceChildren(problemBox(problem, ...(why ? [why] : [])));
    }
  }

  /** @param {Look} look */
  #take(look) {
    const before = this.last ?? look;
    this.last = look;
    this.figures.replaceChildren(
      ...FIGURES.map(({ name, unit, read, show, of }, at) => {
        const value = before === look && (unit || name.startsWith("99")) ? null : read(before, look);
        const curve = this.curves[at];
        curve.push(value);
        if (curve.length > KEPT) curve.shift();
        const whole = of ? sum(look.samples, of) : undefined;
        return el("div", {}, el("dt", {}, name), el("dd", {}, value === null ? "–" : show(value) + unit, whole !== undefined && el("span", { class: "quiet" }, ` of ${brief(whole)}`)), sparkline(curve));
      }),
    );
  }

  /** @param {{ checks?: { name: string, status: string, message: string }[] }} told */
  #showChecks({ checks = [] }) {
    this.checks.replaceChildren(...checks.map(({ name, status, message }) => el("li", { "data-state": status }, el("strong", {}, name), ` ${status} `, el("span", { class: "quiet" }, message))));
  }
}
