// Elements without HTML strings: text is only ever a text node.
//
//   el("button", { type: "button", class: "quiet", onclick: run, "aria-pressed": "false" }, "Run")

const SVG = "http://www.w3.org/2000/svg";

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function el(tag, attributes = {}, ...children) {
  return build(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return build(document.createElementNS(SVG, tag), attributes, children);
}

export const byId = (id) => document.getElementById(id);

// `schedule()` calls `work` once in the next frame, however often it was asked.
export function perFrame(work) {
  let asked = 0;
  return () => {
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      work();
    });
  };
}

// Whole numbers with separators, bytes in MB and kB, ratios with three digits.
export const count = (value) => (value === undefined ? "–" : Math.round(value).toLocaleString("en"));
export const bytes = (value) =>
  value === undefined ? "–" : value >= 1e6 ? `${(value / 1e6).toFixed(1)} MB` : `${Math.ceil(value / 1e3)} kB`;
export const digits = (value, places = 3) => Number(value.toPrecision(places)).toString();

export function report(node, text, failed = false) {
  node.textContent = text;
  node.classList.toggle("error", failed);
}
