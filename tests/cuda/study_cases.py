"""The processes of a study outside its trials: a GPU that is not reserved for them stays free.

tests/test_cuda.py runs this file in a process of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.pretend_cuda import Device

from medray.config.load import public_settings
from medray.config.study import StudyConfig
from medray.data import dataset
from medray.registry.loading import load
from medray.study import candidates, references

Work = Callable[[StudyConfig, Path, float], Any]


def final_test(study: StudyConfig, checkpoint: Path, gpus: float) -> Any:
    data = dataset.load(study.data)
    return candidates.predict(
        str(checkpoint), data.unlabelled_test(), data.validation, 1, gpus
    ).test


def base_model(study: StudyConfig, checkpoint: Path, gpus: float) -> Any:
    config, rows = trial_of(study), dataset.load(study.data).validation
    state = load(checkpoint).task.state()
    return candidates.predict_base_model(config, state, rows, rows, 1, gpus)[1]


def features(study: StudyConfig, checkpoint: Path, gpus: float) -> Any:
    state = load(checkpoint).task.state()
    return references.embed(trial_of(study), state, ("fever", "renal tumour"), 1, gpus)[0]


def trial_of(study: StudyConfig) -> dict[str, Any]:
    return public_settings(study.trial(study.base_models[0]))


@pytest.mark.parametrize(
    ("kind", "work"),
    [
        ("classification", final_test),
        ("choice", final_test),
        ("choice", base_model),
        ("classification", features),
    ],
)
def test_a_process_of_a_study_computes_on_a_gpu_only_where_one_is_reserved(
    tmp_path: Path, gpu: Device, kind: str, work: Work
) -> None:
    make = tiny.study if kind == "classification" else tiny.choice_study
    study = make(tmp_path, "train.epochs=1", "resources.gpus_per_worker=0", num_rows=24)
    checkpoint = tiny.trial(study, tmp_path).run().checkpoint
    assert not gpu.kernels
    results = [work(study, checkpoint, 0.0)]
    assert not gpu.kernels
    results.append(work(study, checkpoint, 1.0))
    assert gpu.kernels
    on_cpu, on_device = ([values_of(each) for each in result] for result in results)
    for one, other in zip(on_cpu, on_device, strict=True):
        assert one == pytest.approx(other, abs=0.02)


def values_of(result: Any) -> list[float]:
    """Return the probabilities of a prediction, or the numbers of a vector."""
    return [float(each) for each in getattr(result, "probabilities", result)]
