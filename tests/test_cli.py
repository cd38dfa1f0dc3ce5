"""The command as a user runs it, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml

from medray import config, storage


def medray(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "medray.cli", *arguments], capture_output=True, text=True, cwd=cwd, timeout=240)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(config.dump(tiny.study(tmp_path, "train.epochs=2")))
    return path


def test_train_prints_audit_epochs_and_test_figures_and_a_second_run_says_the_test_was_seen(study: Path, tmp_path: Path) -> None:
    done = medray("train", "study.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in ("60 rows", "always answering", "epoch 1  step 5", "validation accuracy", "test (12 rows)", "checkpoint: "):
        assert part in done.stdout
    folder = Path(done.stdout.rsplit("checkpoint: ", 1)[1].strip())
    assert (folder / "manifest.json").is_file()
    assert json.loads((folder.parent.parent / "test_metrics.json").read_text())["split"] == "test"
    again = medray("train", "study.yaml", "train.epochs=1", cwd=tmp_path)
    assert again.returncode == 0
    assert "test labels of this split were opened 1 time(s) before" in again.stderr


def test_an_interrupted_run_is_resumed_and_a_missing_one_is_refused(study: Path, tmp_path: Path) -> None:
    refused = medray("train", "study.yaml", "--resume", cwd=tmp_path)
    assert refused.returncode == 1
    assert "there is no run to resume" in refused.stderr
    medray("train", "study.yaml", cwd=tmp_path)
    (run,) = (tmp_path / "runs" / "tiny").iterdir()
    changed = medray("train", "study.yaml", "--resume", "lora.r=3", cwd=tmp_path)
    assert changed.returncode == 1
    assert "was started with other settings (- r: 16; + r: 3)" in changed.stderr
    resumed = medray("train", "study.yaml", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after step 10 of 10" in resumed.stderr
    assert [path.name for path in (tmp_path / "runs" / "tiny").iterdir()] == [run.name]


def test_dry_run_prints_the_resolved_configuration_and_trains_nothing(study: Path, tmp_path: Path) -> None:
    done = medray("train", "study.yaml", "lora.r=4", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout)["lora"]["r"] == 4
    assert not (tmp_path / "runs").exists()


def test_every_mistake_is_listed_at_once_with_exit_status_1(study: Path, tmp_path: Path) -> None:
    done = medray("train", "study.yaml", "lora.rr=4", "train.epochs=0", "task.metrc=f1", cwd=tmp_path)
    assert done.returncode == 1
    for part in (
        "lora.rr: unknown key",
        "did you mean 'r'",
        "train.epochs: input should be greater",
        "task.metrc: unknown key",
        "did you mean 'metric'",
    ):
        assert part in done.stderr
    done = medray("train", "study.yaml", "data.format.text=[body]", "lora.targets=[q_proj]", "storage_path=study.yaml/x", cwd=tmp_path)
    assert done.returncode == 1
    for part in (
        "3 mistakes",
        "asks for 'body'; allowed: ",
        "none of q_proj is a linear layer of bert",
        "not a folder that can be written to",
    ):
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_audit_tells_text_and_json(study: Path, tmp_path: Path) -> None:
    done = medray("data", "audit", "study.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no classifier gets more than" in done.stdout
    found = json.loads(medray("data", "audit", "study.yaml", "--json", cwd=tmp_path).stdout)
    assert found["num_rows"] == 60


def test_convert_writes_the_combined_file_and_never_over_another(study: Path, tmp_path: Path) -> None:
    asked = (
        "data",
        "convert",
        "name=jsonl,path=rows.jsonl,id=id",
        "name=delimited,path=combined.psv,id=ID,text=[Title_Abstract],label=Label",
    )
    assert medray(*asked, cwd=tmp_path).returncode == 0
    lines = (tmp_path / "combined.psv").read_text().splitlines()
    assert lines[0] == "ID|Title_Abstract|Label"
    assert len(lines) == 61
    before = storage.hash_file(tmp_path / "combined.psv")
    again = medray(*asked, cwd=tmp_path)
    assert again.returncode == 1
    assert "is there already and is left alone" in again.stderr
    assert storage.hash_file(tmp_path / "combined.psv") == before


def test_the_schema_knows_every_option_of_every_plugin(tmp_path: Path) -> None:
    schema = medray("schema", cwd=tmp_path).stdout
    assert {"positive_label", "label_separator", "keys", "samples_per_step"} <= set(schema.replace('"', " ").split())
    json.loads(schema)
