// The page's dialogs: a key, a confirmation, a text to copy.

import { byId } from "./dom.js";

for (const button of document.querySelectorAll("[data-close]"))
  button.addEventListener("click", () => button.closest("dialog").close());

// Resolves to the key once one is given; there is no way around it.
export function keyDialog(message) {
  const dialog = byId("key-dialog");
  byId("key-error").textContent = message;
  byId("key").value = "";
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  dialog.showModal();
  return new Promise((resolve) => {
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const key = byId("key").value.trim();
      byId("key").value = "";
      dialog.close();
      resolve(key);
    }, { once: true });
  });
}

// Resolves to whether the person said yes.
export function deleteDialog(name) {
  const dialog = byId("delete-dialog");
  byId("delete-name").textContent = name;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const confirm = () => dialog.close("delete");
    byId("delete-confirm").addEventListener("click", confirm);
    dialog.addEventListener("close", () => {
      byId("delete-confirm").removeEventListener("click", confirm);
      resolve(dialog.returnValue === "delete");
    }, { once: true });
  });
}

export function copyDialog(title, text) {
  byId("copy-title").textContent = title;
  byId("copy-text").value = text;
  byId("copy-status").textContent = "";
  byId("copy-dialog").showModal();
}

byId("copy-button").addEventListener("click", async () => {
  const field = byId("copy-text");
  field.select();
  try {
    await navigator.clipboard.writeText(field.value);
    byId("copy-status").textContent = "Copied";
  } catch {
    byId("copy-status").textContent = "Selected: press Ctrl+C"; // pages without TLS have no clipboard
  }
});
