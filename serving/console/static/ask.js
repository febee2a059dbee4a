// What the pages ask of the console. Every failure is an AskError with words for people and a code for programs.

export class AskError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

// Codes that say nothing about an image: nobody could be asked, or not now.
export const UNREACHED = ["server_error", "console_gone", "overloaded", "draining", "internal_error"];

export async function ask(path, options = {}) {
  const [response, body] = await answered(path, options);
  if (response.ok) return body;
  const { code = "console_error", message = `The console answered with status ${response.status}.` } = body?.error ?? {};
  throw new AskError(code, message);
}

async function answered(path, options) {
  try {
    const response = await fetch(path, options);
    const text = await response.text();
    return [response, text.startsWith("{") || response.ok ? JSON.parse(text) : {}];
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new AskError("console_gone", "The console does not answer: look whether it still runs in its terminal.");
  }
}

// Send a file as the body of a request.
export async function send(path, file, signal) {
  let bytes;
  try {
    bytes = await file.arrayBuffer();
  } catch {
    throw new AskError("unreadable_file", "The browser cannot read this file; a folder cannot be dropped.");
  }
  return ask(path, { method: "POST", body: bytes, headers: { "Content-Type": "application/octet-stream" }, signal });
}

// Send values as JSON.
export function sendJson(path, values = {}) {
  const headers = { "Content-Type": "application/json" };
  return ask(path, { method: "POST", headers, body: JSON.stringify(values) });
}
