// A heatmap of layer × module: a grid of buttons, walked with the arrow keys.
//
//   drawHeatmap(node, cells, { value: (cell) => cell.mean_angle, unit: "°", title: "mean |angle|", legend, chosen, looked })

import { digits, el } from "./dom.js";

const USUAL = ["q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn", "query", "key", "value", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "c_fc", "down_proj"];
const rank = (module) => { const at = USUAL.indexOf(module.split(".").at(-1)); return at < 0 ? USUAL.length : at; };

// Rows are modules as data flows through them, columns are blocks.
function axes(cells) {
  const modules = [...new Set(cells.map((cell) => cell.module))];
  modules.sort((one, other) => rank(one) - rank(other));
  const blocks = [...new Set(cells.map((cell) => cell.block))];
  return { modules, blocks };
}

export function drawHeatmap(node, cells, { value, unit, title, legend, chosen, looked }) {
  const { modules, blocks } = axes(cells);
  const at = new Map(cells.map((cell) => [`${cell.block}/${cell.module}`, cell]));
  const [least, most] = [Math.min(...cells.map(value)), Math.max(...cells.map(value))];
  const share = (cell) => (most > least ? (value(cell) - least) / (most - least) : 0.5);
  const [buttons, shown] = [new Map(), new Map()];
  const rows = modules.map((module) =>
    el("div", { role: "row" },
      el("span", { role: "rowheader", title: module }, module.split(".").at(-1)),
      ...blocks.map((block) => {
        const cell = at.get(`${block}/${module}`);
        if (!cell) return el("span", { role: "gridcell" });
        const label = `${block === null ? "" : `layer ${block}, `}${module}: ${title} ${digits(value(cell))}${unit}`;
        const button = el("button", { type: "button", tabindex: -1, "aria-label": label });
        button.style.setProperty("--heat", `${100 * share(cell)}%`);
        buttons.set(cell.layer, button);
        shown.set(button, cell);
        return el("span", { role: "gridcell" }, button);
      }),
    ),
  );
  const every = Math.ceil(blocks.length / 6);
  const numbers = el("div", { class: "blocks", "aria-hidden": "true" }, el("span"), ...blocks.map((block, i) => el("span", {}, i % every || block === null ? "" : String(block))));
  const grid = el("div", { role: "grid", "aria-label": `${title} by layer and module`, class: "grid" }, ...rows);
  for (const row of [...rows, numbers]) row.style.setProperty("--columns", blocks.length);
  node.replaceChildren(grid, numbers);
  grid.querySelector("button").tabIndex = 0;
  const when = (kind, act) => grid.addEventListener(kind, ({ target }) => shown.has(target) && act(shown.get(target)));
  when("click", chosen);
  when("focusin", looked);
  when("pointerover", looked);
  grid.addEventListener("keydown", (event) => walk(event, grid));
  drawLegend(legend, least, most, unit);
  return { select: (layer) => select(buttons, grid, layer) };
}

function select(buttons, grid, layer) {
  for (const [name, button] of buttons) {
    if (name === layer) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  const button = buttons.get(layer);
  if (!button) return;
  grid.querySelector('button[tabindex="0"]').tabIndex = -1;
  button.tabIndex = 0;
}

function walk(event, grid) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!step || !event.target.matches("button")) return;
  event.preventDefault();
  const rows = [...grid.children];
  const cell = event.target.parentElement;
  const [row, column] = [rows.indexOf(cell.parentElement), [...cell.parentElement.children].indexOf(cell)];
  const next = rows[row + step[0]]?.children[column + step[1]]?.querySelector("button");
  if (!next) return;
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function drawLegend(node, least, most, unit) {
  node.replaceChildren(el("span", {}, `${digits(least)}${unit}`), el("span", { class: "ramp", "aria-hidden": "true" }), el("span", {}, `${digits(most)}${unit}`));
}
