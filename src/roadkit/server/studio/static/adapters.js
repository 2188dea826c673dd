// The adapters of the server: a table that keeps itself current, uploads, deletion, compositions to keep.

import { get, post, remove, upload } from "./api.js";
import { deleteDialog } from "./dialogs.js";
import { byId, bytes, count, el, report } from "./dom.js";

const [CONFIG, WEIGHTS] = ["adapter_config.json", "adapter_model.safetensors"];
const SHOWN = 200; // rows; the filter finds the others
const EVERY = 2000; // milliseconds between two looks

const path = (name) => `/v1/adapters/${name.split("/").map(encodeURIComponent).join("/")}`;

export class Adapters {
  #session;
  #entries = [];
  #rows = new Map();
  #files = { config: null, weights: null };
  #timer = null;

  constructor(session) {
    this.#session = session;
    byId("adapter-filter").addEventListener("input", () => this.#draw());
    const drop = byId("drop");
    for (const kind of ["dragenter", "dragover"])
      drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
    for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
    drop.addEventListener("drop", async (event) => { event.preventDefault(); this.#chose(...(await dropped(event.dataTransfer))); });
    byId("upload-files").addEventListener("change", (event) => this.#chose([...event.target.files], ""));
    byId("upload").addEventListener("submit", (event) => { event.preventDefault(); this.#upload(); });
    byId("compose").addEventListener("submit", (event) => { event.preventDefault(); this.#compose(); });
    const why = !session.admin ? "Changes need an admin's key." : !session.uploads ? "This server keeps no uploads: it was started without --registry." : "";
    for (const form of ["upload", "compose"]) {
      for (const control of byId(form).querySelectorAll("input, button")) control.disabled = Boolean(why);
      report(byId(`${form}-result`), why);
    }
  }

  async show() {
    await this.#refresh();
    clearInterval(this.#timer);
    this.#timer = setInterval(() => document.hidden || this.#refresh().catch(() => {}), EVERY);
  }

  hide() {
    clearInterval(this.#timer);
  }

  // ---- the table -------------------------------------------------------------------------------------------

  async #refresh() {
    this.#entries = (await get("/v1/studio/adapters")).data;
    this.#draw();
  }

  #draw() {
    const wanted = byId("adapter-filter").value.trim().toLowerCase();
    const found = this.#entries.filter((entry) => entry.id.toLowerCase().includes(wanted));
    const visible = found.slice(0, SHOWN);
    const body = byId("adapter-table").tBodies[0];
    const rows = visible.map((entry) => this.#row(entry));
    if (rows.length !== body.rows.length || rows.some((row, i) => row !== body.rows[i])) body.replaceChildren(...rows);
    if (!rows.length) body.append(el("tr", {}, el("td", { colspan: 9, class: "muted" }, this.#entries.length ? "No name contains this." : "No adapters yet: upload one, or start the server with --adapters.")));
    const names = new Set(this.#entries.map((entry) => entry.id));
    for (const name of this.#rows.keys()) if (!names.has(name)) this.#rows.delete(name);
    const text = found.length > SHOWN ? `${SHOWN} of ${count(found.length)}` : count(found.length);
    if (byId("adapter-count").textContent !== text) byId("adapter-count").textContent = text;
  }

  // A row is built once for what it says, so that focus stays where it is.
  #row(entry) {
    const says = JSON.stringify(entry);
    const known = this.#rows.get(entry.id);
    if (known?.says === says) return known.row;
    const variant = entry.variant ? `${entry.variant}, g = ${entry.group_size}` : "–";
    const query = new URLSearchParams({ model: entry.id });
    const actions = el("td", { class: "actions" },
      el("a", { href: `#anatomy?${query}`, "aria-label": `Anatomy of ${entry.id}` }, "Anatomy"),
      el("a", { href: `#playground?${new URLSearchParams([["column", ""], ["column", entry.id]])}`, "aria-label": `Try ${entry.id}` }, "Try"),
      entry.deletable && el("button", { type: "button", class: "quiet", "aria-label": `Delete ${entry.id}`, onclick: () => this.#delete(entry.id) }, "Delete") || null,
    );
    const row = el("tr", {},
      el("th", { scope: "row", class: "mono" }, entry.id, entry.public ? null : el("span", { class: "badge" }, "private")),
      el("td", {}, variant),
      el("td", { class: "number" }, count(entry.layers)),
      el("td", { class: "number" }, count(entry.parameters)),
      el("td", { class: "number" }, bytes(entry.bytes)),
      el("td", { class: "mono", title: entry.version ?? "read when first used" }, entry.version?.slice(0, 8) ?? "–"),
      el("td", {}, entry.resident ? el("span", { class: "badge on" }, entry.pinned ? "pinned" : "yes") : el("span", { class: "muted" }, "no")),
      el("td", { class: "number" }, count(entry.answers)),
      actions,
    );
    this.#rows.set(entry.id, { says, row });
    return row;
  }

  async #delete(name) {
    if (!(await deleteDialog(name))) return;
    try {
      await remove(path(name));
      report(byId("upload-result"), `${name} is deleted.`);
    } catch (error) {
      report(byId("upload-result"), error.message, true);
    }
    await this.#refresh();
    byId("adapter-filter").focus();
  }

  // ---- uploads ---------------------------------------------------------------------------------------------

  #chose(files, folder) {
    for (const file of files) {
      if (file.name.endsWith(".json") && (file.name === CONFIG || !this.#files.config)) this.#files.config = file;
      if (file.name.endsWith(".safetensors")) this.#files.weights = file;
    }
    const { config, weights } = this.#files;
    const parts = [config, weights].filter(Boolean).map((file) => `${file.name} (${bytes(file.size)})`);
    byId("upload-chosen").textContent = parts.join(", ") || "no .json and no .safetensors file among these";
    if (folder && !byId("upload-name").value) byId("upload-name").value = folder;
    report(byId("upload-result"), "");
  }

  async #upload() {
    const result = byId("upload-result");
    const name = byId("upload-name").value.trim();
    const { config, weights } = this.#files;
    const missing = [!config && CONFIG, !weights && WEIGHTS].filter(Boolean);
    if (missing.length) return report(result, `${missing.join(" and ")} ${missing.length > 1 ? "are" : "is"} missing.`, true);
    if (!name) return report(result, "Give it a name.", true);
    const form = new FormData();
    form.set("name", name);
    form.set("pinned", String(byId("upload-pinned").checked));
    form.set("config", config);
    form.set("weights", weights);
    report(result, "Uploading…");
    try {
      const entry = await upload("/v1/adapters", form);
      report(result, `${entry.id} is served, version ${entry.version.slice(0, 8)}.`);
      this.#files = { config: null, weights: null };
      byId("upload").reset();
      byId("upload-chosen").textContent = `${CONFIG}, ${WEIGHTS}`;
      await this.#refresh();
    } catch (error) {
      report(result, error.message, true);
    }
  }

  async #compose() {
    const result = byId("compose-result");
    const [expression, name] = [byId("compose-expression").value.trim(), byId("compose-name").value.trim()];
    if (!expression || !name) return report(result, "Give an expression and a name.", true);
    try {
      const entry = await post(`${path(name)}/compose`, { expression });
      report(result, `${entry.id} is served, version ${entry.version.slice(0, 8)}.`);
      byId("compose").reset();
      await this.#refresh();
    } catch (error) {
      report(result, error.message, true);
    }
  }
}

// The files of a drop and the name of the folder they came in, '' for loose files.
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const folder = entries.find((entry) => entry.isDirectory);
  if (!folder) return [[...transfer.files], ""];
  const inside = await new Promise((resolve, reject) => folder.createReader().readEntries(resolve, reject));
  const files = inside.filter((entry) => entry.isFile).map((entry) => new Promise((resolve, reject) => entry.file(resolve, reject)));
  return [await Promise.all(files), folder.name];
}
