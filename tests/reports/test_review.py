import csv
import json
from pathlib import Path

import numpy as np
import pytest
from support import tiny

from medray.cli import main
from medray.config.load import dump_settings
from medray.config.study import StudyConfig
from medray.data import dataset
from medray.evaluation import analysis, leaderboard_files
from medray.evaluation.analysis import Analysis, ModelAnalysis, SplitAnalysis
from medray.evaluation.bootstrap import LabelResults
from medray.evaluation.diagnose import SplitResults, examine
from medray.evaluation.leaderboard import Entry, Leaderboard
from medray.evaluation.metrics import constant_f1
from medray.records import AS_IT_IS
from medray.registry.registry import Registry
from medray.study.run import ANALYSIS, LEADERBOARD, Run
from medray.types import Example

LABELS = ("cancer", "other")
WRONG = 2  # the first rows of each split


def answered(split: str, examples: list[Example]) -> SplitAnalysis:
    """A model that is wrong on the first rows, and the surer the earlier."""
    truth = np.array([[label in row.labels for label in LABELS] for row in examples])
    predictions = truth.copy()
    predictions[:WRONG] = ~predictions[:WRONG]
    sure = np.linspace(0.99, 0.9, len(examples))[:, None]
    return examine(
        split,  # type: ignore[arg-type]
        SplitResults(
            [row.id for row in examples],
            LabelResults(truth, predictions, 0),
            np.where(predictions, sure, 1 - sure),
            {},
        ),
        AS_IT_IS,
        labels=LABELS,
        multi_label=False,
        metric="f1_macro",
    )


@pytest.fixture
def study(tmp_path: Path) -> StudyConfig:
    """A study that has ended, without its training."""
    study = tiny.study(tmp_path)
    run, data = Run.start(study), dataset.load(study.data)
    test_rows = data.open_test(tmp_path, "a test").examples
    model = ModelAnalysis(
        "one", AS_IT_IS, answered("validation", data.validation), answered("test", test_rows)
    )
    (run.folder / ANALYSIS).write_bytes(
        analysis.to_json(Analysis("tiny", LABELS, False, "one", (model,)))
    )
    entry = Entry("one", "trial", validation={"f1_macro": 0.8}, test={"f1_macro": 0.8})
    board = Leaderboard(
        "tiny", "f1_macro", (entry,), "one", None, (), (), {"validation": 12, "test": 12}, 1
    )
    (run.folder / LEADERBOARD).write_text(leaderboard_files.to_json(board))
    return study


def folder(study: StudyConfig) -> str:
    return str(Path(study.storage_path) / "tiny")


def test_wrong_rows_are_printed_by_confidence_with_texts_only_on_request(
    study: StudyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = dataset.load(study.data).validation
    assert main(["review", folder(study)]) == 0
    output = capsys.readouterr().out
    first, second = output.splitlines()[:2]
    assert first.startswith(f"{rows[0].id}: label {rows[0].labels[0]}, predicted ")
    assert "with confidence 0.990; the label may be wrong" in first
    assert second.startswith(rows[1].id)
    assert f"{WRONG} of {len(rows)} validation rows are predicted wrongly" in output
    assert not any(row.text in output for row in rows)
    assert main(["review", folder(study), "--texts", "--max-rows", "1"]) == 0
    output = capsys.readouterr().out
    assert rows[0].text in output
    assert rows[1].text not in output
    assert not (Path(study.storage_path) / "test_log").exists()


def test_looking_at_mistakes_on_test_rows_is_logged(study: StudyConfig) -> None:
    assert main(["review", folder(study), "--split", "test"]) == 0
    (log,) = (Path(study.storage_path) / "test_log").iterdir()
    assert json.loads(log.read_text())["caller"].startswith("review ")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_what_is_exported_and_filled_in_corrects_the_data(
    study: StudyConfig, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"review.{ending}"
    assert main(["review", folder(study), "--output", str(path)]) == 0
    config = study.data.model_copy(update={"corrections": str(path)})
    assert (
        dataset.load(config).fingerprint == dataset.load(study.data).fingerprint
    )  # nothing is filled in yet
    wrong = dataset.load(study.data).validation[0]
    answer = next(label for label in LABELS if label not in wrong.labels)
    if ending == "csv":
        lines_of_csv = list(csv.DictReader(path.open()))
        lines_of_csv[0]["label"] = lines_of_csv[0]["predicted"]
        with path.open("w") as file:
            writer = csv.DictWriter(file, lines_of_csv[0])
            writer.writeheader()
            writer.writerows(lines_of_csv)
    else:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[0]["label"] = lines[0]["predicted"]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    dataset_with_corrections = dataset.load(config)
    assert dataset_with_corrections.validation[0].labels == (answer,)
    assert dataset_with_corrections.audit({}, 512, constant_f1).num_corrected == 1
    assert (
        main(["review", folder(study), "--output", str(path)]) == 1
    )  # a file with corrections is never overwritten


def test_a_release_is_reviewed_on_the_rows_of_a_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tiny.study(tmp_path, "train.epochs=1")
    Registry(study.storage_path).publish(tiny.trial(study, tmp_path).run().checkpoint, "cancer")
    (tmp_path / "study.yaml").write_text(dump_settings(study))
    assert main(["review", "cancer", str(tmp_path / "study.yaml"), "--texts", "--suspects"]) == 0
    assert "validation rows are predicted wrongly" in capsys.readouterr().out
    corrections_file = tmp_path / "fixed.csv"
    corrections_file.write_text("id,label\nr0,other\n")
    settings = [
        "evaluate",
        "cancer",
        str(tmp_path / "study.yaml"),
        f"data.corrections={corrections_file}",
    ]
    assert main([*settings, "--split", "validation"]) == 0
    assert (
        main([*settings, "--split", "all"]) == 1
    )  # corrected, they are still the rows that trained it
    assert "36 of the 60 rows of --split all trained it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--split", "all"], 2, "'all' is not one of"),
        (["--finalist", "two"], 1, "--finalist 'two' is no finalist"),
        (["study.yaml"], 2, "a run knows its study"),
        (["--output", "rows.txt"], 1, "choose .csv or .jsonl"),
    ],
)
def test_wrong_arguments_of_review_are_errors(
    study: StudyConfig,
    arguments: list[str],
    status: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["review", folder(study), *arguments]) == status
    assert message in capsys.readouterr().err
    assert main(["review", "cancer@best"]) == 2
    assert "give the YAML of a study" in capsys.readouterr().err


def test_a_missing_file_of_corrections_is_named_before_anything_starts(
    study: StudyConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.yaml").write_text(dump_settings(study))
    assert (
        main(["study", str(tmp_path / "study.yaml"), "data.corrections=missing.csv", "--dry-run"])
        == 1
    )
    assert (
        "data.corrections: missing.csv: no such file; correct the path" in capsys.readouterr().err
    )
