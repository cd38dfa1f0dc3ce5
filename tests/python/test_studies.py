"""Studies from Python."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from support import in_process, tiny

import medray
from medray.config.load import load_study
from medray.errors import ConfigError, DataError


def quick(folder: Path) -> dict[str, Any]:
    """Settings of a study that takes seconds."""
    return {
        "base_models": [str(tiny.base(folder))],
        "storage_path": str(folder / "runs"),
        "train": {"epochs": 1, "learning_rate": 0.01, "token_budget": 512},
        "task": {"max_length": 64},
        "model": {"precision": "fp32"},
        "resources.cpus_per_worker": 1,
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    config = tiny.study(tmp_path)
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return file


def test_keywords_replace_settings_of_a_file_a_mapping_or_a_config(path: Path) -> None:
    from_file = medray.Study(path, train={"epochs": 5}, **{"lora.r": 4})
    from_mapping = medray.Study(
        yaml.safe_load(path.read_text()), train={"epochs": 5}, **{"lora.r": 4}
    )
    from_config = medray.Study(load_study([path]), train={"epochs": 5}, **{"lora.r": 4})
    for study in (from_file, from_mapping, from_config):
        assert (study.config.train.epochs, study.config.lora.r) == (5, 4)
        assert study.config.train.samples_per_step == 8  # of the file


def test_the_printed_yaml_repeats_the_study(path: Path, tmp_path: Path) -> None:
    study = medray.Study(path, seed=7)
    (tmp_path / "again.yaml").write_text(str(study))
    assert medray.Study(tmp_path / "again.yaml").config == study.config


def test_a_mapping_of_the_caller_stays_as_it_is(path: Path) -> None:
    raw = yaml.safe_load(path.read_text())
    copy = yaml.safe_load(path.read_text())
    medray.Study(raw, train={"epochs": 9})
    assert raw == copy


def test_mistakes_are_those_of_the_command_line(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.epoch"):
        medray.Study(path, train={"epoch": 3})
    with pytest.raises(ConfigError, match="no such file"):
        medray.Study("missing.yaml")


def test_a_study_is_audited_and_planned_without_training(path: Path) -> None:
    study = medray.Study(path)
    (audit,) = study.audit()
    assert "60" in audit.render()
    assert study.plan().bases[0].num_trials == 1


def test_two_labels_need_a_positive_one_or_another_metric(
    table: dict[str, list[str]], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"two labels, .*; name the one .* positive='LABEL'"):
        medray.fit(table, text="abstract", label="condition", storage_path=str(tmp_path))


def test_columns_may_be_named_by_their_numbers(tmp_path: Path) -> None:
    rows = [["one text", "x"], ["another text", "y"]] * 3
    with pytest.raises(ConfigError, match="label '1': there are two labels"):
        medray.fit(pd.DataFrame(rows), text=0, label=1, storage_path=str(tmp_path))
    with pytest.raises(DataError, match="text '2': allowed: 0, 1"):
        medray.fit(pd.DataFrame(rows), text=[0, 2], label=1, storage_path=str(tmp_path))


def test_a_table_becomes_a_result_that_can_be_repeated(
    table: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    in_process.without_ray(monkeypatch)
    frame = pd.DataFrame(table)
    result = medray.fit(
        frame,
        text="abstract",
        label="condition",
        name="conditions",
        positive="cancer",
        budget_minutes=5,
        **quick(tmp_path),
    )
    assert "medray study" in capsys.readouterr().out
    study = medray.Study(tmp_path / "runs" / "conditions.yaml")
    assert study.config.search.time_s == 300
    assert result.leaderboard.loc[0, "is_winner"] == (
        result.leaderboard["name"][0] == result.winner.name
    )
    assert 0 <= result.figures["low"] <= result.figures["f1_binary"] <= result.figures["high"] <= 1
    assert "winner" in repr(result)
    assert "<svg" in result._repr_html_()
    assert result.report(tmp_path / "page.html").read_text().startswith("<!doctype html>")
    new = result.publish("again", alias="best")
    release = medray.load("again@best", storage_path=str(tmp_path / "runs"))
    assert release.reference == new.reference
    assert len(release.predict(frame, text="abstract")) == len(frame)
    assert "again" in release.card
    before = release.predict_proba(frame, text="abstract")
    release.export(tmp_path / "export", merged=True)
    assert (tmp_path / "export" / "README.md").is_file()
    assert np.array_equal(release.predict_proba(frame, text="abstract"), before)
    assert medray.Result.of(tmp_path / "runs" / "conditions").winner == result.winner
    assert result.load().predict(["carcinoma"])[0].labels[0] in ("cancer", "other")
