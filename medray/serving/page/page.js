"use strict";
// What a server sent is only ever put into text nodes.
const $ = id => document.getElementById(id);
const CHAT = "/v1/chat/completions", KEY = "medray-token", MANY = 12, LISTED = 60;
const state = { cards: [], card: null, picked: {}, turns: [], stopper: null };

function make(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter(child => child !== undefined && child !== null));
  return made;
}

const show = (id, shown) => { $(id).hidden = !shown; };
const fill = (id, ...children) => $(id).replaceChildren(...children.filter(Boolean));
const words = name => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
const percent = value => value > 0 && value < 0.0005 ? "< 0.1 %" : (100 * value).toFixed(1) + " %";
const same = (one, other) => one.toLowerCase() === other.toLowerCase();

function sentence(text) {
  const said = String(text).trim();
  return said.charAt(0).toUpperCase() + said.slice(1) + (/[.!?]$/.test(said) ? "" : ".");
}

function complain(text) {
  $("problem").textContent = text ? sentence(text) : "";
  show("problem", Boolean(text));
}

// Asking

class Refusal extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function call(path, body, signal) {
  const headers = { accept: "application/json" }, token = sessionStorage.getItem(KEY);
  if (token) headers.authorization = "Bearer " + token;
  if (body) headers["content-type"] = "application/json";
  const options = { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body), cache: "no-store" };
  let found;
  try {
    found = await fetch(path.replace(/^\//, ""), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server does not answer");
  }
  if (found.ok) return found;
  throw new Refusal(found.status, await reason(found));
}

async function reason(found) {
  const wait = Number(found.headers.get("retry-after"));
  let said = "The server answered with status " + found.status;
  try {
    said = (await found.json()).error.message;
  } catch { /* a proxy's own page says nothing that helps */ }
  return wait ? sentence(said) + ` It can be asked again in ${wait} second${wait === 1 ? "" : "s"}.` : said;
}

function failed(error) {
  if (!(error instanceof Refusal)) {
    complain("The page could not read the answer");
    throw error;
  }
  if (error.status !== 401) return complain(error.message);
  const given = sessionStorage.getItem(KEY) !== null;
  sessionStorage.removeItem(KEY);
  for (const id of ["served", "ask", "chat", "card"]) show(id, false);
  show("access", true);
  complain(given ? "This token is not valid here" : "");
  $("token").focus();
}

async function load() {
  complain("");
  let found;
  try {
    found = await (await call("v1/releases")).json();
  } catch (error) {
    return failed(error);
  }
  show("access", false);
  state.cards = found.data;
  const others = found.unavailable.map(one => make("option", { disabled: true }, one.id + " (not available now)"));
  fill("release", ...found.data.map(card => make("option", { value: card.id }, card.id)), ...others);
  show("served", true);
  if (!found.data.length) return complain("No release answers now: " + found.unavailable.map(one => one.message).join("; "));
  const wanted = decodeURIComponent(location.hash.slice(1));
  choose(found.data.some(card => card.id === wanted) ? wanted : found.data[0].id);
}

function choose(id) {
  stop();
  const card = state.card = state.cards.find(one => one.id === id);
  $("release").value = id;
  history.replaceState(null, "", "#" + encodeURIComponent(id));
  $("about").textContent = `${words(card.task)}, version ${card.version}; programs ask it at ${card.path}.`;
  const talks = card.path === CHAT;
  show("ask", !talks);
  show("chat", talks);
  show("answer", false);
  complain("");
  if (talks) converse(); else form();
  tell(card);
}

$("access").addEventListener("submit", event => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("token").value.trim());
  $("token").value = "";
  load();
});
$("release").addEventListener("change", event => choose(event.target.value));
$("question").addEventListener("submit", ask);
$("clear").addEventListener("click", () => { form(); show("answer", false); complain(""); $("fields").querySelector("input,textarea").focus(); });
$("speak").addEventListener("submit", say);
$("stop").addEventListener("click", stop);
$("anew").addEventListener("click", () => { stop(); converse(); complain(""); $("said").focus(); });
$("said").addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("speak").requestSubmit();
});
load();
