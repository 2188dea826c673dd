// The server's API. The key lives in this module's memory and nowhere else.
//
//   await get("/v1/studio/session")
//   for await (const event of events("/v1/studio/answers", body, signal)) …

let key = "";
let askForKey = async () => false;

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// `ask(message)` shows a dialog and resolves to a key; requests that got 401 are then sent again.
export function onMissingKey(ask) {
  let asking = null;
  askForKey = async (message) => {
    asking ||= ask(message).finally(() => (asking = null));
    key = await asking;
  };
}

async function send(path, options) {
  for (;;) {
    const used = key;
    const headers = { "X-Roadkit-Request": "studio", ...options.headers };
    if (used) headers.Authorization = `Bearer ${used}`;
    let response;
    try {
      response = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "the server does not answer; is it still running?");
    }
    if (response.ok) return response;
    const message = await explanation(response);
    if (response.status !== 401) throw new ApiError(response.status, message);
    if (key === used) await askForKey(used ? message : "");
  }
}

async function explanation(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

const json = (body) => ({ headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export const get = async (path, signal) => (await send(path, { signal })).json();
export const post = async (path, body) => (await send(path, { method: "POST", ...json(body) })).json();
export const remove = async (path) => (await send(path, { method: "DELETE" })).json();
export const upload = async (path, form) => (await send(path, { method: "POST", body: form })).json();

// The objects of a server-sent event stream, until `[DONE]`.
export async function* events(path, body, signal) {
  const response = await send(path, { method: "POST", signal, ...json(body) });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new ApiError(0, "the stream broke off");
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: /, "");
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
