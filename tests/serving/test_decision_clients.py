"""Typed questions as other projects' clients ask them. litellm is no requirement of medray's tests,
since its versions with typed questions do not fit medray's other packages."""

import os
from collections.abc import Iterator

import pytest
from support import fake_service

LABELS = ("cancer", "no cancer")
CHOICE = {
    "type": "choice",
    "name": "label",
    "instructions": "Is it about cancer?",
    "choices": [{"value": label} for label in LABELS],
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_service.running(fake_service.api(fake_service.Service())) as url:
        yield url.rstrip("/")


def test_langchain_reads_choices_predicates_and_refusals(url: str) -> None:
    from langchain_openai import decisions

    def ask(model: str, text: object, **questions: object):  # type: ignore[no-untyped-def]
        runnable = decisions.OpenAIDecisions(model=model, base_url=f"{url}/v1", api_key="none")
        return runnable.invoke({"input": text, "questions": questions})

    label = decisions.Choice(instructions="Is it?", choices=dict.fromkeys(LABELS))
    choice = ask("cancer", {"note": "a text"}, label=label)
    assert choice.choices["label"].choice == "no cancer"
    assert choice.usage.input_tokens == 3
    fever = decisions.Predicate(instructions="Has the patient fever?")
    assert ask("findings", "high fever", fever=fever).predicates["fever"].probability == 0.9
    refusal = ask("cancer", "an unclear text", label=label).refusals["label"]
    assert refusal.model_extra == {
        "answer_confidence": pytest.approx(2 / 3),
        "threshold": 0.6,
        "citations": None,
    }


def test_litellm_reads_both_formats(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("litellm.decisions", reason="needs litellm 1.110 or later")
    monkeypatch.setitem(os.environ, "LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    answer = litellm.decisions(
        model="openai/cancer@best",
        api_base=f"{url}/v1",
        api_key="none",
        input="a text",
        questions=[CHOICE],
    ).answers[0]
    assert (answer.choice, answer.confidence) == ("no cancer", pytest.approx(1 / 3))
    for provider in ("typesafe", "hosted_vllm"):
        answers = litellm.systemone(
            model=f"{provider}/findings@best",
            api_base=url,
            api_key="none",
            state="high fever",
            questions={"fever": {"type": "noul", "instructions": "Has the patient fever?"}},
        ).answers
        assert answers["fever"].noul == 0.9


def test_the_sdk_of_system_one_reads_answers_and_errors(url: str) -> None:
    import typesafe_sdk as sdk

    client = sdk.TypeSafeClient(api_key="none", base_url=url)
    label = sdk.Choice(criteria=dict.fromkeys(LABELS))
    answer = client.system_one(state=["a text"], model="cancer", questions={"label": label})
    assert answer.choices["label"].choice == "no cancer"
    fever = sdk.Noul(instructions="Has the patient fever?")
    answer = client.system_one(state="high fever", model="findings", questions={"fever": fever})
    assert answer.nouls["fever"].noul == 0.9
    with pytest.raises(sdk.TypeSafeBadRequestError, match="it answers choice"):
        client.system_one(state="a", model="cancer", questions={"fever": fever})
    with pytest.raises(sdk.TypeSafeUnprocessableEntityError, match="state: "):
        client.system_one(state="", model="cancer", questions={"label": label})


def test_both_kinds_of_clients_list_the_models(url: str) -> None:
    import openai
    import typesafe_sdk as sdk

    names = [
        model.id for model in openai.OpenAI(base_url=f"{url}/v1", api_key="none").models.list()
    ]
    (first, *_) = models = sdk.TypeSafeClient(api_key="none", base_url=url).models.list().models
    assert [model.name for model in models] == names
    assert "cancer@best" in names
    assert len(first.release_date.split("-")) == 3
