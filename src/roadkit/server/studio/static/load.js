// The server's load, live: throughput, the batch, the different adapters in it, the queue, rates by adapter.

import { get } from "./api.js";
import { byId, count, digits, el, report, svg } from "./dom.js";

const EVERY = 1000; // milliseconds
const KEPT = 120; // samples
const RATED = 10; // samples that the rates by adapter look back
const [WIDTH, HEIGHT] = [300, 72];

const CHARTS = [
  { title: "Throughput", unit: "tokens/s", value: (now, before) => rate(now, before, (one) => one.tokens) },
  { title: "Batch", unit: "rows in use", value: (now) => now.running, most: (now) => now.max_batch },
  { title: "Distinct adapters", unit: "in the batch", value: (now) => now.distinct },
  { title: "Queue", unit: "waiting", value: (now) => now.waiting },
  { title: "Tokens a step", unit: "computed together", value: (now, before) => ratio(now.tokens - before.tokens, now.steps - before.steps) },
  { title: "Key/value cache", unit: "% of pages", value: (now) => 100 * now.cache_used, most: () => 100 },
];

// The next of 1, 2, 5, 10, 20, 50, …
function roundTop(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * power >= value) * power;
}

const ratio = (above, below) => (below > 0 ? above / below : 0);
const rate = (now, before, of) => ratio(of(now) - of(before), (now.at - before.at) / 1000);

export class Load {
  #samples = [];
  #charts = [];
  #timer = null;

  constructor() {
    this.#charts = CHARTS.map((chart) => {
      const value = el("strong", {}, "–");
      const area = svg("path", { class: "area" });
      const line = svg("path", { class: "line" });
      const most = el("span", { class: "muted" });
      const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, area, line);
      const card = el("div", { class: "card chart" }, el("h3", {}, chart.title), el("p", {}, value, " ", el("span", { class: "muted" }, chart.unit)), drawing, el("p", { class: "axis muted" }, el("span", {}, "2 minutes"), most));
      byId("charts").append(card);
      return { ...chart, nodes: { value, area, line, most } };
    });
  }

  async show() {
    clearInterval(this.#timer);
    await this.#sample();
    this.#timer = setInterval(() => document.hidden || this.#sample().catch((error) => report(byId("load-result"), error.message, true)), EVERY);
  }

  hide() {
    clearInterval(this.#timer);
  }

  async #sample() {
    let now;
    try {
      now = await get("/v1/studio/stats");
    } catch (error) {
      if (error.status !== 404) throw error;
      clearInterval(this.#timer);
      return report(byId("load-result"), "The load of all tenants is shown to an admin's key.", true);
    }
    now.at = performance.now();
    const last = this.#samples.at(-1);
    if (last && (now.tokens < last.tokens || now.at - last.at > 5 * EVERY)) this.#samples = []; // another start, or a pause
    this.#samples.push(now);
    this.#samples.splice(0, this.#samples.length - KEPT);
    report(byId("load-result"), "");
    for (const chart of this.#charts) this.#draw(chart);
    this.#rates();
  }

  #draw({ value, most, nodes }) {
    const now = this.#samples.at(-1);
    const values = this.#samples.map((sample, i) => value(sample, this.#samples[Math.max(0, i - 1)]));
    const top = most?.(now) || roundTop(Math.max(1, ...values));
    const x = (i) => WIDTH - ((values.length - 1 - i) * WIDTH) / (KEPT - 1);
    const y = (one) => HEIGHT - 1 - (Math.min(one, top) / top) * (HEIGHT - 3);
    const points = values.map((one, i) => `${x(i).toFixed(1)} ${y(one).toFixed(1)}`);
    nodes.line.setAttribute("d", `M${points.join("L")}`);
    nodes.area.setAttribute("d", `M${x(0).toFixed(1)} ${HEIGHT}L${points.join("L")}L${WIDTH} ${HEIGHT}Z`);
    nodes.value.textContent = digits(values.at(-1));
    nodes.most.textContent = `top ${digits(top)}`;
  }

  #rates() {
    const [now, before] = [this.#samples.at(-1), this.#samples.at(-1 - Math.min(RATED, this.#samples.length - 1))];
    const total = Object.values(now.adapters).reduce((sum, one) => sum + one.tokens, 0) || 1;
    const rows = Object.entries(now.adapters).sort((one, other) => other[1].tokens - one[1].tokens).slice(0, 50);
    byId("rates").tBodies[0].replaceChildren(...rows.map(([name, { answers, tokens }]) => {
      const share = el("span", { class: "share", title: `${digits((100 * tokens) / total)} %` });
      share.style.setProperty("--share", `${(100 * tokens) / total}%`);
      return el("tr", {}, el("th", { scope: "row", class: "mono" }, name), el("td", { class: "number" }, count(answers)), el("td", { class: "number" }, count(tokens)),
        el("td", { class: "number" }, digits(rate(now, before, (one) => one.adapters[name]?.tokens ?? 0))), el("td", {}, share));
    }));
    if (!rows.length) byId("rates").tBodies[0].append(el("tr", {}, el("td", { colspan: 5, class: "muted" }, "No answers yet.")));
  }
}
