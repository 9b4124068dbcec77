// The view of the server's health: its metrics, asked again and again while somebody looks.

import { ask, drawn, duration, made, one } from "./common.js";
import { measured } from "./trial.js";

const EVERY = 2; // seconds
const KEPT = 90; // points of a curve
const PREFIX = "mlx_peft_";

// Prometheus' text: [{ name, labels, value }].
export function parsed(text) {
  const found = [];
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match || line.startsWith("#")) continue;
    const labels = {};
    for (const [, key, value] of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[key] = value.replace(/\\(.)/g, (_, sign) => (sign === "n" ? "\n" : sign));
    }
    found.push({ name: match[1], labels, value: Number(match[3].replace("Inf", "Infinity")) });
  }
  return found;
}

const named = (samples, name) => samples.filter((sample) => sample.name === `${PREFIX}${name}`);
const sum = (samples) => samples.reduce((total, sample) => total + sample.value, 0);
const answering = (sample) => /classify|embed|infer|explain/.test(sample.labels.route ?? "");

// Counts of a histogram by their upper edges, added up over labels.
function buckets(samples, name) {
  const counts = new Map();
  for (const { labels, value } of named(samples, `${name}_bucket`).filter((sample) => !sample.labels.route || answering(sample))) {
    const edge = Number(labels.le.replace("+Inf", "Infinity"));
    counts.set(edge, (counts.get(edge) ?? 0) + value);
  }
  return [...counts].sort(([a], [b]) => a - b);
}
const less = (now, before) => now.map(([edge, count]) => [edge, count - (before.find(([each]) => each === edge)?.[1] ?? 0)]);

// A quantile, by the straight line through its bucket; null of no answers.
export function quantile(cumulative, share) {
  const total = cumulative.length ? cumulative[cumulative.length - 1][1] : 0;
  if (total <= 0) return null;
  let [low, under] = [0, 0];
  for (const [edge, count] of cumulative) {
    if (count >= share * total) return edge === Infinity ? low : low + ((edge - low) * (share * total - under)) / (count - under || 1);
    [low, under] = [edge, count];
  }
  return low;
}

const time = (seconds) => (seconds === null ? "–" : duration(1000 * seconds));
const count = (value) => Math.round(value).toLocaleString("en");
const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : `${(bytes / 1e6).toFixed(1)} MB`);

export class Health {
  constructor() {
    this.curves = { rate: [], median: [], queue: [] };
    this.models = [];
    this.before = null;
    this.changes = null; // loads, and adapters in memory: where they change, models are asked for again
    this.timer = null;
    this.paused = false;
    this.onModels = () => {};
    one("#pause").addEventListener("click", () => {
      this.paused = !this.paused;
      one("#pause").textContent = this.paused ? "Go on" : "Pause";
      one("#pause").setAttribute("aria-pressed", String(this.paused));
      if (!this.paused) this.look();
    });
  }

  start() {
    if (this.timer !== null) return;
    this.timer = setInterval(() => { if (!this.paused) this.look(); }, 1000 * EVERY);
    if (!this.paused) this.look();
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.before = null;
  }

  list(models) {
    this.models = models;
    this.rows(this.before?.samples ?? []);
  }

  state(kind, sentence) {
    const state = one("#state");
    if (state.textContent === sentence) return; // said once
    state.textContent = sentence;
    state.dataset.kind = kind;
  }

  async look() {
    try {
      const samples = parsed(await (await ask("metrics")).text());
      this.show(samples, performance.now());
      this.before = { samples, at: performance.now() };
      const ready = sum(named(samples, "ready")) > 0;
      this.state(ready ? "good" : "wait", ready ? "Ready: it answers." : "Not ready: it warms up, or is about to stop.");
      const changes = sum(named(samples, "adapter_loads_total")) + sum(named(samples, "adapters_loaded"));
      if (this.changes !== null && changes !== this.changes) this.onModels();
      this.changes = changes;
    } catch (problem) {
      this.state("bad", problem.message);
    }
  }

  show(samples, at) {
    const requests = named(samples, "requests_total").filter(answering);
    const failed = sum(requests.filter((each) => /^5/.test(each.labels.status)));
    const refused = sum(requests.filter((each) => /^4/.test(each.labels.status)));
    const all_times = buckets(samples, "request_seconds");
    const batches = sum(named(samples, "batch_images_count"));
    const images = sum(named(samples, "batch_images_sum"));
    const queue = sum(named(samples, "waiting_images"));
    const figures = [
      ["requests answered", count(sum(requests) - failed - refused)],
      ["refused (4xx)", count(refused)],
      ["failed (5xx)", count(failed)],
      ["half of them within", time(quantile(all_times, 0.5))],
      ["99 % within", time(quantile(all_times, 0.99))],
      ["images a batch, mean", batches ? (images / batches).toFixed(1) : "–"],
      ["images waiting", count(queue)],
      ["adapters in memory", count(sum(named(samples, "adapters_loaded")))],
      ["their files", size(this.models.reduce((total, model) => total + (model.loaded ? model.bytes ?? 0 : 0), 0))],
      ["loads and unloads", count(sum(named(samples, "adapter_loads_total")))],
    ];
    one("#figures").replaceChildren(...figures.map(([name, value]) => made("div", {}, made("dt", {}, name), made("dd", {}, value))));
    if (this.before) {
      const seconds = (at - this.before.at) / 1000;
      const earlier = named(this.before.samples, "requests_total").filter(answering);
      const recent = less(all_times, buckets(this.before.samples, "request_seconds"));
      this.add("rate", Math.max(0, sum(requests) - sum(earlier)) / seconds);
      const median = quantile(recent, 0.5);
      this.add("median", median === null ? null : 1000 * median); // null: nobody asked
      this.add("queue", queue);
    }
    one("#charts").replaceChildren(
      chart("requests a second", this.curves.rate), chart("median time, ms", this.curves.median), chart("images waiting", this.curves.queue));
    this.rows(samples);
  }

  add(name, value) {
    this.curves[name] = [...this.curves[name], value].slice(-KEPT);
  }

  rows(samples) {
    const images = new Map();
    for (const { labels, value } of named(samples, "images_total")) images.set(labels.adapter, (images.get(labels.adapter) ?? 0) + value);
    one("#adapters tbody").replaceChildren(...this.models.map((model) => {
      const numbers = [String(model.classes.length), measured(model).join(", ") || "–", model.loaded ? "yes" : "no", count((model.bytes ?? 0) / 1000),
        count(images.get(model.name) ?? 0)];
      return made("tr", {}, made("th", { scope: "row" }, model.name), made("td", {}, model.method ?? "–"), made("td", {}, model.base ?? "–"),
        ...numbers.map((text, at) => made("td", { class: at === 1 || at === 2 ? "" : "n" }, text)));
    }));
  }
}

const short = (value) => Number(value.toPrecision(3)).toLocaleString("en");

function chart(title, values) {
  const [width, height, left, top] = [340, 110, 44, 10];
  const high = Math.max(1e-9, ...values);
  const last = values.length ? values[values.length - 1] : null;
  const points = values.map((value, at) => [at, value]).filter(([, value]) => value !== null);
  const label = last === null ? `${title}: nothing just now` : `${title}: now ${short(last)}, at most ${short(high)} in the last ${Math.round(EVERY * values.length)} seconds`;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const x = (at) => width - 8 - ((width - left - 8) * (values.length - 1 - at)) / (KEPT - 1);
  const y = (value) => top + (height - 2 * top) * (1 - value / high);
  for (const value of [0, high]) {
    svg.append(drawn("line", { class: "grid", x1: left, x2: width - 8, y1: y(value), y2: y(value) }));
    if (values.length && (value === 0 || high > 1e-9)) {
      svg.append(drawn("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, short(value === 0 ? 0 : high)));
    }
  }
  if (points.length > 1) svg.append(drawn("polyline", { class: "curve", points: points.map(([at, value]) => `${x(at)},${y(value)}`).join(" ") }));
  for (const [at, value] of points.slice(-1)) svg.append(drawn("circle", { class: "dot", cx: x(at), cy: y(value), r: 3 }));
  return made("figure", {}, made("figcaption", {}, last === null ? `${title}: –` : `${title}: ${short(last)}`), svg);
}
