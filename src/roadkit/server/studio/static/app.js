// The Studio: finds out what the server is, then shows the panel that the address names.

import { get, onMissingKey } from "./api.js";
import { Adapters } from "./adapters.js";
import { Anatomy } from "./anatomy.js";
import { keyDialog } from "./dialogs.js";
import { byId, report } from "./dom.js";
import { Load } from "./load.js";
import { Playground } from "./playground.js";

const THEMES = { auto: "light dark", light: "light", dark: "dark" };

let panels = {};
let shown = null;

async function route() {
  const [wanted, query = ""] = location.hash.slice(1).split(/\?(.*)/s);
  const name = wanted in panels ? wanted : "playground";
  if (shown !== name) {
    panels[shown]?.hide();
    for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== name;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    shown = name;
  }
  const banner = byId("banner");
  try {
    await panels[name].show(new URLSearchParams(query));
    banner.hidden = true;
  } catch (error) {
    report(banner, error.message, true);
    banner.hidden = false;
  }
}

function theme() {
  const button = byId("theme");
  const names = Object.keys(THEMES);
  const chosen = names[(names.indexOf(button.dataset.theme ?? "auto") + 1) % names.length];
  button.dataset.theme = chosen;
  button.textContent = chosen;
  button.setAttribute("aria-label", `Theme: ${chosen}`);
  document.documentElement.style.colorScheme = THEMES[chosen];
}

async function start() {
  byId("theme").addEventListener("click", theme);
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("main").focus();
  });
  onMissingKey(keyDialog);
  const session = await get("/v1/studio/session");
  byId("model").textContent = session.model;
  panels = {
    playground: new Playground(session),
    adapters: new Adapters(session),
    anatomy: new Anatomy(session),
    load: new Load(session),
  };
  addEventListener("hashchange", route);
  await route();
}

start().catch((error) => {
  report(byId("banner"), error.message, true);
  byId("banner").hidden = false;
});
