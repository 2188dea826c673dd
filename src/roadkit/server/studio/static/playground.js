// The playground: one prompt, up to eight columns, answered in one mixed batch and streamed together.

import { events, get } from "./api.js";
import { Column } from "./column.js";
import { byId, digits, perFrame, report } from "./dom.js";
import { asCurl, asPython } from "./snippets.js";
import { copyDialog } from "./dialogs.js";

const COLUMNS = 8;
const FIELDS = { prompt: "prompt", tokens: "max-tokens", temperature: "temperature", seed: "seed" };

export class Playground {
  #session;
  #columns = [];
  #reference = null;
  #names = [];
  #running = null;
  #flush = perFrame(() => {
    const growing = this.#columns.filter((column) => column.pending);
    growing.forEach((column) => column.flush());
    growing.forEach((column) => column.follow());
  });
  #remember = perFrame(() => this.#writeLink());

  constructor(session) {
    this.#session = session;
    byId("ask").addEventListener("submit", (event) => { event.preventDefault(); this.#run(); });
    byId("ask").addEventListener("input", this.#remember);
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
    });
    byId("stop").addEventListener("click", () => this.#running?.abort());
    byId("reseed").addEventListener("click", () => {
      byId("seed").value = Math.floor(Math.random() * 2 ** 31);
      if (Number(byId("temperature").value) === 0) byId("temperature").value = 0.8; // greedy answers have no seed
      byId("ask").requestSubmit();
    });
    byId("add-column").addEventListener("click", () => {
      this.#add(this.#columns.at(-1)?.expression ?? "");
      this.#columns.at(-1).input.focus();
      this.#changed();
    });
    byId("differences").addEventListener("change", () => this.#compare());
    for (const button of document.querySelectorAll("[data-copy]"))
      button.addEventListener("click", () => this.#copy(button.dataset.copy));
  }

  // Called whenever the panel comes into view; `state` is what a link said, if it said anything.
  async show(state) {
    this.#names = (await get("/v1/adapters")).data.map((entry) => entry.id);
    if (state.has("column") || state.has("prompt")) this.#readLink(state);
    else if (!this.#columns.length) this.#fill(this.#suggestions());
    this.#columns.forEach((column) => column.offer());
    byId("run").disabled = !this.#session.generates;
    if (!this.#session.generates) report(byId("run-status"), `${this.#session.model} is an encoder: it gives vectors and labels, and no text to compare`);
    this.#writeLink();
  }

  hide() {}

  // ---- columns ---------------------------------------------------------------------------------------------

  #suggestions() {
    const some = this.#names.slice(0, 4);
    const [first, second] = some;
    const columns = ["", ...some];
    if (first) columns.push(`${first}*0.5`, `-${first}`);
    if (second) columns.push(`${first}*0.7 + ${second}*0.6`);
    return columns.slice(0, COLUMNS);
  }

  #fill(expressions) {
    this.#running?.abort();
    this.#columns = [];
    byId("columns").replaceChildren();
    expressions.slice(0, COLUMNS).forEach((expression) => this.#add(expression));
    this.#reference = this.#columns[0];
    this.#changed();
  }

  #add(expression) {
    const column = new Column(expression, {
      names: () => this.#names,
      changed: this.#remember,
      removed: (one) => this.#drop(one),
      referred: (one) => { this.#reference = one; this.#changed(); this.#compare(); },
    });
    column.offer();
    this.#columns.push(column);
    byId("columns").append(column.element);
  }

  #drop(column) {
    this.#columns = this.#columns.filter((one) => one !== column);
    column.element.remove();
    if (this.#reference === column) this.#reference = this.#columns[0];
    this.#changed();
    byId("add-column").focus();
  }

  #changed() {
    this.#columns.forEach((column, index) => {
      column.place(index, this.#columns.length === 1);
      column.referenceButton.setAttribute("aria-pressed", String(column === this.#reference));
    });
    byId("add-column").disabled = this.#columns.length >= COLUMNS;
    this.#remember();
  }

  // ---- asking ----------------------------------------------------------------------------------------------

  #bodies() {
    const prompt = byId("prompt").value;
    const asked = this.#session.chats ? { messages: [{ role: "user", content: prompt }] } : { prompt };
    const settings = { max_tokens: Number(byId("max-tokens").value), temperature: Number(byId("temperature").value), seed: Number(byId("seed").value) };
    return this.#columns.map((column) => ({ model: column.expression || this.#session.model, ...asked, ...settings }));
  }

  async #run() {
    this.#running?.abort();
    const running = (this.#running = new AbortController());
    const columns = [...this.#columns];
    const started = performance.now();
    let batch = null;
    columns.forEach((column) => column.start());
    this.#busy(true);
    report(byId("run-status"), `Answering in ${columns.length} ${columns.length === 1 ? "column" : "columns"}`);
    try {
      for await (const event of events("/v1/studio/answers", { requests: this.#bodies() }, running.signal)) {
        if (event.batch) {
          batch = event.batch;
          continue;
        }
        const column = columns[event.column];
        if (event.text || event.tokens) column.append(event.text, event.tokens);
        if (event.error) column.fail(event.error);
        else if (event.finish_reason) column.finish(event);
        this.#flush();
      }
      if (this.#running === running) this.#conclude(columns, batch, (performance.now() - started) / 1000);
    } catch (error) {
      columns.forEach((column) => column.stop());
      if (this.#running === running) {
        const stopped = error.name === "AbortError";
        report(byId("run-status"), stopped ? "Stopped" : error.message, !stopped);
      }
    }
    if (this.#running === running) {
      this.#running = null;
      this.#busy(false);
      this.#compare();
    }
  }

  #busy(busy) {
    byId("stop").disabled = !busy;
    byId("columns").setAttribute("aria-busy", String(busy));
  }

  #conclude(columns, batch, seconds) {
    const failed = columns.filter((column) => column.state === "failed").length;
    const done = columns.length - failed;
    const parts = [`${done} ${done === 1 ? "answer" : "answers"}${failed ? `, ${failed} failed` : ""}`];
    if (batch?.tokens) {
      parts.push(`${batch.tokens} tokens in ${digits(seconds)} s`, `${batch.peak} at once in one batch`);
      parts.push(`${batch.steps} engine steps, one by one at least ${batch.tokens}`);
    }
    report(byId("run-status"), parts.join(" · "), done === 0);
  }

  // One column a frame, so that long answers do not hold the page up.
  #compare() {
    const wanted = byId("differences").checked ? this.#reference : null;
    const columns = [...this.#columns];
    const next = () => {
      const column = columns.shift();
      if (!column || this.#running) return;
      column.compare(wanted?.state === "done" && wanted !== column ? wanted.text : null);
      requestAnimationFrame(next);
    };
    next();
  }

  // ---- links and programs ----------------------------------------------------------------------------------

  #link() {
    const state = new URLSearchParams();
    for (const [name, id] of Object.entries(FIELDS)) state.set(name, byId(id).value);
    for (const column of this.#columns) state.append("column", column.expression);
    return `#playground?${state}`;
  }

  #writeLink() {
    if (!byId("playground").hidden) history.replaceState(null, "", this.#link());
  }

  #readLink(state) {
    for (const [name, id] of Object.entries(FIELDS)) if (state.has(name)) byId(id).value = state.get(name);
    const columns = state.getAll("column");
    const same = columns.length === this.#columns.length && columns.every((text, i) => text === this.#columns[i].expression);
    if (!same) this.#fill(columns.length ? columns : [""]);
  }

  #copy(kind) {
    const { chats, keyed } = this.#session;
    const path = chats ? "/v1/chat/completions" : "/v1/completions";
    if (kind === "link") copyDialog("A link to this comparison", `${location.origin}${location.pathname}${this.#link()}`);
    else if (kind === "curl") copyDialog("With curl", asCurl(location.origin, path, this.#bodies(), keyed));
    else copyDialog("In Python", asPython(location.origin, this.#bodies(), keyed));
  }
}
