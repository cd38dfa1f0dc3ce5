"""Training rows of a model never evaluate it. They are recognized by their content, in any file."""

import json
import shutil
from pathlib import Path

import pytest
from support import tiny

from medray.config.load import load_study
from medray.config.trial import TrialConfig
from medray.errors import ConfigError
from medray.registry import evaluate
from medray.registry.evaluate import EvaluationSplit, ReleaseEvaluation
from medray.registry.loading import TRAIN_ROWS
from medray.storage import checkpoint


def own_data(folder: Path) -> Path:
    return Path(
        TrialConfig.model_validate(checkpoint.read(folder).trial).data.format.model_dump()["path"]
    )


def judge(
    folder: Path, data: Path, part: EvaluationSplit, place: Path, *settings: str
) -> ReleaseEvaluation:
    study = tiny.study(place, f"data.format.path={data}", *settings)
    return evaluate.evaluate(
        str(folder), study.data, part, storage_path=str(place), log_dir=place / "log"
    )


def test_data_that_overlaps_the_training_rows_is_refused_with_their_number(tmp_path: Path) -> None:
    folder = tiny.checkpoint()
    rows = own_data(folder).read_text().splitlines()
    more = tmp_path / "more.jsonl"
    more.write_text(
        "\n".join(
            [*rows, json.dumps({"id": "new", "text": "fever after surgery", "label": "other"})]
        )
        + "\n"
    )
    with pytest.raises(
        ConfigError,
        match=(
            r": 36 of the 61 rows of --split all trained it \(r\d+, r\d+, r\d+, r\d+, r\d+, …\); "
            r"remove them"
        ),
    ):
        judge(folder, more, "all", tmp_path)
    with pytest.raises(ConfigError, match=r": \d+ of the 12 rows of --split test trained it"):
        judge(folder, more, "test", tmp_path, "data.split.seed=5")
    written_anew = tmp_path / "anew.jsonl"
    contents = [json.loads(row) for row in rows]
    written_anew.write_text(
        "".join(
            json.dumps({**row, "id": f"x{row['id']}", "text": f" {row['text'].upper()}"}) + "\n"
            for row in contents
        )
    )
    with pytest.raises(ConfigError, match="36 of the 60 rows of --split all trained it"):
        judge(folder, written_anew, "all", tmp_path)
    assert judge(folder, own_data(folder), "test", tmp_path).metrics.num_rows == 12


def test_rows_that_did_not_train_are_judged_all_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "other").mkdir()
    assert (
        judge(
            tiny.checkpoint(), tiny.abstracts(tmp_path / "other", seed=9), "all", tmp_path
        ).metrics.num_rows
        == 60
    )
    assert "may include" not in caplog.text


def test_a_checkpoint_that_kept_no_rows_goes_by_fingerprints_and_says_what_cannot_be_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, folder = tiny.checkpoint(), tmp_path / "earlier"
    shutil.copytree(source, folder)
    (folder / TRAIN_ROWS).unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    for files in (manifest["files"], manifest["sizes"]):
        del files[TRAIN_ROWS]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="was trained on rows of this data"):
        judge(folder, own_data(source), "all", tmp_path)
    (tmp_path / "other").mkdir()
    judge(folder, tiny.abstracts(tmp_path / "other", num_rows=50, seed=9), "test", tmp_path)
    assert (
        "an earlier medray trained it and stored no row hashes; its training rows may include "
        "some of these rows"
    ) in caplog.text


def test_rows_that_a_task_brings_to_training_are_not_among_all_rows(tmp_path: Path) -> None:
    folder = tiny.checkpoint("instruct")
    (tmp_path / "other").mkdir()
    data = tiny.instructions(tmp_path / "other", num_rows=24, seed=9)
    study = load_study(
        [],
        [
            *(
                "name=other",
                "base_models=[{source: none}]",
                "train.epochs=1",
                "task={name: instruct}",
            ),
            f"data.format={{name: instructions, path: {data}, id: id}}",
        ],
    )
    evaluation = evaluate.evaluate(
        str(folder), study.data, "all", storage_path=str(tmp_path), log_dir=tmp_path / "log"
    )
    assert evaluation.metrics.num_rows > 24  # with the held-out pairs
