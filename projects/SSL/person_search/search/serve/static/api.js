// Requests to the server. Every error has one line that says what is wrong.

export async function send(method, path, body, signal) {
  const options = { method, signal };
  if (body instanceof FormData) options.body = body;
  else if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { "Content-Type": "application/json" };
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (answer.status === 401 && location.pathname !== "/login") location.assign("/login");
  if (!answer.ok) throw new Error(await complaint(answer));
  if (answer.status === 204) return null;
  const type = answer.headers.get("Content-Type") || "";
  return type.startsWith("application/json") ? answer.json() : answer.blob();
}

async function complaint(answer) {
  try {
    return sentence((await answer.json()).error);
  } catch {
    return `The server answered with error ${answer.status}.`;
  }
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

export const get = (path, signal) => send("GET", path, undefined, signal);
export const post = (path, body, signal) => send("POST", path, body, signal);
export const cropUrl = (id) => `/api/detections/${encodeURIComponent(id)}/crop`;
export const frameUrl = (id) => `/api/detections/${encodeURIComponent(id)}/frame`;
