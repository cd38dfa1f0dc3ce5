"""Studies from Python."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from support import in_process, tiny

import medray
from medray.config.load import load_study
from medray.errors import ArtifactError, ConfigError, DataError, MedrayError
from medray.models.precision import device_of


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
    assert repr(audit).startswith("60 rows")
    plan = study.plan()
    assert plan.bases[0].num_trials == 1
    assert re.search(r"hours/trial\n.*tiny-bert \| 0M .*\nin total at most", repr(plan))


def test_a_list_as_an_axis_says_how_it_is_written(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"space.lora.r: is a list; write \{grid: \[4, 8\]\}"):
        medray.Study(path, search={"space": {"lora.r": [4, 8]}})


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


def test_the_natural_forms_of_arguments_work(
    table: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process.without_ray(monkeypatch)
    labels = [int(label == "cancer") for label in table["condition"]]
    settings = quick(tmp_path)
    result = medray.fit(
        {
            "text": table["abstract"],
            "label": labels,
        },
        text="text",
        label="label",
        positive=1,
        watch=False,
        **settings
        | {
            "base_models": settings["base_models"][0],
            "storage_path": tmp_path / "runs",
            "train": {**settings["train"], "epochs": np.int64(1)},
        },
    )
    study = medray.Study(tmp_path / "runs" / "python.yaml")
    assert medray.Study(study).config == study.config
    assert study.config.task.positive_label == "1"
    assert medray.Result(str(result.folder)).winner == result.winner
    with pytest.raises(ConfigError, match="alias '1' looks like a version"):
        result.publish("twice", alias="1")
    with pytest.raises(ConfigError, match=r"publish: abstain_precision: .*less than 1"):
        result.publish("twice", abstain_precision=2)
    with pytest.raises(DataError, match="publish: notes is of type int"):
        result.publish("twice", notes=5)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match=r"twice: .* has no release 'twice'"):
        medray.load("twice", storage_path=tmp_path / "runs")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": None}, "text: None names no column; give the name of one, or a list"),
        ({"positive": 1}, "positive: '1' is no label; allowed: cancer, other"),
        ({"budget_minutes": "5"}, "budget_minutes: '5' is no number; give minutes"),
        ({"storage_path": None}, "storage_path: is of type NoneType; give a path as text"),
        ({"metric": ""}, "'' is not a metric of this task; allowed: accuracy"),
        ({"base_models": 5}, "base_models.0.source: must be text"),
    ],
)
def test_a_mistake_in_an_argument_of_fit_is_named(
    settings: dict[str, Any], message: str, table: dict[str, list[str]], tmp_path: Path
) -> None:
    arguments = {"metric": "f1_macro", "storage_path": str(tmp_path), "text": "abstract"} | settings
    with pytest.raises(MedrayError, match=message):
        medray.fit(table, label="condition", watch=False, **arguments)


@pytest.mark.parametrize("config", [None, 5, [], b"study.yaml", pd.DataFrame()])
def test_what_is_no_study_and_no_run_is_named(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"Study: is of type \w+; give a path"):
        medray.Study(config)
    with pytest.raises(ConfigError, match=r"Result.of: is of type \w+; give a path"):
        medray.Result.of(config)


def test_yaml_as_a_text_is_no_path(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Study: is a text of several lines; give a path, or"):
        medray.Study(path.read_text())


def test_a_release_a_device_and_a_name_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="release: is of type NoneType; give a text"):
        medray.load(None, storage_path=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="no attribute 'stduy'; did you mean 'Study'"):
        medray.stduy  # noqa: B018
    with pytest.raises(ConfigError, match="device: 'gpu' is not known; allowed: auto, cpu, cuda"):
        device_of("gpu")
