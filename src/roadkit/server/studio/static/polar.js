// A layer's pairs in the plane: each block sends the unit vector (1, 0) to a point, at its angle and its scale.
//
//   const points = pointsOf(blocks);          // [[a_lo, b_lo, b_hi, a_hi], …] → [{ angle, scale }, …]
//   drawPolar(node, points, { selected: 3, zoom: true, picked: (pair) => … })

import { digits, svg } from "./dom.js";

const SIZE = 320;
const EDGE = 14;

// road_1: one point a pair. Other blocks turn their two rows differently: the point is the polar part's mean.
export function pointsOf(blocks) {
  return blocks.map(([aLo, bLo, bHi, aHi]) => ({
    angle: Math.atan2(bHi - bLo, aLo + aHi), // of the nearest rotation
    scale: Math.sqrt(Math.abs(aLo * aHi - bLo * bHi)),
  }));
}

function window_(points, zoom) {
  const reach = Math.max(1, ...points.map((point) => point.scale)) * 1.08;
  if (!zoom) return { x: 0, y: 0, half: reach };
  const xs = [1, ...points.map((point) => point.scale * Math.cos(point.angle))];
  const ys = [0, ...points.map((point) => point.scale * Math.sin(point.angle))];
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const half = Math.max((right - left) / 2, (high - low) / 2, 0.02) * 1.12;
  return half > reach ? { x: 0, y: 0, half: reach } : { x: (left + right) / 2, y: (low + high) / 2, half };
}

// A step of 1, 2 or 5 (or 15, 30, 45 degrees) that gives about four lines.
const nice = (wanted, steps) => steps.find((step) => step >= wanted) ?? steps.at(-1);

function gridLines(view, place) {
  const lines = [];
  const ring = nice(view.half / 2.5, [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 50, 100, 1000]);
  const far = Math.hypot(Math.abs(view.x) + view.half, Math.abs(view.y) + view.half);
  const near = Math.max(0, Math.hypot(view.x, view.y) - view.half * 1.5);
  const turn = nice((view.half / Math.max(view.half, Math.hypot(view.x, view.y))) * 25, [0.5, 1, 2, 5, 10, 15, 30, 45]);
  const unit = (SIZE - 2 * EDGE) / (2 * view.half);
  const [cx, cy] = place(0, 0);
  for (let r = Math.max(1, Math.ceil(near / ring)) * ring; r <= far && lines.length < 40; r += ring)
    lines.push(svg("circle", { cx, cy, r: r * unit }));
  for (let degrees = -180; degrees < 180; degrees += turn) {
    const [x, y] = place(far * Math.cos((degrees * Math.PI) / 180), far * Math.sin((degrees * Math.PI) / 180));
    lines.push(svg("line", { x1: cx, y1: cy, x2: x, y2: y }));
  }
  return { lines, ring, turn, circle: svg("circle", { class: "unit", cx, cy, r: unit }) };
}

// Every dot is a line of no length with round ends: thousands of them are one element.
const dots = (places) => places.map(([x, y]) => `M${x.toFixed(2)} ${y.toFixed(2)}h0`).join("");

export function drawPolar(node, points, { selected, zoom, picked }) {
  const view = window_(points, zoom);
  const unit = (SIZE - 2 * EDGE) / (2 * view.half);
  const place = (x, y) => [SIZE / 2 + (x - view.x) * unit, SIZE / 2 - (y - view.y) * unit];
  const places = points.map(({ angle, scale }) => place(scale * Math.cos(angle), scale * Math.sin(angle)));
  const grid = gridLines(view, place);
  const label = `${points.length} pairs in the plane of angle and scale`;
  const [ox, oy] = place(1, 0);
  const chart = svg("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, role: "img", "aria-label": label },
    svg("g", { class: "grid" }, ...grid.lines),
    grid.circle,
    svg("path", { class: "base", d: `M${ox - 6} ${oy}h12M${ox} ${oy - 6}v12` }),
    svg("path", { class: "dots", d: dots(places) }),
    places[selected] && svg("circle", { class: "selected", cx: places[selected][0], cy: places[selected][1], r: 5 }),
    svg("text", { x: 8, y: SIZE - 8 }, `rings ${digits(grid.ring)} · rays ${digits(grid.turn)}°`),
  );
  chart.addEventListener("click", (event) => {
    const box = chart.getBoundingClientRect();
    const [x, y] = [((event.clientX - box.left) / box.width) * SIZE, ((event.clientY - box.top) / box.height) * SIZE];
    const distances = places.map(([px, py]) => Math.hypot(px - x, py - y));
    picked(distances.indexOf(Math.min(...distances)));
  });
  node.replaceChildren(chart);
}
