"""The baselines of a study: a frozen encoder beside counted words."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny
from support.in_process import CLUSTER, call

from medray.config.study import StudyConfig
from medray.config.trial import TrialConfig
from medray.data import dataset
from medray.evaluation import baselines
from medray.study import references
from medray.study.placement import Placement, place
from medray.study.references import FrozenEncoder
from medray.tasks.base import protocol as tasks
from medray.tasks.base.protocol import Task


def task_of(study: StudyConfig) -> Task:
    rows = dataset.load(study.data)
    return tasks.fit(study.task, rows.label_sets(), rows.train)


def configs(study: StudyConfig) -> list[TrialConfig]:
    return [study.trial(base) for base in study.base_models]


def placement_of(study: StudyConfig) -> Placement:
    return place(configs(study)[0].resources, CLUSTER, 1)


def encoder_of(study: StudyConfig, call: Any = call) -> FrozenEncoder | None:
    return references.frozen_encoder(configs(study), task_of(study), placement_of(study), call)


def counter() -> tuple[list[int], Any]:
    """Return a list of the numbers of texts that encoders read, and a caller that extends it."""
    num_read: list[int] = []

    def count(function: Callable[..., Any], arguments: Sequence[Any], where: Placement) -> Any:
        num_read.append(len(arguments[0][2]))
        return call(function, arguments, where)

    return num_read, count


def test_the_smallest_encoder_of_a_study_reads_the_texts(tmp_path: Path) -> None:
    large, small = tiny.base(tmp_path, "roberta", num_hidden_layers=4), tiny.base(tmp_path, "bert")
    llama = tiny.base(tmp_path, "llama")
    bases = f"base_models=[{{source: {llama}}}, {{source: {large}}}, {{source: {small}}}]"
    encoder = encoder_of(tiny.study(tmp_path, bases))
    assert encoder is not None
    assert encoder.name == "frozen tiny-bert + logistic regression"


def test_a_study_of_decoders_has_no_frozen_encoder(tmp_path: Path) -> None:
    assert encoder_of(tiny.study(tmp_path, family="llama")) is None
    assert encoder_of(tiny.choice_study(tmp_path)) is None


def test_a_frozen_encoder_reads_each_text_once_and_gives_the_same_row_each_time(
    tmp_path: Path,
) -> None:
    num_read, count = counter()
    encoder = encoder_of(tiny.study(tmp_path), count)
    assert encoder is not None
    first = encoder.fit_transform(["tumour growth", "heart failure", "tumour growth"])
    second = encoder.transform(["heart failure", "renal failure of a patient"])
    assert num_read == [2, 1]
    assert np.array_equal(first[0], first[2])
    assert np.array_equal(first[1], second[0])
    assert np.abs(first[0] - first[1]).max() > 1e-3


def test_a_long_text_in_windows_is_one_row_of_features(tmp_path: Path) -> None:
    windows = ("task.max_length=8", "task.long_texts=windows", "task.window_overlap=2")
    encoder = encoder_of(tiny.study(tmp_path, *windows))
    assert encoder is not None
    features = encoder.transform(["tumour growth in the lung " * 6, "heart failure"])
    assert features.shape[0] == 2
    assert np.linalg.norm(features, axis=1) == pytest.approx([1, 1], abs=1e-5)


def test_baselines_are_the_majority_counted_words_and_the_frozen_encoder(tmp_path: Path) -> None:
    study = tiny.study(tmp_path)
    rows = dataset.load(study.data)
    candidates = references.baseline_candidates(
        task_of(study), rows, rows.unlabelled_test(), encoder_of(study)
    )
    assert [candidate.entry.name for candidate in candidates] == [
        "majority",
        "TF-IDF + logistic regression",
        "frozen tiny-bert + logistic regression",
    ]
    settings = candidates[2].entry.settings
    assert settings.keys() == {"features", "C", "class_weight"}
    for candidate in candidates:
        assert [row.row_id for row in candidate.test] == [
            example.id for example in rows.unlabelled_test()
        ]


def test_on_a_cpu_a_frozen_encoder_reads_a_sample_of_the_training_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "MOST_ROWS_ON_CPU", 10)
    study = tiny.study(tmp_path)
    rows = dataset.load(study.data)
    num_read, count = counter()
    on_cpu = references.baseline_candidates(
        task_of(study), rows, rows.unlabelled_test(), encoder_of(study, count)
    )
    texts = {example.text for example in (*rows.train, *rows.validation, *rows.unlabelled_test())}
    assert num_read == [len(texts) - len(rows.train) + 10]
    assert on_cpu[2].entry.name.endswith(f"(fitted on 10 of {len(rows.train)} rows)")
    with_gpu = replace(placement_of(study), gpus=1.0)
    encoder = references.frozen_encoder(configs(study), task_of(study), with_gpu, count)
    assert encoder is not None
    assert encoder.most_rows == baselines.MOST_ROWS
