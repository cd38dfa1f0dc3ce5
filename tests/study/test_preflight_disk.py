"""The disk space of a study is estimated before its start. A study that does not fit is refused."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import tiny

from medray.errors import ConfigError
from medray.models.architecture import num_adapter_weights
from medray.study import preflight


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_an_adapter_is_as_large_as_was_told_and_a_trial_stays_below_its_estimate(
    tmp_path: Path, family: str
) -> None:
    study = tiny.study(tmp_path, "train.keep_checkpoints=2", family=family)
    trial = tiny.trial(study, tmp_path)
    folder = trial.run().folder
    estimate = num_adapter_weights(tmp_path / f"tiny-{family}", study.lora)
    assert (
        trial.model.num_trainable <= estimate <= 1.1 * trial.model.num_trainable
    )  # a pooler is trained where the base lacks one
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert num_bytes <= preflight.num_bytes(study)
    assert preflight.num_trial_bytes(study, study.base_models[0]) > 0.5 * num_bytes


def test_repeats_and_searched_ranks_count(tmp_path: Path) -> None:
    def trials(*settings: str) -> float:
        study = tiny.study(tmp_path, *settings)
        return (
            preflight.num_bytes(study) - preflight.num_bytes(tiny.study(tmp_path))
        ) / preflight.num_trial_bytes(study, study.base_models[0])

    assert trials(
        "search.space={train.learning_rate: {choice: [0.1, 0.2, 0.3, 0.4]}}", "search.num_trials=4"
    ) == pytest.approx(3)
    assert trials("search.num_seeds=3") == pytest.approx(2)
    assert trials("data.split={kind: kfold, folds: 5}") == pytest.approx(4)
    small, large = (
        tiny.study(tmp_path, f"search.space={{lora.r: {{choice: [2, {r}]}}}}") for r in (4, 64)
    )
    assert preflight.num_bytes(large) > preflight.num_bytes(small)


def test_a_disk_that_is_too_full_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny.study(tmp_path)
    preflight.check(study)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=49_000_000))
    with pytest.raises(
        ConfigError,
        match=(
            r"storage_path: .* has 49 MB free, and this study may write 5\d MB; use fewer .*medray "
            r"gc"
        ),
    ):
        preflight.check(study)
    (tmp_path / "runs" / "tiny" / "1" / "trials").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "1" / "study.yaml").write_text("")
    (tmp_path / "runs" / "tiny" / "1" / "trials" / "written").write_bytes(b"0" * 5_000_000)
    preflight.check(study, resume=True)
