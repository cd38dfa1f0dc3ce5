// The form of a text, with the fields of the release's training data

function form() {
  state.terms = {};
  fill("fields", ...state.card.form.fields.map(field));
  typedForm();
  show("citations-field", state.card.path !== "/v1/extract");
  $("ask-title").textContent = { [DECISIONS]: "Ask about a text", "/v1/extract": "Mark what a text mentions", "/v1/choose": `Which of ${state.card.labels.length} labels` }[state.card.path] || "Classify a text";
}

function field({ name, kind }) {
  const id = "field-" + name, label = make("label", { for: id }, words(name));
  if (kind === "terms") return picker(name, id);
  const entry = kind === "line" ? make("input", { id, required: true }) : make("textarea", { id, rows: 8, required: true });
  return make("div", { class: "field" }, label, entry);
}

function picker(name, id) {
  state.terms[name] = [];
  const terms = state.card.terms, chips = make("ul", { class: "chips", "aria-label": "Picked " + name });
  const list = make("datalist", { id: id + "-terms" }, ...terms.map(term => make("option", { value: term })));
  const note = terms.length ? `The training data has ${terms.length} terms. Press Enter to add one.` : "Press Enter to add a term.";
  const entry = make("input", { id, list: list.id, "aria-describedby": id + "-note" });
  const status = make("span", { class: "note", role: "status" });
  const add = () => {
    const text = entry.value.trim();
    if (!text) return;
    const term = terms.find(one => same(one, text)) || text;
    entry.value = "";
    if (state.terms[name].some(one => same(one, term))) return;
    state.terms[name].push(term);
    status.textContent = terms.length && !terms.includes(term) ? `${term} does not occur in the training data.` : `${term} added.`;
    chips.append(make("li", {}, make("button", { type: "button", "aria-label": "Remove " + term, onclick: remove }, term)));
  };
  const remove = event => {
    const chip = event.currentTarget;
    state.terms[name] = state.terms[name].filter(one => one !== chip.textContent);
    status.textContent = `${chip.textContent} removed.`;
    chip.parentElement.remove();
    entry.focus();
  };
  entry.addEventListener("keydown", event => {
    if (event.key !== "Enter" || !entry.value.trim()) return;
    event.preventDefault();
    add();
  });
  entry.addEventListener("input", event => {  // a term picked from the list
    if (event.inputType === "insertReplacementText" || !event.inputType) if (terms.includes(entry.value)) add();
  });
  const button = make("button", { type: "button", class: "quiet", onclick: () => { add(); entry.focus(); } }, "Add");
  const label = make("label", { for: id }, words(name));
  state.terms[name].take = add;
  return make("div", { class: "field" }, label, make("div", { class: "row" }, entry, button), list, make("p", { class: "note", id: id + "-note" }, note), status, chips);
}

function composeText() {
  const { parts, fields, separator } = state.card.form, values = {};
  for (const { name, kind } of fields) {
    if (kind === "terms") state.terms[name].take?.();
    values[name] = kind === "terms" ? state.terms[name].join(separator) : $("field-" + name).value.trim();
    if (!values[name]) {
      $("field-" + name).focus();
      throw new Refusal(422, `${words(name)}: this field is empty`);
    }
  }
  return parts.map(([literal, name]) => literal + (name === null ? "" : values[name])).join("").trim();
}

async function ask(event) {
  event.preventDefault();
  const card = state.card;
  if (card.path === DECISIONS) return askTyped(event);
  await answerWith($("send"), async () => {
    const text = composeText();
    const response = await (await call(card.path, { model: card.id, text, ...cited("citations", card) })).json();
    if (card === state.card) showAnswer(text, response);
  });
}

const cited = (id, card) => card.path !== "/v1/extract" && $(id).checked ? { citations: true } : {};

async function answerWith(button, request) {
  complain("");
  try {
    button.disabled = true;
    $("ask-status").textContent = "Asking …";
    await request();
  } catch (error) {
    report(error);
  } finally {
    button.disabled = false;
    $("ask-status").textContent = "";
  }
}
