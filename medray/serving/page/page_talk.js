// Conversations

function converse() {
  state.turns = [];
  fill("transcript");
  $("chat-status").textContent = "";
}

function stop() {
  state.stopper?.abort();
}

function turn(role, text) {
  const paragraph = make("p", {}, text);
  $("transcript").append(make("div", { class: "turn " + role }, make("b", {}, role === "user" ? "You" : state.card.id), paragraph));
  $("transcript").scrollTop = $("transcript").scrollHeight;
  return paragraph;
}

async function sendMessage(event) {
  event.preventDefault();
  const text = $("message").value.trim(), turns = state.turns;
  if (!text || state.stopper) return;
  complain("");
  turns.push({ role: "user", content: text });
  const question = turn("user", text);
  $("message").value = "";
  const paragraph = turn("assistant", ""), answer = { role: "assistant", content: "" }, stopper = state.stopper = new AbortController();
  busy(true);
  try {
    for await (const piece of pieces(await call(CHAT, { model: state.card.id, messages: turns, stream: true, ...cited("chat-citations", state.card) }, stopper.signal))) {
      if (piece.error) throw new Refusal(500, piece.error.message);
      const part = piece.choices[0]?.delta?.content;
      if (part) {
        answer.content += part;
        paragraph.append(part);
        $("transcript").scrollTop = $("transcript").scrollHeight;
      }
      const masked = Object.entries(piece.masked || {});
      if (masked.length) paragraph.after(remarks({ masked: piece.masked })[0]);
      if (typeof piece.confidence === "number") paragraph.after(make("p", { class: piece.abstained ? "warn" : "note" }, (piece.abstained ? "Abstained: do not rely on this answer. " : "") + `Confidence ${percent(piece.confidence)}.`));
      if (piece.citations) question.after(...citationParts(text, piece.citations));
      if (piece.outcome === "refused") paragraph.parentElement.classList.add("refused");
    }
  } catch (error) {
    if (error.name === "AbortError") $("chat-status").textContent = "Stopped.";
    else report(error);
  } finally {
    if (answer.content) turns.push(answer);
    else {
      turns.pop();  // without an answer, two messages of the user would follow each other
      paragraph.parentElement.remove();
      if (!$("message").value && turns === state.turns) $("message").value = text;
    }
    state.stopper = null;
    busy(false);
  }
}

function busy(isBusy) {
  $("transcript").setAttribute("aria-busy", String(isBusy));
  $("send-message").disabled = isBusy;
  show("stop", isBusy);
  $("chat-status").textContent = isBusy ? "Answering …" : $("chat-status").textContent.replace("Answering …", "");
}

async function* pieces(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    buffer += value || "";
    const events = buffer.split("\n\n");
    buffer = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
    if (done) return;
  }
}

