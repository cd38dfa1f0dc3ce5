// Answers

function answered(text, found) {
  const answer = (found.predictions || [])[0] || {}, notes = (found.notes || [])[0] || {};
  const shown = answer.mentions ? marked(text, answer.mentions) : labelled(answer);
  fill("found", ...shown, ...remarks(notes), make("p", { class: "note" }, `${found.release}, version ${found.version}. ${found.disclaimer || ""}`));
  show("answer", true);
  $("answer").scrollIntoView({ block: "nearest" });
}

function labelled(answer) {
  const named = (answer.labels || []).join(", ") || answer.label || "No label";
  const sure = `Confidence ${percent(answer.confidence)}`;
  const unsure = answer.abstained && make("p", { class: "warn" }, "Abstained: less sure than the release's threshold, so not to be relied on.");
  const ranked = Object.entries(answer.probabilities).sort((one, other) => other[1] - one[1]);
  const rest = ranked.slice(MANY);
  const more = rest.length && make("details", {}, make("summary", {}, `${rest.length} less probable`), bars(rest, []));
  return [make("p", { class: "verdict" }, named), make("p", {}, sure), unsure, bars(ranked.slice(0, MANY), answer.labels || []), more];
}

function bars(rows, chosen) {
  return make("ol", { class: "bars", "aria-label": "Probabilities" }, ...rows.map(([label, value]) => {
    const bar = make("i");
    bar.style.width = 100 * value + "%";
    const track = make("span", { class: "track", "aria-hidden": "true" }, bar);
    return make("li", { class: chosen.includes(label) && "first" }, make("span", { class: "name" }, label), track, make("span", { class: "value" }, percent(value)));
  }));
}

function marked(text, mentions) {
  const characters = Array.from(text);  // places are counted in characters, not in UTF-16
  const kinds = [...new Set(mentions.map(one => one.kind))], read = make("p", { class: "read" });
  let at = 0;
  for (const one of [...mentions].sort((a, b) => a.start - b.start || b.end - a.end)) {
    if (one.start < at) continue;  // inside one that is marked already; the list below has it
    read.append(characters.slice(at, one.start).join(""));
    read.append(make("mark", { class: "k" + (kinds.indexOf(one.kind) % 6) }, characters.slice(one.start, one.end).join(""), make("small", {}, one.kind)));
    at = one.end;
  }
  read.append(characters.slice(at).join(""));
  const count = mentions.length === 1 ? "1 mention" : `${mentions.length || "No"} mentions`;
  const rows = mentions.slice(0, LISTED).map(one => make("tr", {}, make("th", { scope: "row" }, one.text), make("td", { class: "left" }, one.kind), make("td", {}, typeof one.confidence === "number" ? percent(one.confidence) : "")));
  const head = make("thead", {}, make("tr", {}, ...["Mention", "Kind", "Confidence"].map(name => make("th", { scope: "col", class: name === "Kind" && "left" }, name))));
  const table = make("div", { class: "scroll" }, make("table", {}, head, make("tbody", {}, ...rows)));
  return [make("p", { class: "verdict" }, count), read, mentions.length ? table : null];
}

function remarks({ masked, unlike_training: unlike }) {
  const counts = Object.entries(masked || {}).map(([kind, count]) => `${count} ${kind.replaceAll("_", " ")}`);
  return [
    counts.length && make("p", { class: "note" }, `Masked before the model read it: ${counts.join(", ")}.`),
    ...(unlike || []).map(said => make("p", { class: "warn" }, sentence(said))),
  ];
}

// The card

function tell(card) {
  const pair = ([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value));
  const facts = [["Release", `${card.release}, version ${card.version}`], ["Base model", card.base], ["Training", card.method], ["Published", card.created.slice(0, 10)]];
  fill("facts", ...facts.map(pair));
  fill("sentences", ...[...card.said, ...(card.notes ? [card.notes] : [])].map(text => make("li", {}, text)));
  figures(card);
  show("prompt", Boolean(card.system));
  $("system").textContent = card.system || "";
  show("labels", card.labels.length > 0);
  $("labels-title").textContent = `${card.labels.length} labels`;
  $("label-names").textContent = card.labels.join(", ");
  fill("origin", ...Object.entries(card.origin).map(pair));
  show("card", true);
}

function figures(card) {
  const tested = card.num_test_rows !== null, shown = value => make("td", {}, typeof value === "number" ? value.toFixed(4) : "");
  const titles = ["Figure", "Validation", ...(tested ? [`Test (${card.num_test_rows} rows)`] : [])];
  const head = make("thead", {}, make("tr", {}, ...titles.map(name => make("th", { scope: "col" }, name))));
  const rows = card.figures.map(one => make("tr", {}, make("th", { scope: "row" }, one.metric), shown(one.validation), tested ? shown(one.test) : null));
  fill("figures", make("caption", {}, "Figures on rows that it was not trained on"), head, make("tbody", {}, ...rows));
}
