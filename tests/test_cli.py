"""The command as a user runs it."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import yaml

from medray import cli, config, storage


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def medray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command in this process: importing torch anew for every call would be most of the time."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        status = cli.main(arguments)
        shown = capsys.readouterr()
        return Done(status, shown.out, shown.err)

    return run


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(config.dump(tiny.study(tmp_path, "train.epochs=2")))
    return path


def test_train_prints_audit_epochs_and_test_figures_and_a_second_run_says_the_test_was_seen(
    medray: Callable[..., Done], study: Path, tmp_path: Path
) -> None:
    done = medray("train", "study.yaml")
    assert done.returncode == 0, done.stderr
    for part in ("60 rows", "always answering", "epoch 1  step 5", "validation accuracy", "test (12 rows)", "checkpoint: "):
        assert part in done.stdout
    folder = Path(done.stdout.rsplit("checkpoint: ", 1)[1].strip())
    assert (folder / "manifest.json").is_file()
    assert json.loads((folder.parent.parent / "test_metrics.json").read_text())["split"] == "test"
    again = medray("train", "study.yaml", "train.epochs=1")
    assert again.returncode == 0
    assert "test labels of this split were opened 1 time(s) before" in again.stderr


def test_a_checkpoint_is_published_listed_verified_and_exported(medray: Callable[..., Done], study: Path, tmp_path: Path) -> None:
    trained = medray("train", "study.yaml", "train.epochs=1")
    folder = trained.stdout.rsplit("checkpoint: ", 1)[1].strip()
    published = medray("publish", folder, "cancer", "--alias", "best")
    assert published.stdout.strip() == "cancer@1 is cancer@best", published.stderr
    listed = medray("releases").stdout
    assert "cancer@1 @best" in listed
    assert "test accuracy" in listed
    assert medray("export", "cancer@best", "plain", "--merged").returncode == 0
    assert "test (12 rows)" in (tmp_path / "plain" / "README.md").read_text()
    assert "answers its probe" in medray("verify", "cancer@best").stdout
    (stored,) = (tmp_path / "runs" / "checkpoints").iterdir()
    (stored / "metrics.json").write_text("{}")
    broken = medray("verify", "cancer")
    assert broken.returncode == 1
    assert "metrics.json was changed" in broken.stderr


def test_an_interrupted_run_is_resumed_and_a_missing_one_is_refused(medray: Callable[..., Done], study: Path, tmp_path: Path) -> None:
    refused = medray("train", "study.yaml", "--resume")
    assert refused.returncode == 1
    assert "there is no run to resume" in refused.stderr
    medray("train", "study.yaml")
    (run,) = (tmp_path / "runs" / "tiny").iterdir()
    changed = medray("train", "study.yaml", "--resume", "lora.r=3")
    assert changed.returncode == 1
    assert "was started with other settings (- r: 16; + r: 3)" in changed.stderr
    resumed = medray("train", "study.yaml", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after step 10 of 10" in resumed.stderr
    assert [path.name for path in (tmp_path / "runs" / "tiny").iterdir()] == [run.name]


def test_dry_run_prints_the_resolved_configuration_and_trains_nothing(medray: Callable[..., Done], study: Path, tmp_path: Path) -> None:
    done = medray("train", "study.yaml", "lora.r=4", "--dry-run")
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout)["lora"]["r"] == 4
    assert not (tmp_path / "runs").exists()


def test_every_mistake_is_listed_at_once_with_exit_status_1(medray: Callable[..., Done], study: Path, tmp_path: Path) -> None:
    done = medray("train", "study.yaml", "lora.rr=4", "train.epochs=0", "task.metrc=f1")
    assert done.returncode == 1
    for part in (
        "lora.rr: unknown key",
        "did you mean 'r'",
        "train.epochs: input should be greater",
        "task.metrc: unknown key",
        "did you mean 'metric'",
    ):
        assert part in done.stderr
    done = medray("train", "study.yaml", "data.format.text=[body]", "lora.targets=[q_proj]", "storage_path=study.yaml/x")
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


def test_audit_tells_text_and_json(medray: Callable[..., Done], study: Path, tmp_path: Path) -> None:
    done = medray("data", "audit", "study.yaml")
    assert done.returncode == 0, done.stderr
    assert "no classifier gets more than" in done.stdout
    found = json.loads(medray("data", "audit", "study.yaml", "--json").stdout)
    assert found["num_rows"] == 60


def test_convert_writes_the_combined_file_and_never_over_another(medray: Callable[..., Done], study: Path, tmp_path: Path) -> None:
    asked = (
        "data",
        "convert",
        "name=jsonl,path=rows.jsonl,id=id",
        "name=delimited,path=combined.psv,id=ID,text=[Title_Abstract],label=Label",
    )
    assert medray(*asked).returncode == 0
    lines = (tmp_path / "combined.psv").read_text().splitlines()
    assert lines[0] == "ID|Title_Abstract|Label"
    assert len(lines) == 61
    before = storage.hash_file(tmp_path / "combined.psv")
    again = medray(*asked)
    assert again.returncode == 1
    assert "is there already and is left alone" in again.stderr
    assert storage.hash_file(tmp_path / "combined.psv") == before


def test_the_schema_knows_every_option_of_every_plugin(medray: Callable[..., Done], tmp_path: Path) -> None:
    schema = medray("schema").stdout
    assert {"positive_label", "label_separator", "keys", "samples_per_step"} <= set(schema.replace('"', " ").split())
    json.loads(schema)


def test_base_models_are_judged_together_at_one_opening_of_the_test_labels(medray: Callable[..., Done], tmp_path: Path) -> None:
    asked = tiny.study(tmp_path, "train.epochs=1")
    tiny.base(tmp_path, "llama")
    bert = asked.base_models[0].source
    both = f"base_models=[{{source: {bert}}}, {{source: {bert.replace('bert', 'llama')}, overrides: {{data.limit: 20}}}}]"
    (tmp_path / "study.yaml").write_text(config.dump(asked))
    done = medray("train", "study.yaml", both)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test (12 rows)") == 2
    assert "were opened" not in done.stderr
    (log,) = (tmp_path / "runs" / "test_log").iterdir()
    assert len(log.read_text().splitlines()) == 1


def test_the_installed_command_answers_a_mistake_with_one_sentence_and_a_wrong_call_with_its_usage(study: Path, tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("medray")
    done = subprocess.run([command, "train", "study.yaml", "lora.r=many"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("medray: study.yaml: lora.r: input should be a valid integer")
    assert "Traceback" not in done.stderr
    wrong = subprocess.run([command, "trian"], capture_output=True, text=True, cwd=tmp_path)
    assert wrong.returncode == 2
    assert "No such command" in wrong.stderr


def test_an_interrupt_tells_how_to_go_on(medray: Callable[..., Done], study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medray.tuning.study.run", interrupted)
    done = medray("train", "study.yaml")
    assert done.returncode == 130
    assert "`train --resume` goes on from the last stored state" in done.stderr
