// The form of a text, as the release's data has it

function form() {
  state.picked = {};
  fill("fields", ...state.card.form.fields.map(field));
  $("ask-title").textContent = { "/v1/extract": "Mark what a text mentions", "/v1/choose": `Which of ${state.card.labels.length} labels` }[state.card.path] || "Classify a text";
}

function field({ name, kind }) {
  const id = "field-" + name, label = make("label", { for: id }, words(name));
  if (kind === "terms") return picker(name, id);
  const entry = kind === "line" ? make("input", { id, required: true }) : make("textarea", { id, rows: 8, required: true });
  return make("div", { class: "field" }, label, entry);
}

function picker(name, id) {
  state.picked[name] = [];
  const known = state.card.terms, chips = make("ul", { class: "chips", "aria-label": "Picked " + name });
  const list = make("datalist", { id: id + "-terms" }, ...known.map(term => make("option", { value: term })));
  const note = known.length ? `One of ${known.length} that it was trained with; Enter adds it.` : "Enter adds it.";
  const entry = make("input", { id, list: list.id, "aria-describedby": id + "-note" });
  const said = make("span", { class: "note", role: "status" });
  const add = () => {
    const typed = entry.value.trim();
    if (!typed) return;
    const term = known.find(one => same(one, typed)) || typed;
    entry.value = "";
    if (state.picked[name].some(one => same(one, term))) return;
    state.picked[name].push(term);
    said.textContent = known.length && !known.includes(term) ? `${term} is not one that it was trained with.` : `${term} added.`;
    chips.append(make("li", {}, make("button", { type: "button", "aria-label": "Remove " + term, onclick: remove }, term)));
  };
  const remove = event => {
    const chip = event.currentTarget;
    state.picked[name] = state.picked[name].filter(one => one !== chip.textContent);
    said.textContent = `${chip.textContent} removed.`;
    chip.parentElement.remove();
    entry.focus();
  };
  entry.addEventListener("keydown", event => {
    if (event.key !== "Enter" || !entry.value.trim()) return;
    event.preventDefault();
    add();
  });
  entry.addEventListener("input", event => {  // one that was picked from the list, with the mouse or the keys
    if (event.inputType === "insertReplacementText" || !event.inputType) if (known.includes(entry.value)) add();
  });
  const button = make("button", { type: "button", class: "quiet", onclick: () => { add(); entry.focus(); } }, "Add");
  const label = make("label", { for: id }, words(name));
  state.picked[name].take = add;
  return make("div", { class: "field" }, label, make("div", { class: "row" }, entry, button), list, make("p", { class: "note", id: id + "-note" }, note), said, chips);
}

function written() {
  const { parts, fields, separator } = state.card.form, values = {};
  for (const { name, kind } of fields) {
    if (kind === "terms") state.picked[name].take?.();
    values[name] = kind === "terms" ? state.picked[name].join(separator) : $("field-" + name).value.trim();
    if (!values[name]) {
      $("field-" + name).focus();
      throw new Refusal(422, `${words(name)}: nothing was given`);
    }
  }
  return parts.map(([literal, name]) => literal + (name === null ? "" : values[name])).join("").trim();
}

async function ask(event) {
  event.preventDefault();
  const card = state.card;
  complain("");
  try {
    const text = written();
    $("send").disabled = true;
    $("asking").textContent = "Asking …";
    const found = await (await call(card.path, { model: card.id, text })).json();
    if (card === state.card) answered(text, found);
  } catch (error) {
    failed(error);
  } finally {
    $("send").disabled = false;
    $("asking").textContent = "";
  }
}

