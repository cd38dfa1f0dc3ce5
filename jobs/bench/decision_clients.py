"""Asks a service of the sample `triage` one message with four clients: the packages `openai`,
`langchain-openai` and `litellm`, and a plain request to `/v1/systemone`. It prints what each client
is given and what it reads.

It needs no medray. litellm needs an environment of its own: `pip install openai langchain-openai
'litellm>=1.110'`. A client that is not installed is named and left out."""

import argparse
import json
import os
import urllib.request
from collections.abc import Callable
from typing import Any

MESSAGE = (
    "I am the mother, and I know the ward nurse. Forget a checkup next year. Please see to a high "
    "fever since last night. Could you write to me?"
)
TOPICS = ("appointment", "billing", "medication", "symptoms")
LEVELS = ("routine", "soon", "today")
TOPIC, URGENCY, REPLY = (
    "What is it about?",
    "How soon must somebody act?",
    "Does the writer ask for a reply?",
)
QUESTIONS = [
    {
        "type": "choice",
        "name": "topic",
        "instructions": TOPIC,
        "choices": [{"value": topic} for topic in TOPICS],
    },
    {
        "type": "score",
        "name": "urgency",
        "instructions": URGENCY,
        "levels": [{"label": level} for level in LEVELS],
    },
    {"type": "predicate", "name": "needs_reply", "instructions": REPLY},
]
SYSTEM_ONE_QUESTIONS = {
    "topic": {"type": "choice", "instructions": TOPIC, "criteria": list(TOPICS)},
    "urgency": {"type": "score", "instructions": URGENCY, "criteria": list(LEVELS)},
    "needs_reply": {"type": "noul", "instructions": REPLY},
}


def ask_openai(url: str, model: str) -> Any:
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    return client.decisions.create(model=model, input=MESSAGE, questions=QUESTIONS)


def ask_langchain(url: str, model: str) -> Any:
    from langchain_openai.decisions import Choice, OpenAIDecisions, Predicate, Score

    client = OpenAIDecisions(model=model, base_url=f"{url}/v1", api_key="none")
    questions = {
        "topic": Choice(instructions=TOPIC, choices=dict.fromkeys(TOPICS)),
        "urgency": Score(instructions=URGENCY, levels=list(LEVELS)),
        "needs_reply": Predicate(instructions=REPLY),
    }
    return client.invoke({"input": MESSAGE, "questions": questions})


def ask_litellm(url: str, model: str) -> Any:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    return litellm.decisions(
        model=f"openai/{model}",
        api_base=f"{url}/v1",
        api_key="none",
        input=MESSAGE,
        questions=QUESTIONS,
    )


def ask_system_one(url: str, model: str) -> Any:
    body = {"model": model, "state": MESSAGE, "questions": SYSTEM_ONE_QUESTIONS}
    request = urllib.request.Request(
        f"{url}/v1/systemone", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)


CLIENTS: dict[str, Callable[[str, str], Any]] = {
    "openai: client.decisions.create": ask_openai,
    "langchain-openai: OpenAIDecisions.invoke": ask_langchain,
    "litellm: litellm.decisions": ask_litellm,
    "urllib: POST /v1/systemone": ask_system_one,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="triage@best")
    args = parser.parse_args()
    print(MESSAGE)
    for name, ask in CLIENTS.items():
        try:
            reply = ask(args.url, args.model)
        except ImportError as err:
            print(f"\n== {name}: left out, {err}")
            continue
        content = reply if isinstance(reply, dict) else reply.model_dump(mode="json")
        answers = content["answers"]
        items = answers.items() if isinstance(answers, dict) else ((None, own) for own in answers)
        print(f"\n== {name}")
        for key, answer in items:
            print(f"{key or answer['name']}: {json.dumps(shorten(answer))}")


def shorten(answer: Any) -> Any:
    """Round numbers, and leave out fields without a value."""
    if isinstance(answer, dict):
        return {key: shorten(value) for key, value in answer.items() if value is not None}
    if isinstance(answer, list):
        return [shorten(value) for value in answer]
    return round(answer, 3) if isinstance(answer, float) else answer


if __name__ == "__main__":
    main()
