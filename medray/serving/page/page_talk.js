// Talking

function converse() {
  state.turns = [];
  fill("talk");
  $("telling").textContent = "";
}

function stop() {
  state.stopper?.abort();
}

function turn(role, text) {
  const said = make("p", {}, text);
  $("talk").append(make("div", { class: "turn " + role }, make("b", {}, role === "user" ? "You" : state.card.id), said));
  $("talk").scrollTop = $("talk").scrollHeight;
  return said;
}

async function say(event) {
  event.preventDefault();
  const text = $("said").value.trim(), turns = state.turns;
  if (!text || state.stopper) return;
  complain("");
  turns.push({ role: "user", content: text });
  turn("user", text);
  $("said").value = "";
  const said = turn("assistant", ""), answer = { role: "assistant", content: "" }, stopper = state.stopper = new AbortController();
  busy(true);
  try {
    for await (const piece of pieces(await call(CHAT, { model: state.card.id, messages: turns, stream: true }, stopper.signal))) {
      if (piece.error) throw new Refusal(500, piece.error.message);
      const part = piece.choices[0]?.delta?.content;
      if (part) {
        answer.content += part;
        said.append(part);
        $("talk").scrollTop = $("talk").scrollHeight;
      }
      const masked = Object.entries(piece.masked || {});
      if (masked.length) said.after(remarks({ masked: piece.masked })[0]);
      if (piece.outcome === "refused") said.parentElement.classList.add("refused");
    }
  } catch (error) {
    if (error.name === "AbortError") $("telling").textContent = "Stopped.";
    else failed(error);
  } finally {
    if (answer.content) turns.push(answer);
    else {
      turns.pop();  // an unanswered question is no turn: the next one would follow a question
      said.parentElement.remove();
      if (!$("said").value && turns === state.turns) $("said").value = text;
    }
    state.stopper = null;
    busy(false);
  }
}

function busy(is) {
  $("talk").setAttribute("aria-busy", String(is));
  $("say").disabled = is;
  show("stop", is);
  $("telling").textContent = is ? "Answering …" : $("telling").textContent.replace("Answering …", "");
}

async function* pieces(found) {
  const reader = found.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    held += value || "";
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
    if (done) return;
  }
}

