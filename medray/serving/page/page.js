"use strict";
// Text from the server only goes into text nodes.
const $ = id => document.getElementById(id);
const CHAT = "/v1/chat/completions", DECISIONS = "/v1/decisions", EXPLAIN = "/v1/explain", KEY = "medray-token", MANY = 12, MARKED = 10, LISTED = 60;
const state = { cards: [], card: null, terms: {}, turns: [], stopper: null };

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter(child => child !== undefined && child !== null));
  return element;
}

const show = (id, isVisible) => { $(id).hidden = !isVisible; };
const fill = (id, ...children) => $(id).replaceChildren(...children.filter(Boolean));
const words = name => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
const percent = value => value > 0 && value < 0.0005 ? "< 0.1 %" : (100 * value).toFixed(1) + " %";
const same = (one, other) => one.toLowerCase() === other.toLowerCase();

function sentence(text) {
  const plain = String(text).trim();
  return plain.charAt(0).toUpperCase() + plain.slice(1) + (/[.!?]$/.test(plain) ? "" : ".");
}

function complain(text) {
  $("problem").textContent = text ? sentence(text) : "";
  show("problem", Boolean(text));
}

// Requests

class Refusal extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function call(path, body, signal) {
  const headers = { accept: "application/json" }, token = sessionStorage.getItem(KEY);
  if (token) headers.authorization = "Bearer " + token;
  if (body) headers["content-type"] = "application/json";
  const options = { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body), cache: "no-store" };
  let response;
  try {
    response = await fetch(path.replace(/^\//, ""), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server does not answer");
  }
  if (response.ok) return response;
  throw new Refusal(response.status, await reason(response));
}

async function reason(response) {
  const wait = Number(response.headers.get("retry-after"));
  let message = "The server answered with status " + response.status;
  try {
    message = (await response.json()).error.message;
  } catch { /* a proxy sent a page of its own */ }
  return wait ? sentence(message) + ` Retry after ${wait} second${wait === 1 ? "" : "s"}.` : message;
}

function report(error) {
  if (!(error instanceof Refusal)) {
    complain("The page could not read the answer");
    throw error;
  }
  if (error.status !== 401) return complain(error.message);
  const hadToken = sessionStorage.getItem(KEY) !== null;
  sessionStorage.removeItem(KEY);
  for (const id of ["served", "ask", "chat", "card"]) show(id, false);
  show("access", true);
  complain(hadToken ? "This token is not valid here" : "");
  $("token").focus();
}

async function load() {
  complain("");
  let releases;
  try {
    releases = await (await call("v1/releases")).json();
  } catch (error) {
    return report(error);
  }
  show("access", false);
  state.cards = releases.data;
  const others = releases.unavailable.map(one => make("option", { disabled: true }, one.id + " (unavailable now)"));
  fill("release", ...releases.data.map(card => make("option", { value: card.id }, card.id)), ...others);
  show("served", true);
  if (!releases.data.length) return complain("No release answers now: " + releases.unavailable.map(one => one.message).join("; "));
  const id = decodeURIComponent(location.hash.slice(1));
  choose(releases.data.some(card => card.id === id) ? id : releases.data[0].id);
}

function choose(id) {
  stop();
  const card = state.card = state.cards.find(one => one.id === id);
  $("release").value = id;
  history.replaceState(null, "", "#" + encodeURIComponent(id));
  $("about").textContent = `${words(card.task)}, version ${card.version}; programs use ${card.path}.`;
  const talks = card.path === CHAT;
  show("ask", !talks);
  show("chat", talks);
  show("answer", false);
  complain("");
  if (talks) converse(); else form();
  describe(card);
}

$("access").addEventListener("submit", event => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("token").value.trim());
  $("token").value = "";
  load();
});
$("release").addEventListener("change", event => choose(event.target.value));
$("question").addEventListener("submit", ask);
$("decide").addEventListener("submit", askTyped);
$("clear").addEventListener("click", () => { form(); show("answer", false); complain(""); $("fields").querySelector("input,textarea").focus(); });
$("chat-form").addEventListener("submit", sendMessage);
$("stop").addEventListener("click", stop);
$("new-chat").addEventListener("click", () => { stop(); converse(); complain(""); $("message").focus(); });
$("message").addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("chat-form").requestSubmit();
});
load();
