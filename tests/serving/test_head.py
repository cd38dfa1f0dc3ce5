"""What a replica holds of a release: merged where that is exact or was measured, else as it was trained."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
from peft import PeftModel

from medray.prediction import Model
from medray.records import MergeRecord
from medray.registry import Registry
from medray.serving.head import open_head
from medray.serving.schemas import AppOptions, ClassifyRequest

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
def test_a_release_answers_merged_only_where_that_changes_nothing(
    tmp_path: Path, quantization: str, merge: MergeRecord | None, is_merged: bool
) -> None:
    settings = ["train.epochs=1", f"model.quantization={quantization}"]
    checkpoint = tiny.trial(tiny.study(tmp_path, *settings), tmp_path).run().checkpoint
    release = Registry(str(tmp_path / "runs")).publish(checkpoint, "cancer", merge=merge)
    options = AppOptions(releases=("cancer",), storage_path=str(tmp_path / "runs"), precision="fp32", token_budget=256)
    with ThreadPoolExecutor(1) as thread:
        head = open_head(release, options, thread, device="cpu")
        found = head.answer(ClassifyRequest(inputs=TEXTS), max_tokens=1000, deadline=time.monotonic() + 30)
    assert isinstance(head.batcher.engine.built.model, PeftModel) != is_merged
    for answer, wanted in zip(found, Model(release.reference, release.load()).predict(TEXTS), strict=True):
        assert answer.labels == wanted.labels
        assert list(answer.probabilities.values()) == pytest.approx(wanted.probabilities, abs=1e-3)
