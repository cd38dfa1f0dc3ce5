// Answers

function showAnswer(text, response) {
  const answer = (response.predictions || [])[0] || {}, notes = (response.notes || [])[0] || {};
  const parts = answer.mentions ? mentionParts(text, answer.mentions) : labelParts(answer);
  fill("result", ...parts, ...citationParts(text, answer.citations), ...whyParts(text, answer.labels || []), ...remarks(notes), make("p", { class: "note" }, `${response.release}, version ${response.version}. ${response.disclaimer || ""}`));
  show("answer", true);
  $("answer").scrollIntoView({ block: "nearest" });
}

function labelParts(answer) {
  const title = (answer.labels || []).join(", ") || answer.label || "No label";
  const sure = `Confidence ${percent(answer.confidence)}`;
  const unsure = answer.abstained && make("p", { class: "warn" }, "Abstained: the confidence is below the release's threshold. Do not rely on this answer.");
  const byProbability = Object.entries(answer.probabilities).sort((one, other) => other[1] - one[1]);
  const rest = byProbability.slice(MANY);
  const more = rest.length && make("details", {}, make("summary", {}, `${rest.length} less probable`), bars(rest, []));
  return [make("p", { class: "verdict" }, title), make("p", {}, sure), unsure, bars(byProbability.slice(0, MANY), answer.labels || []), more];
}

function bars(rows, labels) {
  return make("ol", { class: "bars", "aria-label": "Probabilities" }, ...rows.map(([label, value]) => {
    const bar = make("i");
    bar.style.width = 100 * value + "%";
    const track = make("span", { class: "track", "aria-hidden": "true" }, bar);
    return make("li", { class: labels.includes(label) && "first" }, make("span", { class: "name" }, label), track, make("span", { class: "value" }, percent(value)));
  }));
}

function marks(text, spans, kinds = [...new Set(spans.map(one => one.kind))]) {
  const characters = Array.from(text);  // positions count characters, not UTF-16 units
  const read = make("p", { class: "read" });
  let at = 0;
  for (const one of [...spans].sort((a, b) => a.start - b.start || b.end - a.end)) {
    if (one.start < at) continue;  // inside a marked mention; the list below has it
    read.append(characters.slice(at, one.start).join(""));
    read.append(make("mark", { class: "k" + (kinds.indexOf(one.kind) % 6) }, characters.slice(one.start, one.end).join(""), make("small", {}, one.kind)));
    at = one.end;
  }
  read.append(characters.slice(at).join(""));
  return read;
}

function citationParts(text, citations) {
  if (!citations) return [];
  if (!citations.sentences.length) return [make("p", { class: "note" }, "The answer rests on no single sentence.")];
  const points = value => (value < 0 ? "falls" : "rises") + ` by ${Math.abs(100 * value).toFixed(1)} points`;
  const spans = citations.sentences.map((one, place) => ({ ...one, kind: String(place + 1) }));
  const figures = `The answer rests on the marked sentences, 1 first. Without them its probability ${points(-citations.comprehensiveness)}; with them alone it ${points(-citations.sufficiency)}.`;
  return [marks(text, spans), make("p", { class: "note" }, figures)];
}

// A button per label, which marks the words behind it

function whyParts(text, labels) {
  const card = state.card;
  if (!card.has_explanations) return [];
  return labels.filter(label => card.labels.includes(label)).slice(0, MANY).map(label => {
    const words = make("div"), why = make("button", { type: "button", class: "quiet", "aria-expanded": "false" }, labels.length > 1 ? `Why ${label}?` : "Why?");
    const open = isOpen => { words.hidden = !isOpen; why.setAttribute("aria-expanded", String(isOpen)); };
    let stage = "new";
    why.addEventListener("click", async () => {
      if (stage === "ready") open(words.hidden);
      if (stage !== "new") return;
      complain("");
      stage = "asking";
      words.replaceChildren(make("p", { class: "note" }, "Explaining …"));
      try {
        const response = await (await call(EXPLAIN, { model: card.id, text, label })).json();
        words.replaceChildren(...explanationParts(text, response));
        open(true);
        stage = "ready";
      } catch (error) {
        words.replaceChildren();
        stage = "new";
        report(error);
      }
    });
    return make("div", { class: "why" }, why, words);
  });
}

function explanationParts(text, { label, words, error, method, caveat }) {
  const strength = one => Math.abs(one.share), most = Math.max(...words.map(strength), 0);
  const strongest = [...words].sort((a, b) => strength(b) - strength(a)).slice(0, MARKED).filter(one => one.share && strength(one) >= most / 10);
  const spans = strongest.map(one => ({ ...one, kind: one.share > 0 ? "for" : "against" })).sort((a, b) => b.share - a.share);
  const note = `Marked words speak for or against “${label}” (${method}, completeness error ${percent(error)}). ${caveat}`;
  return [marks(text, spans, ["for", "against"]), make("p", { class: "note" }, note)];
}

function mentionParts(text, mentions) {
  const read = marks(text, mentions);
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
    ...(unlike || []).map(text => make("p", { class: "warn" }, sentence(text))),
  ];
}

// The card

function describe(card) {
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
  const hasTest = card.num_test_rows !== null, cell = value => make("td", {}, typeof value === "number" ? value.toFixed(4) : "");
  const titles = ["Metric", "Validation", ...(hasTest ? [`Test (${card.num_test_rows} rows)`] : [])];
  const head = make("thead", {}, make("tr", {}, ...titles.map(name => make("th", { scope: "col" }, name))));
  const rows = card.figures.map(one => make("tr", {}, make("th", { scope: "row" }, one.metric), cell(one.validation), hasTest ? cell(one.test) : null));
  fill("figures", make("caption", {}, "Metrics on rows that were not used for training"), head, make("tbody", {}, ...rows));
}
