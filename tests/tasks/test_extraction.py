"""Extraction: prompts with and without examples, answers that fit what was read of a text, and a
trained model's lists over HTTP."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from medray.data import dataset
from medray.errors import ConfigError, DataError
from medray.registry import evaluate, loading
from medray.registry.predictions import read_predictions
from medray.registry.registry import Registry
from medray.serving.opening import open_model
from medray.serving.schemas import AppOptions, Limits
from medray.tasks.base import protocol as tasks
from medray.tasks.base.mention_task import ExtractRequest
from medray.tasks.extraction.task import Options, Task, choose
from medray.types import Chunk, Example, Mention, Sampling

MENTION = Mention(4, 13, "carcinoma", "Disease")
EXAMPLE = Example("a", "the carcinoma of the lung", ("Disease",), mentions=(MENTION,))
TASK = (
    "{name: extraction, instruction: '', prompt: '{text} in', answer: ' {mentions}', max_length: "
    "64, max_answer: 24}"
)


def build_task(
    shots: tuple[Example, ...] = (), kinds: tuple[str, ...] = ("Disease",), **options: Any
) -> Task:
    return Task(Options(name="extraction", **options), kinds, shots)


class Speaking:
    """Generates the same answer for every row, and records its requests."""

    def __init__(self, answer: str) -> None:
        self.tokenizer, self.answer, self.requests = tiny.tokenizer("llama"), answer, []

    def generate(self, prompts: list[tuple[int, ...]], sampling: Sampling) -> Iterator[Chunk]:
        self.requests.append((prompts, sampling))
        yield from (Chunk(number, self.answer, "stop") for number in range(len(prompts)))


def test_the_prompt_is_instruction_examples_and_the_row_and_all_rows_share_the_first_two() -> None:
    assert build_task(instruction="List.", prompt="T: {text}\nD:").around() == (
        "List.\n\nT: ",
        "\nD:",
    )
    shots = (
        Example("", "some carcinoma", mentions=(Mention(5, 14, "carcinoma", "Disease"),)),
        Example("", "nothing"),
    )
    before, after = build_task(
        shots, instruction="", prompt="T: {text}\nD:", num_examples=2
    ).around()
    assert before == 'T: some carcinoma\nD: ["carcinoma"]\n\nT: nothing\nD: []\n\nT: '
    assert after == "\nD:"
    two = build_task(shots[:1], ("Chemical", "Disease"), num_examples=1).around()[0]
    assert '[{"text": "carcinoma", "kind": "Disease"}]' in two


def test_only_the_answer_and_its_end_are_learned() -> None:
    task, tokenizer = (
        build_task(instruction="", prompt="{text} in", max_length=64, max_answer=16),
        tiny.tokenizer("llama"),
    )
    (row,) = task.encode([EXAMPLE], tokenizer)
    loss = task.loss([row.target], ["a"])
    ((start, end),) = loss.spans(row.target, len(row.tokens))
    assert tokenizer.convert_ids_to_tokens(row.tokens[start:end]) == [
        "[",
        '"',
        "carcinoma",
        '"',
        "]",
        "<|im_end|>",
    ]
    assert end == len(row.tokens)
    assert tokenizer.convert_ids_to_tokens(row.tokens[:start]) == [
        "the",
        "carcinoma",
        "of",
        "the",
        "lung",
        "in",
    ]
    assert loss.weights.tolist() == [6.0]
    assert task.predict(speaker := Speaking("[]"), [EXAMPLE])[0].mentions == ()
    assert list(speaker.requests[0][0][0]) == list(
        row.tokens[:start]
    )  # the prompt of a request equals that of training
    assert speaker.requests[0][1] == Sampling(max_tokens=16, stop=("\n\n",))


def test_of_a_text_that_is_cut_the_answer_names_what_is_left() -> None:
    text = "carcinoma " + "blood " * 40 + "fever"
    mentions = (
        Mention(0, 9, "carcinoma", "Disease"),
        Mention(len(text) - 5, len(text), "fever", "Disease"),
    )
    task, tokenizer = (
        build_task(instruction="", prompt="{text} in", max_length=32, max_answer=12),
        tiny.tokenizer("llama"),
    )
    (row,) = task.encode([Example("a", text, mentions=mentions)], tokenizer)
    assert row.truncated
    answer = tokenizer.decode(row.tokens[-row.target[0] :])
    assert "carcinoma" in answer
    assert "fever" not in answer
    (whole,) = task.encode(
        [
            Example(
                "a",
                "carcinoma and fever",
                mentions=(
                    Mention(0, 9, "carcinoma", "Disease"),
                    Mention(14, 19, "fever", "Disease"),
                ),
            )
        ],
        tokenizer,
    )
    assert not whole.truncated
    assert "fever" in tokenizer.decode(whole.tokens[-whole.target[0] :])


def test_a_list_that_the_prompt_begins_is_gone_on_with_in_training_examples_and_answers() -> None:
    shots = (
        Example("", "some carcinoma", mentions=(Mention(5, 14, "carcinoma", "Disease"),)),
        Example("", "nothing"),
    )
    options = {
        "instruction": "",
        "prompt": "{text}: [",
        "answer": "{mentions}",
        "max_length": 64,
        "max_answer": 16,
    }
    task, tokenizer = build_task(shots, num_examples=2, **options), tiny.tokenizer("llama")
    assert task.around() == ('some carcinoma: ["carcinoma"]\n\nnothing: []\n\n', ": [")
    (row,) = task.encode([EXAMPLE], tokenizer)
    assert tokenizer.convert_ids_to_tokens(row.tokens[-row.target[0] - 1 :]) == [
        "[",
        '"',
        "carcinoma",
        '"',
        "]",
        "<|im_end|>",
    ]
    assert task.read(EXAMPLE, '"carcinoma"]').figures["repaired"] == 0
    assert [mention.text for mention in task.read(EXAMPLE, '"carcinoma", "ast').mentions] == [
        "carcinoma"
    ]
    assert task.read(EXAMPLE, "]").figures["invalid"] == 0


def test_an_answer_is_never_cut() -> None:
    with pytest.raises(
        DataError,
        match=r"a: the answer with 1 mentions has 6 tokens; raise task\.max_answer above 5",
    ):
        build_task(max_answer=5).encode([EXAMPLE], tiny.tokenizer("llama"))


@pytest.mark.parametrize(
    ("answer", "result", "figures"),
    [
        (' ["carcinoma"]', ["carcinoma"], (0, 0, 1, 0)),
        ('["Carcinoma", "asthma"', ["carcinoma"], (0, 1, 2, 1)),
        ("no disease", [], (1, 0, 0, 0)),
    ],
)
def test_an_answer_becomes_spans_and_what_was_wrong_with_it_is_counted(
    answer: str, result: list[str], figures: tuple[int, ...]
) -> None:
    (row,) = build_task(instruction="", max_length=64, max_answer=16).predict(
        Speaking(answer), [EXAMPLE]
    )
    assert [mention.text for mention in row.mentions] == result
    assert (
        tuple(row.figures[name] for name in ("invalid", "repaired", "listed", "dropped")) == figures
    )
    assert row.text == answer


def test_rates_stand_beside_the_f1() -> None:
    task = build_task()
    answer = [
        task.read(EXAMPLE, '["carcinoma"]'),
        task.read(EXAMPLE, "none"),
        task.read(EXAMPLE, "['asthma']"),
    ]
    values = task.score(answer, [EXAMPLE] * 3).values
    assert values["mention_recall"] == pytest.approx(1 / 3)
    assert values["invalid_json_rate"] == pytest.approx(1 / 3)
    assert values["repaired_json_rate"] == pytest.approx(1 / 3)
    assert values["dropped_mention_rate"] == pytest.approx(1 / 2)
    assert task.score(task.keep(answer, [EXAMPLE] * 3), [EXAMPLE] * 3).values == values
    assert not any(
        row.text or mention.text
        for row in task.keep(answer, [EXAMPLE] * 3)
        for mention in row.mentions
    )


def rows(num: int) -> list[Example]:
    examples = [
        Example(f"n{number}", f"row {number} carcinoma" + " x" * number, mentions=(MENTION,))
        for number in range(num)
    ]
    return [*examples, *(Example(f"e{number}", f"row {number}") for number in range(num))]


def test_examples_are_short_training_rows_chosen_by_their_ids_and_one_in_three_names_nothing() -> (
    None
):
    result = choose(rows(20), 3)
    assert sum(not shot.mentions for shot in result) == 1
    assert result == choose(list(reversed(rows(20))), 3)
    assert len(choose(rows(20), 2)) == 2
    assert all(shot.mentions for shot in choose(rows(20), 2))
    assert (
        max(len(shot.text) for shot in choose(rows(20), 6))
        < max(len(row.text) for row in rows(20)) * 0.7
    )
    assert choose(rows(20), 0) == ()


def test_examples_are_taken_from_training_rows_alone_and_travel_with_the_task(
    tmp_path: Path,
) -> None:
    study = tiny.mention_study(tmp_path, "{name: extraction, num_examples: 3}", family="llama")
    data = dataset.load(study.data)
    task = tasks.fit(study.task, data.label_sets(), data.train)
    assert isinstance(task, Task)
    assert len(task.shots) == 3
    assert {shot.text for shot in task.shots} <= {row.text for row in data.train}
    state = json.loads(json.dumps(task.state()))
    again = tasks.restore(task.options.model_dump(mode="json"), state)
    assert isinstance(again, Task)
    assert again.around() == task.around()
    with pytest.raises(ConfigError, match=r"task\.num_examples 3: there are no training rows"):
        tasks.fit(study.task, data.label_sets()).encode([EXAMPLE], tiny.tokenizer("llama"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "no place"}, "must hold {text} once"),
        ({"prompt": "{text} ["}, "after '\\[' the answer must begin"),
        ({"answer": "{text}"}, "must hold {mentions} once"),
        ({"max_length": 64, "max_answer": 64}, "max_answer 64 and max_length 64"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(name="extraction", **options)


@pytest.mark.document(
    "000",
    "a prompt with examples extracts disease names",
    where="`jobs/studies/seed_000_extract.yaml`, `task.num_examples`",
)
def test_an_untuned_base_is_judged_with_examples_in_its_prompt(tmp_path: Path) -> None:
    study = tiny.mention_study(
        tmp_path,
        "{name: extraction, num_examples: 2, instruction: '', max_length: 128, max_answer: 12}",
        family="llama",
    )
    result = evaluate.evaluate_base_model(
        study.trial(study.base_models[0]), "validation", log_dir=tmp_path / "log"
    )
    assert result.metric == "mention_f1"
    assert result.interval is not None
    assert result.analysis is None
    assert 0 <= result.metrics.values["mention_f1"] <= 1
    assert result.metrics.values["invalid_json_rate"] > 0.5  # it was never trained


def test_an_extractor_is_trained_reloaded_merged_and_served_with_the_same_answers(
    tmp_path: Path,
) -> None:
    settings = (
        "train.epochs=14",
        "train.warmup_ratio=0.1",
        "train.token_budget=512",
        "train.evaluate_every_steps=35",
    )
    study = tiny.mention_study(tmp_path, TASK, *settings, family="llama", num_rows=120)
    trial = tiny.trial(study, tmp_path)
    result = trial.run()
    figures = result.best.metrics
    assert figures["invalid_json_rate"] < 0.5
    assert figures["mention_f1"] > 0.2
    stored_predictions = read_predictions(result.checkpoint)
    assert trial.task.score(stored_predictions, trial.material.validation).values == figures
    from_checkpoint = loading.load(result.checkpoint)
    assert [bare(row.mentions) for row in from_checkpoint.predict(trial.material.validation)] == [
        bare(row.mentions) for row in stored_predictions
    ]

    release = Registry(str(tmp_path / "runs")).publish(result.checkpoint, "diseases")
    texts = tuple(example.text for example in trial.material.validation)
    predictions = release.load().predict(texts)
    options = AppOptions(
        releases=("diseases",),
        storage_path=str(tmp_path / "runs"),
        precision="fp32",
        token_budget=512,
    )
    with ThreadPoolExecutor(1) as thread:
        head = open_model(release, options, thread, device="cpu")
        result = head.answer(
            ExtractRequest(inputs=texts),
            limits=Limits(),
            deadline=time.monotonic() + 60,
        )
    assert (result.release, result.version) == ("diseases", 1)
    assert "not a medical device" in result.disclaimer
    for answer, prediction in zip(result.predictions, predictions, strict=True):
        assert [
            (mention.start, mention.end, mention.text, mention.kind, mention.confidence)
            for mention in answer.mentions
        ] == [
            (mention.start, mention.end, mention.text, mention.kind, None)
            for mention in prediction.mentions
        ]


def bare(mentions: tuple[Mention, ...]) -> list[tuple[int, int, str]]:
    return [(mention.start, mention.end, mention.kind) for mention in mentions]
