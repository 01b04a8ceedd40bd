// What the server says. Pictures have the start of the server and the last correction in their addresses.

import { say } from "./dom.js";

let started = "";

async function answer(response) {
  const told = await response.json().catch(() => ({ error: `the server said ${response.status}` }));
  if (!response.ok) throw new Error(told.error || `the server said ${response.status}`);
  return told;
}

export async function get(path, query = "") {
  return answer(await fetch(query ? `${path}?${query}` : path));
}

export async function about() {
  const run = await get("/api/run");
  started = run.started;
  return run;
}

export async function correct(correction) {
  const headers = { "content-type": "application/json", "x-fmwsss": "1" };
  return answer(await fetch("/api/corrections", { method: "POST", headers, body: JSON.stringify(correction) }));
}

export function address(path, values) {
  const query = new URLSearchParams(values);
  query.set("s", started);
  return `${path}?${query}`;
}

export function told(error) {
  say(error.message);
}
