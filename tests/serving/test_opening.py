"""What a replica holds of a release: merged where that is exact or was measured, else as it was
trained."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support import tiny

from medray.models import quantization
from medray.records import MergeRecord
from medray.registry.registry import Registry
from medray.serving import opening
from medray.serving.opening import Timing, open_model
from medray.serving.schemas import AppOptions, Limits
from medray.serving.streams import LateError, TooManyTokensError
from medray.tasks.choice import ChooseRequest
from medray.tasks.classification import ClassifyRequest, ClassifyResponse

TEXTS = ("tumour in the lung", "fever after infection")


@pytest.mark.parametrize(
    ("quantization", "merge", "is_merged"),
    [
        ("none", None, True),
        ("nf4", None, False),
        ("nf4", MergeRecord(metric="f1_macro", unmerged=0.9, merged=0.9), True),
        ("nf4", MergeRecord(metric="f1_macro", unmerged=0.9, merged=0.8), False),
    ],
)
@pytest.mark.document(
    "004",
    "inference stays as fast as the base model's",
    where="`medray serve`",
    how="the adapter is merged into the base where that changes no answer",
)
def test_a_release_answers_merged_only_where_that_changes_nothing(
    tmp_path: Path, quantization: str, merge: MergeRecord | None, is_merged: bool
) -> None:
    settings = ["train.epochs=1", f"model.quantization={quantization}"]
    checkpoint = tiny.trial(tiny.study(tmp_path, *settings), tmp_path).run().checkpoint
    release = Registry(str(tmp_path / "runs")).publish(checkpoint, "cancer", merge=merge)
    options = AppOptions(
        releases=("cancer",),
        storage_path=str(tmp_path / "runs"),
        precision="fp32",
        token_budget=256,
    )
    with ThreadPoolExecutor(1) as thread:
        head = open_model(release, options, thread, device="cpu")
        answers = head.answer(
            ClassifyRequest(inputs=TEXTS),
            limits=Limits(),
            deadline=time.monotonic() + 30,
        ).predictions
    assert isinstance(head.batcher.engine.model.network, PeftModel) != is_merged
    for answer, prediction in zip(answers, release.load().predict(TEXTS), strict=True):
        assert answer.labels == prediction.labels
        assert list(answer.probabilities.values()) == pytest.approx(
            prediction.probabilities, abs=1e-3
        )


def test_a_release_whose_merge_does_not_fit_into_memory_serves_unmerged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tiny.checkpoint("study", "model.quantization=nf4")
    merge = MergeRecord(metric="f1_macro", unmerged=0.9, merged=0.9)
    release = Registry(str(tmp_path / "runs")).publish(checkpoint, "cancer", merge=merge)
    dequantize, num_layers = quantization.dequantize, 0

    def run_out(model: Any, name: str) -> None:
        nonlocal num_layers
        num_layers += 1
        if num_layers == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 224.00 MiB")
        dequantize(model, name)

    monkeypatch.setattr(quantization, "dequantize", run_out)
    model = release.load(merge=True)
    assert not model.is_merged
    assert "the merged model does not fit into memory, so it runs unmerged" in caplog.text
    for one, other in zip(model.predict(TEXTS), release.load().predict(TEXTS), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
    model.check_probe()


def test_auto_is_the_arithmetic_that_is_faster_here_and_of_equal_ones_the_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = Registry(str(tmp_path / "runs")).publish(tiny.checkpoint(), "cancer")

    def precision_of(**seconds: float) -> str:
        monkeypatch.setattr(
            opening,
            "time_texts",
            lambda engine, task, thread: Timing(0.1, seconds[engine.precision], 100),
        )
        with ThreadPoolExecutor(1) as thread:
            return open_model(
                release, AppOptions(releases=("cancer",), token_budget=256), thread, device="cpu"
            ).release.precision

    assert precision_of(fp32=3.0, bf16=2.0) == "bf16"
    assert precision_of(fp32=2.0, bf16=3.0) == "fp32"
    assert precision_of(fp32=2.0, bf16=2.0) == "fp32"


@pytest.mark.parametrize("long_texts", ["truncate", "windows"])
def test_a_text_that_the_model_reads_as_another_kind_is_flagged_and_those_of_the_data_are_not(
    tmp_path: Path, long_texts: str
) -> None:
    study = tiny.study(
        tmp_path,
        "train.epochs=1",
        f"task.long_texts={long_texts}",
        "task.max_length=24",
        "task.window_overlap=4",
        num_rows=300,
    )
    trial = tiny.trial(study, tmp_path)
    release = Registry(str(tmp_path / "runs")).publish(trial.run().checkpoint, "cancer")
    assert "embeddings.safetensors" in release.load().manifest.files
    usual = [row.text for row in trial.material.validation]
    strange = " ".join("%" * 16)  # one word again and again: no text of the data is
    texts = (*usual, strange, *usual[:2])

    def answer_with(flag: bool) -> ClassifyResponse:
        options = AppOptions(
            releases=("cancer",),
            storage_path=str(tmp_path / "runs"),
            precision="fp32",
            token_budget=256,
            flag_unlike_training=flag,
        )
        with ThreadPoolExecutor(1) as thread:
            head = open_model(release, options, thread, device="cpu")
            response = head.answer(
                ClassifyRequest(inputs=texts),
                limits=Limits(),
                deadline=time.monotonic() + 60,
            )
        assert isinstance(response, ClassifyResponse)
        return response

    flagged_answers, plain = answer_with(True), answer_with(False)
    assert plain.notes == ()
    for one, other in zip(flagged_answers.predictions, plain.predictions, strict=True):
        assert list(one.probabilities.values()) == pytest.approx(
            list(other.probabilities.values()), abs=1e-5
        )
    assert len(flagged_answers.notes) == len(texts)
    far = [bool(note.unlike_training) for note in flagged_answers.notes]
    assert sum(far[: len(usual)]) <= 2
    assert far[len(usual)], flagged_answers.notes
    assert (
        "the model reads it as unlike its data: at distance"
        in flagged_answers.notes[len(usual)].unlike_training[0]
    )
    assert [note.distance for note in flagged_answers.notes[-2:]] == pytest.approx(
        [note.distance for note in flagged_answers.notes[:2]], abs=0.01
    )


@pytest.mark.parametrize("decoding", ["score", "generate"])
def test_a_choice_is_answered_as_by_the_loaded_release_alone_and_beside_others(
    tmp_path: Path, decoding: str
) -> None:
    study = tiny.choice_study(
        tmp_path, f"task.decoding={decoding}", "train.epochs=4", family="phi", num_rows=120
    )
    release = Registry(str(tmp_path / "runs")).publish(
        tiny.trial(study, tmp_path).run().checkpoint, "triage"
    )
    reference = release.load().predict(
        texts := [f"{text} {number}" for number, text in enumerate(TEXTS * 8)]
    )
    options = AppOptions(
        releases=("triage",),
        storage_path=str(tmp_path / "runs"),
        precision="fp32",
        token_budget=256,
    )
    with ThreadPoolExecutor(1) as thread, ThreadPoolExecutor(8) as clients:
        head = open_model(release, options, thread, device="cpu")
        assert head.path == "/v1/choose"
        end = time.monotonic() + 30
        together = list(
            clients.map(
                lambda text: head.answer(ChooseRequest(text=text), limits=Limits(), deadline=end),
                texts,
            )
        )
        with pytest.raises(TooManyTokensError):
            head.answer(ChooseRequest(inputs=tuple(texts)), limits=Limits(tokens=20), deadline=end)
        with pytest.raises(LateError):
            head.answer(
                ChooseRequest(text=texts[0]),
                limits=Limits(),
                deadline=time.monotonic() - 1,
            )
    for response, prediction in zip(together, reference, strict=True):
        (answer,) = response.predictions
        assert (response.release, response.version) == ("triage", 1)
        assert "not a medical device" in response.disclaimer
        assert answer.labels == prediction.labels
        assert list(answer.probabilities.values()) == pytest.approx(
            prediction.probabilities, abs=1e-3
        )
        assert [answer.probabilities[label] for label in answer.ranked] == sorted(
            answer.probabilities.values(), reverse=True
        )
