"""Tagging: windows, sub-words and rows, their loss, and a trained model whose answers come back
after a reload and over HTTP."""

import json
import random
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

from medray.data.prepared import Prepared
from medray.errors import ConfigError, DataError
from medray.registry import card, loading
from medray.registry.predictions import read_predictions
from medray.registry.registry import Registry
from medray.serving.opening import open_model
from medray.serving.schemas import AppOptions, Limits
from medray.tasks.base.mention_task import ExtractRequest
from medray.tasks.base.protocol import LossInputs
from medray.tasks.tagging.task import Options, Task
from medray.types import Example, Mention

TEXT = "the study of renal failure and carcinoma in blood"
MENTIONS = (Mention(13, 26, "renal failure", "Disease"), Mention(31, 40, "carcinoma", "Disease"))
EXAMPLE = Example("a", TEXT, ("Disease",), mentions=MENTIONS)
TASK = "{name: tagging, max_length: 64}"


def build_task(**options: Any) -> Task:
    return Task(Options(name="tagging", **{"max_length": 64, **options}), ("Disease",))


class Oracle:
    """An engine that knows the tag of every word, and asks for attention only to windows as they
    were cut."""

    def __init__(self, names: set[str], tokenizer: Any) -> None:
        self.tokenizer, self.requests = tokenizer, 0
        self.inside = {
            tokenizer.convert_tokens_to_ids(word): number
            for name in names
            for number, word in enumerate(name.split())
        }

    def token_logits(self, inputs: list[tuple[int, ...]]) -> list[np.ndarray]:
        self.requests += len(inputs)
        return [
            np.eye(3)[
                [1 + min(self.inside[token], 1) if token in self.inside else 0 for token in row]
            ]
            * 9
            for row in inputs
        ]


def test_tokens_get_the_tags_of_their_words_and_special_tokens_get_none() -> None:
    tokenizer = tiny.tokenizer("bert")
    (row,) = build_task().encode([EXAMPLE], tokenizer)
    tags = dict(zip(tokenizer.convert_ids_to_tokens(row.tokens), row.target, strict=True))
    assert tags == {
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
    (plain,) = build_task().encode([EXAMPLE], tiny.tokenizer("llama"))
    assert plain.target == (0, 0, 0, 1, 2, 0, 1, 0, 0)
    assert build_task().loss([row.target], ["a"]).weights.tolist() == [9.0]


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
    task = build_task(max_length=16, window_overlap=6)
    rows = task.encode([Example("a", text, mentions=mentions)], tokenizer)
    assert len(rows) > 4
    assert all(len(row.tokens) == 16 for row in rows)
    whole = build_task(max_length=128).encode([Example("a", text, mentions=mentions)], tokenizer)[0]
    all_tags = sorted(tag for row in rows for tag in row.target if tag >= 0)
    assert all_tags == sorted(tag for tag in whole.target if tag >= 0)
    oracle = Oracle({"renal failure", "carcinoma"}, tokenizer)
    (prediction,) = task.predict(oracle, [Example("a", text)])
    assert oracle.requests == len(rows)
    assert {(mention.start, mention.end) for mention in mentions} <= {
        (mention.start, mention.end) for mention in prediction.mentions
    }
    assert all(text[mention.start : mention.end] == mention.text for mention in prediction.mentions)


def test_the_window_that_reads_a_token_deepest_answers_for_it() -> None:
    tokenizer = tiny.tokenizer("bert")
    text = " ".join(["blood"] * 30)

    class NumberedLogits:
        """Returns different logits for each window and place."""

        def __init__(self) -> None:
            self.tokenizer = tokenizer

        def token_logits(self, inputs: list[tuple[int, ...]]) -> list[np.ndarray]:
            rows = []
            for row in inputs:
                tags = [1] * len(row)
                tags[1] = tags[-2] = 0  # wrong at its edges
                rows.append(np.eye(3)[tags] * 9)
            return rows

    (prediction,) = build_task(max_length=12, window_overlap=4).predict(
        NumberedLogits(), [Example("a", text)]
    )
    assert (
        len(prediction.mentions) == 28
    )  # the text's own first and last word have no deeper window


def test_the_loss_is_a_sum_over_the_tokens_that_count_on_either_side_of_padding() -> None:
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    targets = [(-100, 1, 2), (0, 0, -100, 1)]
    task = build_task()
    for left in (False, True):
        mask = torch.zeros(2, 5, dtype=torch.long)
        for row, target in enumerate(targets):
            mask[row, slice(5 - len(target), 5) if left else slice(0, len(target))] = 1
        loss = task.loss(targets, ["a", "b"])
        sums = loss(
            SimpleNamespace(logits=logits), LossInputs(targets, torch.tensor(loss.weights), mask)
        )
        for row, target in enumerate(targets):
            tags = logits[row, 5 - len(target) :] if left else logits[row, : len(target)]
            reference = sum(
                F.cross_entropy(tags[at], torch.tensor(tag))
                for at, tag in enumerate(target)
                if tag >= 0
            )
            assert sums[row] == pytest.approx(float(reference), rel=1e-5)
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


def test_prepared_rows_are_tagged_as_their_texts_and_those_of_an_earlier_medray_are_read_again(
    tmp_path: Path,
) -> None:
    tokenizer = tiny.tokenizer("roberta")  # its tokens begin with a blank
    task = build_task(max_length=9, window_overlap=3)
    rng = random.Random(0)
    texts = [tiny.text(rng, length) for length in (2, 30, 9)]
    examples = [
        Example(str(at), f" {text},  {TEXT}é", mentions=()) for at, text in enumerate(texts)
    ]

    class RandomLogits:
        """Returns logits that differ from token to token, the same ones for the same windows."""

        def __init__(self, tokenizer: Any) -> None:
            self.tokenizer = tokenizer

        def token_logits(self, inputs: list[tuple[int, ...]]) -> list[np.ndarray]:
            rng = np.random.default_rng([token for row in inputs for token in row])
            return [rng.normal(size=(len(row), 3)).astype(np.float32) for row in inputs]

    predictions = task.predict(RandomLogits(tokenizer), examples)
    assert all(len(row.mentions) > 1 for row in predictions)
    new = Prepared.of(
        ((row, "validation", {}) for row in task.encode(examples, tokenizer)), fingerprint=""
    )
    older = Prepared(new.table.drop_columns("offsets"), "")
    for prepared, own_tokenizer in ((new, None), (older, tokenizer)):
        prepared.save(tmp_path / "rows.arrow")
        validation = Prepared.open(tmp_path / "rows.arrow").split("validation")
        rows = validation.rows_of(example.id for example in examples)
        assert task.predict_rows(RandomLogits(own_tokenizer), examples, rows) == predictions


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "llama"])
@pytest.mark.document(
    "000",
    "structured output of mentions, tagged in the text",
    where="`jobs/studies/tagging.yaml`, `/v1/extract`",
)
def test_a_tagger_is_trained_reloaded_merged_and_served_with_the_same_answers(
    tmp_path: Path, family: str
) -> None:
    study = tiny.mention_study(
        tmp_path, TASK, "train.epochs=12", "train.warmup_ratio=0.1", family=family, num_rows=90
    )
    trial = tiny.trial(study, tmp_path)
    result = trial.run()
    assert result.best.metrics["mention_f1"] > 0.6
    rows = [
        json.loads(line)
        for line in (result.checkpoint / "predictions.jsonl").read_text().splitlines()
    ]
    assert {mention["text"] for row in rows for mention in row["mentions"]} == {
        ""
    }  # positions alone, never the words
    stored_predictions = read_predictions(result.checkpoint)
    assert (
        trial.task.score(stored_predictions, trial.material.validation).values
        == result.best.metrics
    )
    from_checkpoint = loading.load(result.checkpoint)
    again = from_checkpoint.predict(trial.material.validation)
    assert [bare(row.mentions) for row in again] == [
        bare(row.mentions) for row in stored_predictions
    ]
    assert all(
        example.text[prediction.start : prediction.end] == prediction.text
        for example, row in zip(trial.material.validation, again, strict=True)
        for prediction in row.mentions
    )

    release = Registry(str(tmp_path / "runs")).publish(result.checkpoint, "diseases")
    assert "pipeline_tag: token-classification" in card.render(
        release.record, from_checkpoint.manifest, merged=False
    )
    texts = tuple(example.text for example in trial.material.validation)
    predictions = release.load().predict(texts)
    options = AppOptions(
        releases=("diseases",),
        storage_path=str(tmp_path / "runs"),
        precision="fp32",
        token_budget=256,
    )
    with ThreadPoolExecutor(1) as thread, ThreadPoolExecutor(4) as clients:
        head = open_model(release, options, thread, device="cpu")
        end = time.monotonic() + 30
        whole = head.answer(ExtractRequest(inputs=texts), limits=Limits(), deadline=end)
        single = list(
            clients.map(
                lambda text: head.answer(ExtractRequest(text=text), limits=Limits(), deadline=end),
                texts,
            )
        )
    assert head.path == "/v1/extract"
    for answers in (whole.predictions, [answer.predictions[0] for answer in single]):
        for answer, reference in zip(answers, predictions, strict=True):
            assert [
                (prediction.start, prediction.end, prediction.kind, prediction.text)
                for prediction in answer.mentions
            ] == [
                (prediction.start, prediction.end, prediction.kind, prediction.text)
                for prediction in reference.mentions
            ]
            sure = [prediction.confidence for prediction in reference.mentions]
            assert [prediction.confidence for prediction in answer.mentions] == pytest.approx(
                sure, abs=1e-3
            )


def bare(mentions: tuple[Mention, ...]) -> list[tuple[int, int, str]]:
    return [(mention.start, mention.end, mention.kind) for mention in mentions]


def test_how_rows_are_cut_into_micro_batches_changes_no_loss(tmp_path: Path) -> None:
    losses = []
    for budget in (64, 512):
        folder = tmp_path / str(budget)
        folder.mkdir()
        study = tiny.mention_study(
            folder, TASK, "train.epochs=2", f"train.token_budget={budget}", "lora.dropout=0"
        )
        losses.append([row.train_loss for row in tiny.trial(study, folder).run().history])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_release_of_tagging_has_no_route_for_labels(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mention_f1"):
        tiny.mention_study(tmp_path, "{name: tagging, metric: f1_macro}")
