// One column of the playground: an expression with its sliders, the answer as it streams, its figures.
//
//   const column = new Column("pirate*0.7 + brief", { names: () => […], changed, removed, referred });
//   column.start(); column.append("Arr", 1); column.finish({ finish_reason: "stop" });

import { el, digits } from "./dom.js";
import { format, parse } from "./expression.js";
import { differing } from "./words.js";

const [LEAST, MOST] = [-1, 2];
const FIGURES_EVERY = 200; // milliseconds
const FAR = 1e7; // pixels, beyond any answer's end

export class Column {
  constructor(expression, { names, changed, removed, referred }) {
    this.names = names;
    this.changed = changed;
    this.text = "";
    this.pending = "";
    this.tokens = 0;
    this.state = "idle"; // idle, running, done, failed
    this.number = el("span", { class: "index", "aria-hidden": "true" });
    this.input = el("input", {
      class: "expression mono", type: "text", maxlength: 1024, spellcheck: "false", autocomplete: "off",
      placeholder: "base model", oninput: () => { this.#drawChips(); changed(); },
    });
    this.referenceButton = el("button", {
      type: "button", class: "quiet icon", "aria-pressed": "false", title: "Compare the others with this one",
      onclick: () => referred(this),
    }, "≠");
    this.removeButton = el("button", { type: "button", class: "quiet icon", onclick: () => removed(this) }, "×");
    this.chips = el("ul", { class: "chips" });
    this.add = el("select", { class: "add", onchange: () => this.#added() });
    this.answer = el("div", { class: "answer", tabindex: 0, role: "region" });
    this.figures = el("p", { class: "figures" });
    this.element = el(
      "article", { class: "column" },
      el("header", {}, el("div", { class: "row" }, this.number, this.input, this.referenceButton, this.removeButton), this.chips, this.add),
      this.answer,
      el("footer", {}, this.figures),
    );
    this.expression = expression;
    this.#showFigures();
  }

  get expression() {
    return this.input.value.trim();
  }

  set expression(text) {
    this.input.value = text;
    this.#drawChips();
  }

  place(index, alone) {
    const label = `column ${index + 1}`;
    this.number.textContent = index + 1;
    this.element.setAttribute("aria-label", `C${label.slice(1)}`);
    this.input.setAttribute("aria-label", `Expression of ${label}`);
    this.add.setAttribute("aria-label", `Add an adapter to ${label}`);
    this.answer.setAttribute("aria-label", `Answer of ${label}`);
    this.referenceButton.setAttribute("aria-label", `Compare the others with ${label}`);
    this.removeButton.setAttribute("aria-label", `Remove ${label}`);
    this.removeButton.disabled = alone;
  }

  offer() {
    this.add.replaceChildren(el("option", { value: "" }, "+ adapter"), ...this.names().map((name) => el("option", { value: name }, name)));
    this.add.hidden = this.names().length === 0;
  }

  // ---- the answer ------------------------------------------------------------------------------------------

  start() {
    this.text = this.pending = "";
    this.tokens = 0;
    this.state = "running";
    this.error = this.reason = "";
    this.sent = performance.now();
    this.first = this.last = null;
    this.shown = 0;
    this.node = document.createTextNode("");
    this.answer.replaceChildren(this.node);
    this.element.classList.remove("failed");
    this.#showFigures();
  }

  append(text, tokens) {
    if (tokens && this.first === null) {
      this.first = performance.now();
      this.firstTokens = tokens;
    }
    this.last = performance.now();
    this.pending += text;
    this.tokens += tokens;
  }

  // Once a frame at most: what came since the last one. Figures that change every frame cannot be read.
  flush() {
    if (this.pending) {
      this.node.appendData(this.pending);
      this.text += this.pending;
      this.pending = "";
    }
    if (this.state === "running" && performance.now() - this.shown < FIGURES_EVERY) return;
    this.shown = performance.now();
    this.#showFigures();
  }

  // After every column has its text: moving one between two changes would lay the page out for each.
  follow() {
    this.answer.scrollTop = FAR;
  }

  finish(event) {
    this.state = "done";
    this.reason = event.finish_reason;
    this.decodeSeconds = event.decode_seconds;
    this.flush();
  }

  fail(message) {
    this.flush();
    this.state = "failed";
    this.error = message;
    this.element.classList.add("failed");
    this.answer.append(el("p", { class: "error" }, message));
    this.#showFigures();
  }

  stop() {
    if (this.state !== "running") return;
    this.state = "done";
    this.reason = "stopped";
    this.flush();
  }

  // Marks the words that the reference does not have; null shows the plain text.
  compare(reference) {
    if (this.state !== "done") return;
    const runs = reference === null ? [[this.text, false]] : differing(this.text, reference);
    this.answer.replaceChildren(...runs.map(([text, differs]) => (differs ? el("mark", {}, text) : text)));
  }

  #showFigures() {
    const parts = [];
    if (this.state === "idle") parts.push("not asked yet");
    else {
      if (this.first !== null) parts.push(`first ${Math.round(this.first - this.sent)} ms`);
      const seconds = (this.state === "done" && this.decodeSeconds) || (this.last - this.first) / 1000;
      const decoded = this.tokens - (this.firstTokens ?? 1);
      if (this.first !== null && decoded > 0 && seconds > 0) parts.unshift(`${digits(decoded / seconds)} tok/s`);
      parts.push(`${this.tokens} tokens`);
      if (this.state === "running") parts.push(this.first === null ? "waiting" : "…");
      else if (this.reason) parts.push({ stop: "ended", length: "limit" }[this.reason] ?? this.reason);
    }
    const text = this.state === "failed" ? "failed" : parts.join(" · ");
    if (this.figures.textContent !== text) this.figures.textContent = text;
  }

  // ---- the expression --------------------------------------------------------------------------------------

  #drawChips() {
    const terms = parse(this.expression);
    this.input.classList.toggle("unread", terms === null);
    this.chips.replaceChildren(...(terms ?? []).map((term, index) => this.#chip(terms, term, index)));
    this.chips.hidden = !terms?.length;
  }

  #chip(terms, term, index) {
    const value = el("output", { class: "mono" }, digits(term.strength));
    const slider = el("input", {
      type: "range", min: LEAST, max: MOST, step: 0.05, "aria-label": `Strength of ${term.name}`,
      oninput: () => {
        term.strength = Number(slider.value);
        value.textContent = digits(term.strength);
        this.input.value = format(terms);
        this.changed();
      },
    });
    slider.value = term.strength;
    const remove = el("button", {
      type: "button", class: "quiet icon", "aria-label": `Remove ${term.name}`,
      onclick: () => {
        this.expression = format(terms.toSpliced(index, 1));
        this.changed();
        (this.chips.querySelector("button") ?? this.input).focus();
      },
    }, "×");
    return el("li", {}, el("span", { class: "name mono", title: term.name }, term.name), slider, value, remove);
  }

  #added() {
    const name = this.add.value;
    this.add.value = "";
    if (!name) return;
    this.expression = this.expression ? `${this.expression} + ${name}` : name;
    this.changed();
    this.chips.querySelector("li:last-child input")?.focus();
  }
}
