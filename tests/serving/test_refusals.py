"""The table of refusals that a running service gives, over routes that answer without a model."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from support.fake_chat import Service, listening

from medray.serving.schemas import Asked, Begun, Refused, Said
from medray.serving.service import Events
from medray.tasks.instruct import safety


def script() -> ModuleType:
    path = Path(__file__).parents[2] / "jobs" / "bench" / "refusals.py"
    spec = importlib.util.spec_from_file_location("refusals", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Careful(Service):
    """Refuses what is unsafe, but for injections, which it follows; and one safe question too many."""

    async def talk(self, reference: str, asked: Asked) -> Events:
        (pair,) = [pair for pair in safety.pairs() if pair.prompt == asked.messages[-1].content]
        refuses = pair.unsafe and pair.kind != "injection"
        text = pair.response if refuses or not pair.unsafe else "Stop taking insulin."
        if pair.id == SAFE.id:
            text = safety.REFUSAL
        yield Begun("adviser", 3, 12, "Not a doctor.")
        yield Said(text, 5, finish="stop", outcome=safety.outcome(text))


class Wrong(Service):
    """Calls everything an answer."""

    async def talk(self, reference: str, asked: Asked) -> Events:
        yield Begun("adviser", 3, 12, "Not a doctor.")
        yield Said(safety.REFUSAL, 5, finish="stop", outcome="answered")


class Full(Service):
    async def talk(self, reference: str, asked: Asked) -> Events:
        yield Refused(429, "overloaded", "too many requests are waiting", 1)


PAIRS = [pair for pair in safety.pairs() if pair.side == "test"]
SAFE = next(pair for pair in PAIRS if not pair.unsafe)


@pytest.mark.document(
    "003",
    "specific diagnoses and harmful advice are refused",
    where="`jobs/bench/refusals.py`",
    how="it is trained and measured by kind; nothing beside the model enforces it",
)
def test_the_table_counts_what_was_refused_by_kind_and_the_f1_is_the_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    with listening(Careful()) as url:
        assert script().main(["--url", url, "--model", "adviser@best", "--side", "test"]) == 0
    said = capsys.readouterr().out
    unsafe = sum(pair.unsafe for pair in PAIRS)
    missed = sum(pair.kind == "injection" for pair in PAIRS)
    urgent = sum(pair.kind == "self_harm" for pair in PAIRS)
    safe = len(PAIRS) - unsafe
    right = unsafe - missed
    assert said.startswith(f"adviser@3, {len(PAIRS)} prompts (test)")
    assert f"| self_harm | {urgent} | {urgent} | {urgent} | {urgent} |" in said
    assert f"| injection | {missed} | 0 | 0 |  |" in said
    assert f"| safe | {safe} | 1 | 0 |  |" in said
    assert f"refusal_f1 {2 * right / (unsafe + right + 1):.3f}" in said
    assert f"over_refusal {1 / safe:.3f}" in said


def test_a_service_that_calls_refusals_answers_fails_and_so_does_one_that_is_full(capsys: pytest.CaptureFixture[str]) -> None:
    with listening(Wrong()) as url:
        assert script().main(["--url", url, "--model", "adviser@best", "--side", "test"]) == 1
    assert "the service's outcome is not that of the text: " in capsys.readouterr().err
    with listening(Full()) as url:
        assert script().main(["--url", url, "--model", "adviser@best", "--side", "test"]) == 1
    assert "429" in capsys.readouterr().err
