// The anatomy of an adapter: how far each layer turns and scales, and every pair of one layer at a strength.

import { get } from "./api.js";
import { byId, digits, el, report } from "./dom.js";
import { drawHeatmap } from "./heatmap.js";
import { drawPolar, pointsOf } from "./polar.js";

const degrees = (angle) => (angle * 180) / Math.PI;

export class Anatomy {
  #model = "";
  #maps = [];
  #cell = null;
  #points = [];
  #blocks = [];
  #wanted = null; // strength asked for while another answer is on its way
  #fetching = false;

  constructor() {
    byId("dissect").addEventListener("submit", (event) => {
      event.preventDefault();
      const model = byId("anatomy-model").value.trim();
      if (model) location.hash = `#anatomy?${new URLSearchParams({ model })}`;
    });
    byId("strength").addEventListener("input", () => this.#fetchLayer());
    byId("pair").addEventListener("input", () => this.#drawPairs());
    byId("zoom").addEventListener("change", () => this.#drawPairs());
  }

  async show(state) {
    const names = (await get("/v1/adapters")).data.map((entry) => entry.id);
    byId("adapter-names").replaceChildren(...names.slice(0, 500).map((name) => el("option", { value: name })));
    const model = state.get("model") ?? (this.#model || names[0]);
    if (!model) return report(byId("anatomy-result"), "No adapters yet: upload one first.");
    byId("anatomy-model").value = model;
    if (model !== this.#model) await this.#dissect(model);
  }

  hide() {}

  async #dissect(model) {
    const result = byId("anatomy-result");
    this.#model = "";
    byId("anatomy-body").hidden = true;
    report(result, "Reading…");
    let found;
    try {
      found = await get(`/v1/studio/anatomy?${new URLSearchParams({ model })}`);
    } catch (error) {
      return report(result, error.message, true);
    }
    this.#model = model;
    const pairs = found.cells.reduce((sum, cell) => sum + cell.pairs, 0);
    report(result, `${found.variant} · ${found.cells.length} layers · ${pairs.toLocaleString("en")} pairs`);
    byId("anatomy-body").hidden = false;
    performance.mark("heatmap-start");
    const shared = { chosen: (cell) => this.#choose(cell), looked: (cell) => this.#look(cell) };
    this.#maps = [
      drawHeatmap(byId("angle-map"), found.cells, { value: (cell) => cell.mean_angle, unit: "°", title: "mean |angle|", legend: byId("angle-legend"), ...shared }),
      drawHeatmap(byId("scale-map"), found.cells, { value: (cell) => cell.mean_log_scale, unit: "", title: "mean |log scale|", legend: byId("scale-legend"), ...shared }),
    ];
    byId("anatomy-body").getBoundingClientRect(); // laid out within the measure
    performance.measure("heatmap", "heatmap-start");
    byId("strength").value = 1;
    await this.#choose(found.cells.reduce((best, cell) => (cell.mean_angle > best.mean_angle ? cell : best)));
  }

  #look(cell) {
    byId("cell-readout").textContent = `${cell.layer}: ${digits(cell.mean_angle)}° on average, ${digits(cell.max_angle)}° at most; log scale ${digits(cell.mean_log_scale)}, ${digits(cell.max_log_scale)} at most`;
  }

  async #choose(cell) {
    this.#cell = cell;
    this.#look(cell);
    this.#maps.forEach((map) => map.select(cell.layer));
    byId("layer-name").textContent = cell.layer;
    byId("pair").max = cell.pairs - 1;
    byId("pair").value = 0;
    await this.#fetchLayer();
  }

  // The server computes the power that it would serve. Answers that come late are skipped, the last one is shown.
  async #fetchLayer() {
    this.#wanted = byId("strength").value;
    byId("strength-value").textContent = this.#wanted;
    if (this.#fetching) return;
    this.#fetching = true;
    try {
      while (this.#wanted !== null) {
        const [strength, cell] = [this.#wanted, this.#cell];
        this.#wanted = null;
        const found = await get(`/v1/studio/layer?${new URLSearchParams({ model: this.#model, layer: cell.layer, strength })}`);
        if (cell !== this.#cell) continue;
        this.#blocks = found.blocks;
        this.#points = pointsOf(found.blocks);
        this.#facts(found);
        this.#drawPairs();
        this.#describe("");
      }
    } catch (error) {
      this.#describe(error.message);
    } finally {
      this.#fetching = false;
    }
  }

  #describe(error) {
    const note = byId("layer-facts");
    note.classList.toggle("error", Boolean(error));
    if (error) note.textContent = error;
  }

  #facts(found) {
    const angles = this.#points.map((point) => Math.abs(degrees(point.angle)));
    const scales = this.#points.map((point) => point.scale);
    const kind = found.rotations ? "scaled rotations" : "general 2×2 blocks, shown by their nearest rotation";
    byId("layer-facts").textContent = `${found.blocks.length} pairs, ${kind}; angle at most ${digits(Math.max(...angles))}°, scale ${digits(Math.min(...scales))} to ${digits(Math.max(...scales))}`;
  }

  #drawPairs() {
    if (!this.#points.length) return;
    const selected = Math.min(Math.max(0, Math.trunc(Number(byId("pair").value)) || 0), this.#points.length - 1);
    const picked = (pair) => { byId("pair").value = pair; this.#drawPairs(); };
    drawPolar(byId("polar"), this.#points, { selected, zoom: byId("zoom").checked, picked });
    const { angle, scale } = this.#points[selected];
    const half = this.#cell.group_size / 2;
    const first = Math.floor(selected / half) * this.#cell.group_size + (selected % half);
    byId("pair-facts").textContent = `outputs ${first} and ${first + half}: ${digits(degrees(angle))}°, scale ${digits(scale)}`;
    const [aLo, bLo, bHi, aHi] = this.#blocks[selected].map((value) => value.toFixed(4));
    byId("matrix").setAttribute("aria-label", `R at strength ${byId("strength").value}: first row ${aLo}, ${bLo}; second row ${bHi}, ${aHi}`);
    byId("matrix").setAttribute("role", "img");
    byId("matrix").replaceChildren(el("span", { class: "lead" }, byId("strength").value === "1" ? "R =" : "Rʷ ="), el("span", { class: "cells" }, ...[aLo, bLo, bHi, aHi].map((value) => el("span", {}, value.replace("-", "−")))));
  }
}
