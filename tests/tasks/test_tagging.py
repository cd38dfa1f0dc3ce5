"""Tagging: windows, sub-words and rows, their loss, and a trained model whose answers come back
after a reload and over HTTP."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import tiny

from medray.errors import ConfigError, DataError
from medray.registry import card, loading
from medray.registry.predictions import read_predictions
from medray.registry.registry import Registry
from medray.serving.opening import open_model
from medray.serving.schemas import AppOptions
from medray.tasks.base.mention_task import ExtractRequest
from medray.tasks.base.protocol import LossInputs
from medray.tasks.tagging.task import Options, Task
from medray.types import Example, Mention

TEXT = "the study of renal failure and carcinoma in blood"
MENTIONS = (Mention(13, 26, "renal failure", "Disease"), Mention(31, 40, "carcinoma", "Disease"))
EXAMPLE = Example("a", TEXT, ("Disease",), mentions=MENTIONS)
TASK = "{name: tagging, max_length: 64}"


def task(**options: Any) -> Task:
    return Task(Options(name="tagging", **{"max_length": 64, **options}), ("Disease",))


class Oracle:
    """An engine that knows the tag of every word, and asks for attention only to windows as they
    were cut."""

    def __init__(self, names: set[str], tokenizer: Any) -> None:
        self.tokenizer, self.asked = tokenizer, 0
        self.inside = {
            tokenizer.convert_tokens_to_ids(word): number
            for name in names
            for number, word in enumerate(name.split())
        }

    def token_logits(self, inputs: list[tuple[int, ...]]) -> list[np.ndarray]:
        self.asked += len(inputs)
        return [
            np.eye(3)[
                [1 + min(self.inside[token], 1) if token in self.inside else 0 for token in row]
            ]
            * 9
            for row in inputs
        ]


def test_tokens_get_the_tags_of_their_words_and_special_tokens_get_none() -> None:
    tokenizer = tiny.tokenizer("bert")
    (row,) = task().encode([EXAMPLE], tokenizer)
    said = dict(zip(tokenizer.convert_ids_to_tokens(row.tokens), row.target, strict=True))
    assert said == {
        "[CLS]": -100,
        "the": 0,
        "study": 0,
        "of": 0,
        "renal": 1,
        "failure": 2,
        "and": 0,
        "carcinoma": 1,
        "in": 0,
        "blood": 0,
        "[SEP]": -100,
    }
    (plain,) = task().encode([EXAMPLE], tiny.tokenizer("llama"))
    assert plain.target == (0, 0, 0, 1, 2, 0, 1, 0, 0)
    assert task().loss([row.target], ["a"]).weights.tolist() == [9.0]


def test_in_windows_every_token_counts_once_and_mentions_come_together_again() -> None:
    tokenizer = tiny.tokenizer("bert")
    words = [tiny.WORDS[number % 9] for number in range(60)]
    words[19:19], words[40:40] = ["renal", "failure"], ["carcinoma"]
    text = " ".join(words)
    places = [
        (text.index(name), name)
        for name in ("renal failure", "carcinoma and", "carcinoma")
        if name in text
    ]
    mentions = tuple(Mention(at, at + len(name), name, "Disease") for at, name in places)
    made = task(max_length=16, window_overlap=6)
    rows = made.encode([Example("a", text, mentions=mentions)], tokenizer)
    assert len(rows) > 4
    assert all(len(row.tokens) == 16 for row in rows)
    whole = task(max_length=128).encode([Example("a", text, mentions=mentions)], tokenizer)[0]
    counted = sorted(tag for row in rows for tag in row.target if tag >= 0)
    assert counted == sorted(tag for tag in whole.target if tag >= 0)
    oracle = Oracle({"renal failure", "carcinoma"}, tokenizer)
    (found,) = made.predict(oracle, [Example("a", text)])
    assert oracle.asked == len(rows)
    assert {(held.start, held.end) for held in mentions} <= {
        (held.start, held.end) for held in found.mentions
    }
    assert all(text[held.start : held.end] == held.text for held in found.mentions)


def test_the_window_that_reads_a_token_deepest_answers_for_it() -> None:
    tokenizer = tiny.tokenizer("bert")
    text = " ".join(["blood"] * 30)

    class Numbered:
        """Each window says something else at every place."""

        def __init__(self) -> None:
            self.tokenizer = tokenizer

        def token_logits(self, inputs: list[tuple[int, ...]]) -> list[np.ndarray]:
            rows = []
            for row in inputs:
                tags = [1] * len(row)
                tags[1] = tags[-2] = 0  # wrong at its edges
                rows.append(np.eye(3)[tags] * 9)
            return rows

    (found,) = task(max_length=12, window_overlap=4).predict(Numbered(), [Example("a", text)])
    assert len(found.mentions) == 28  # the text's own first and last word have no deeper window


def test_the_loss_is_a_sum_over_the_tokens_that_count_on_either_side_of_padding() -> None:
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    targets = [(-100, 1, 2), (0, 0, -100, 1)]
    made = task()
    for left in (False, True):
        mask = torch.zeros(2, 5, dtype=torch.long)
        for row, target in enumerate(targets):
            mask[row, slice(5 - len(target), 5) if left else slice(0, len(target))] = 1
        loss = made.loss(targets, ["a", "b"])
        sums = loss(
            SimpleNamespace(logits=logits), LossInputs(targets, torch.tensor(loss.weights), mask)
        )
        for row, target in enumerate(targets):
            said = logits[row, 5 - len(target) :] if left else logits[row, : len(target)]
            expected = sum(
                F.cross_entropy(said[at], torch.tensor(tag))
                for at, tag in enumerate(target)
                if tag >= 0
            )
            assert sums[row] == pytest.approx(float(expected), rel=1e-5)
        assert loss.weights.tolist() == [2.0, 3.0]


def test_data_without_mentions_is_refused() -> None:
    options = Options(name="tagging")
    with pytest.raises(
        DataError, match=r"no row has a mention, and task tagging needs annotated texts"
    ):
        Task.fit(options, [Example("", "")])
    with pytest.raises(DataError, match="no training row has a mention"):
        Task.fit(options, [Example("", "", ("cancer",))], [Example("a", "tumour", ("cancer",))])
    with pytest.raises(
        ValueError, match="window_overlap 32 and max_length 16: the overlap must be the smaller"
    ):
        Options(name="tagging", max_length=16)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "llama"])
@pytest.mark.document(
    "000",
    "structured output of mentions, tagged in the text",
    where="`jobs/studies/tagging.yaml`, `/v1/extract`",
)
def test_a_tagger_is_trained_reloaded_merged_and_served_with_the_same_answers(
    tmp_path: Path, family: str
) -> None:
    asked = tiny.mention_study(
        tmp_path, TASK, "train.epochs=12", "train.warmup_ratio=0.1", family=family, num_rows=90
    )
    made = tiny.trial(asked, tmp_path)
    result = made.run()
    assert result.best.metrics["mention_f1"] > 0.6
    rows = [
        json.loads(line)
        for line in (result.checkpoint / "predictions.jsonl").read_text().splitlines()
    ]
    assert {mention["text"] for row in rows for mention in row["mentions"]} == {
        ""
    }  # positions alone, never the words
    stored = read_predictions(result.checkpoint)
    assert made.task.score(stored, made.material.validation).values == result.best.metrics
    loaded = loading.load(result.checkpoint)
    again = loaded.predict(made.material.validation)
    assert [bare(row.mentions) for row in again] == [bare(row.mentions) for row in stored]
    assert all(
        example.text[found.start : found.end] == found.text
        for example, row in zip(made.material.validation, again, strict=True)
        for found in row.mentions
    )

    release = Registry(str(tmp_path / "runs")).publish(result.checkpoint, "diseases")
    assert "pipeline_tag: token-classification" in card.render(
        release.record, loaded.manifest, merged=False
    )
    texts = tuple(example.text for example in made.material.validation)
    wanted = release.load().predict(texts)
    options = AppOptions(
        releases=("diseases",),
        storage_path=str(tmp_path / "runs"),
        precision="fp32",
        token_budget=256,
    )
    with ThreadPoolExecutor(1) as thread, ThreadPoolExecutor(4) as clients:
        head = open_model(release, options, thread, device="cpu")
        end = time.monotonic() + 30
        whole = head.answer(ExtractRequest(inputs=texts), max_tokens=10_000, deadline=end)
        single = list(
            clients.map(
                lambda text: head.answer(ExtractRequest(text=text), max_tokens=1000, deadline=end),
                texts,
            )
        )
    assert head.path == "/v1/extract"
    for answers in (whole.predictions, [answer.predictions[0] for answer in single]):
        for answer, expected in zip(answers, wanted, strict=True):
            assert [
                (found.start, found.end, found.kind, found.text) for found in answer.mentions
            ] == [(found.start, found.end, found.kind, found.text) for found in expected.mentions]
            sure = [found.confidence for found in expected.mentions]
            assert [found.confidence for found in answer.mentions] == pytest.approx(sure, abs=1e-3)


def bare(mentions: tuple[Mention, ...]) -> list[tuple[int, int, str]]:
    return [(found.start, found.end, found.kind) for found in mentions]


def test_how_rows_are_cut_into_micro_batches_changes_no_loss(tmp_path: Path) -> None:
    losses = []
    for budget in (64, 512):
        folder = tmp_path / str(budget)
        folder.mkdir()
        asked = tiny.mention_study(
            folder, TASK, "train.epochs=2", f"train.token_budget={budget}", "lora.dropout=0"
        )
        losses.append([row.train_loss for row in tiny.trial(asked, folder).run().history])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_release_of_tagging_is_not_asked_where_labels_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mention_f1"):
        tiny.mention_study(tmp_path, "{name: tagging, metric: f1_macro}")
