// Typed questions about the text of the form

function typedForm() {
  const { request, path } = state.card;
  show("typed", Boolean(request));
  $("typed").open = path === DECISIONS;
  $("questions").value = request ? JSON.stringify(request.questions, null, 1) : "";
}

async function askTyped(event) {
  event.preventDefault();
  const card = state.card;
  await answerWith($("send-questions"), async () => {
    const body = { model: card.id, input: composeText(), questions: typedQuestions(), ...cited("citations", card) };
    const response = await (await call(DECISIONS, body)).json();
    if (card === state.card) showDecisions(body.input, response);
  });
}

function typedQuestions() {
  try {
    return JSON.parse($("questions").value);
  } catch {
    throw new Refusal(422, "Questions: this is not JSON");
  }
}

function showDecisions(text, response) {
  const answers = response.answers.map((answer, place) => make("div", { class: "decision" }, make("h4", {}, answer.name || `Question ${place + 1}`), ...decisionParts(answer), ...citationParts(text, answer.citations), ...whyParts(text, [String(answer.choice ?? answer.name)])));
  fill("result", ...answers, ...remarks(response.notes[0] || {}), make("p", { class: "note" }, `${response.release}, version ${response.version}. ${response.disclaimer}`));
  show("answer", true);
  $("answer").scrollIntoView({ block: "nearest" });
}

function decisionParts(answer) {
  const sure = `Confidence ${percent(answer.answer_confidence)}`;
  if (answer.type === "refusal") return [make("p", { class: "warn" }, `Abstained. ${sure}${answer.threshold === null ? "" : `, below the threshold of ${percent(answer.threshold)}`}.`)];
  if (answer.type === "predicate") {
    const title = answer.decision ? "Yes" : "No", rows = [["Yes", answer.probability], ["No", 1 - answer.probability]];
    return [make("p", { class: "verdict" }, title), make("p", {}, sure), bars(rows, [title])];
  }
  const rows = answer.probabilities.map(one => [String(one.label ?? one.value), one.probability]);
  if (answer.type === "score") return [make("p", { class: "verdict" }, answer.score.toFixed(2)), make("p", {}, sure), bars(rows, [])];
  rows.sort((one, other) => other[1] - one[1]);
  return [make("p", { class: "verdict" }, String(answer.choice)), make("p", {}, sure), bars(rows, [String(answer.choice)])];
}
