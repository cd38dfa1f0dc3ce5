"""Tests of the command `medray` as users run it."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from support import in_process, serve_session, tiny
from support.chaos import Study, hear_interrupts

from medray import cli
from medray.config.load import dump_settings
from medray.registry.registry import Registry
from medray.runtime.cluster import Cluster
from medray.storage import checkpoint, files
from medray.study.run import Run

# Counted words are better than a model of random weights.
PUBLISH = "publish={name: cancer, allow_worse: true}"


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


class Command:
    """Runs the command in this process, because importing torch per call would take most of the
    time."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str) -> Result:
        self.capsys.readouterr()
        status = cli.main(arguments)
        output = self.capsys.readouterr()
        return Result(status, output.out, output.err)


@pytest.fixture
def medray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.chdir(tmp_path)
    return Command(capsys)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(dump_settings(tiny.study(tmp_path, "train.epochs=2")))
    return path


@dataclass(frozen=True)
class Search:
    folder: Path  # working directory of the command
    result: Result

    @property
    def run(self) -> Path:
        (run,) = (self.folder / "runs" / "tiny").iterdir()
        return run


@pytest.fixture(scope="module")
def search(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Search:
    """Run `medray study` once for all tests that check its results. None of them may start another
    run of this study."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "study.yaml").write_text(
        dump_settings(tiny.study(folder, "train.epochs=2", "task.metric=f1_binary"))
    )
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(["study", "study.yaml", PUBLISH])
    return Search(folder, Result(status, out.getvalue(), err.getvalue()))


def test_a_missing_study_in_a_job_is_reported_with_what_ray_does_not_send(
    tmp_path, monkeypatch, capsys
):
    assert cli.main(["study", str(tmp_path / "none.yaml"), "--dry-run"]) == 1
    message = f"medray: {tmp_path}/none.yaml: no such file; correct the path\n"
    assert capsys.readouterr().err == message
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert cli.main(["study", str(tmp_path / "none.yaml"), "--dry-run"]) == 1
    assert (
        "none.yaml: no such file; ray job submit sends no file that .gitignore names"
        in capsys.readouterr().err
    )


@pytest.mark.ray
@pytest.mark.document(
    "003",
    "training is configured by one YAML file, another file by its name",
    where="`medray study FILE`",
)
def test_a_study_is_searched_ranked_published_and_reported(
    medray: Command, search: Search, tmp_path: Path
) -> None:
    result, runs = search.result, str(search.folder / "runs" / "tiny")
    assert result.returncode == 0, result.stderr
    for part in (
        "60 rows",
        "always answering",
        "epoch 1  step 5",
        "winner: tiny-bert-000",
        "12 test rows",
        "TF-IDF",
        "published: cancer@1",
    ):
        assert part in result.stdout
    stages = (
        "checking the study",
        "starting Ray",
        "reading the data",
        "tokenizing for ",
        "waiting for the first trial",
        "predicting the test",
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith(stages)]
    assert list(
        dict.fromkeys(stage for line in lines for stage in stages if line.startswith(stage))
    ) == list(stages)
    page = search.run / "report.html"
    assert f"report: {page}" in result.stdout
    assert "tiny-bert with LoRA won" in page.read_text(encoding="utf-8")
    assert len(list(page.parent.glob("tensorboard/tiny-bert-000/events.*"))) == 1
    assert medray("report", runs, "--output", "again.html").returncode == 0
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    assert medray("leaderboard", runs).stdout.startswith("# tiny\n")
    assert medray("leaderboard", runs, "--format", "csv").stdout.startswith("place,name,kind")


@pytest.mark.ray
def test_a_trial_of_ray_records_the_commit_of_its_study(search: Search) -> None:
    release = Registry(str(search.folder / "runs")).resolve("cancer@1")
    commit = checkpoint.git_commit()
    if commit is None:
        pytest.skip("this folder is no git repository")
    assert checkpoint.read(release.folder()).git_commit == commit


@pytest.mark.ray
def test_a_study_that_ended_is_read_again_on_resume_and_other_settings_or_no_run_are_refused(
    medray: Command, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(search.folder)
    wrong_folder = medray("study", "study.yaml", "--resume", "storage_path=elsewhere")
    assert wrong_folder.returncode == 1
    assert "has no run of a study" in wrong_folder.stderr
    run = search.run
    other_settings = medray("study", "study.yaml", PUBLISH, "--resume", "lora.r=3")
    assert other_settings.returncode == 1
    assert (
        "was started with other settings: lora.r was 16 and is 3; a resume may change "
        "search.num_trials"
    ) in other_settings.stderr
    resume = medray("study", "study.yaml", PUBLISH, "--resume")
    assert resume.returncode == 0, resume.stderr
    assert search.result.stdout.split("winner:")[1] == resume.stdout.split("winner:")[1]
    assert "opened" not in resume.stderr
    assert search.run == run


@pytest.mark.ray
def test_a_winner_that_is_worse_than_a_baseline_is_withheld_with_exit_status_3(
    medray: Command, search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "searched"
    shutil.copytree(search.folder, copy)
    (board_path,) = copy.glob("runs/tiny/*/leaderboard.json")
    board = json.loads(board_path.read_text(encoding="utf-8"))
    for pair in board["comparisons"]:
        pair["is_tie"] = pair["split"] != "validation" or pair["other"] != "majority"
        pair["comparison"]["difference"] = -0.3
    board_path.write_text(json.dumps(board), encoding="utf-8")
    for settings in (copy / "study.yaml", board_path.parent / "study.yaml"):
        text = settings.read_text(encoding="utf-8")
        settings.write_text(
            text.replace(str(search.folder / "runs"), str(copy / "runs")), encoding="utf-8"
        )
    monkeypatch.chdir(copy)
    command = ("study", "study.yaml", "--resume")
    result = medray(*command, "publish.name=lymphoma")
    assert result.returncode == 3, result.stderr
    assert (
        "medray: study tiny: the winner tiny-bert-000 is not published: majority is "
        "better on validation rows"
    ) in result.stderr
    assert "published:" not in result.stdout
    earlier = ("publish", "runs/tiny", "lymphoma", "--alias", "best", "--abstain-precision", "0.5")
    assert medray(*earlier).returncode == 0
    override = medray(*command, "publish={name: lymphoma, allow_worse: true}")
    assert override.returncode == 0, override.stderr
    assert "published: lymphoma@2" in override.stdout
    assert override.stdout.splitlines()[-1] == (
        "lymphoma@best moved from version 1 to 2; medray rollback lymphoma best --no-wait moves it "
        "back"
    )


@pytest.mark.ray
def test_a_winner_is_published_listed_verified_evaluated_and_exported(
    medray: Command, search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(search.folder)
    publication = medray("publish", "runs/tiny", "tumour", "--alias", "best")
    assert publication.stdout.splitlines()[0] == "tumour@1 is tumour@best", publication.stderr
    checkpoint = re.search(r"checkpoint: (.*)", search.result.stdout)
    assert checkpoint
    # The same checkpoint is not a new version, but with another rule it is.
    same = medray("publish", checkpoint.group(1), "tumour")
    assert same.stdout.splitlines()[0] == "tumour@1"
    again = medray("publish", "runs/tiny", "tumour", "--abstain-precision", "0.5")
    assert again.stdout.splitlines()[0] == "tumour@2", again.stderr
    assert (
        Registry(str(search.folder / "runs")).resolve("tumour@2").record.calibration.abstention
        is not None
    )
    listing = medray("releases").stdout
    assert "tumour@1 @best" in listing
    assert "test accuracy" in listing
    plain = tmp_path / "plain"
    assert medray("export", "tumour@best", str(plain), "--merged").returncode == 0
    assert "test (12 rows)" in (plain / "README.md").read_text()
    assert "answers its probe" in medray("verify", "tumour@best").stdout

    board = json.loads(medray("leaderboard", "runs/tiny", "--json").stdout)
    winner = next(entry for entry in board["entries"] if entry["name"] == board["winner"])
    evaluation = json.loads(medray("evaluate", "tumour@best", "study.yaml", "--json").stdout)
    assert evaluation["metrics"]["values"] == pytest.approx(winner["test"], abs=1e-5)
    assert evaluation["num_openings"] == 2
    on_validation = medray("evaluate", checkpoint.group(1), "study.yaml", "--split", "validation")
    assert f"f1_binary {winner['validation']['f1_binary']:.4f}" in on_validation.stdout
    other = medray("evaluate", "tumour@best", "study.yaml", "data.split.seed=5")
    assert other.returncode == 1
    assert "of the 12 rows of --split test trained it" in other.stderr
    assert (
        "36 of the 60 rows of --split all trained it"
        in medray("evaluate", "tumour@best", "study.yaml", "--split", "all").stderr
    )

    review = medray("review", "runs/tiny")
    assert "of 12 validation rows are predicted wrongly" in review.stdout, review.stderr

    # Another study opens the same test rows; it has its own folder of runs, but the same log.
    in_process.without_ray(monkeypatch)
    again = medray("study", "study.yaml", "name=second", "train.epochs=1")
    assert again.returncode == 0
    assert "test labels of this split were opened 2 time(s) before" in again.stderr

    (folder,) = (search.folder / "runs" / "checkpoints").iterdir()
    metrics_path = folder / "metrics.json"
    whole = metrics_path.read_bytes()
    metrics_path.write_text("{}")
    verification = medray("verify", "tumour")
    metrics_path.write_bytes(whole)
    assert verification.returncode == 1
    assert "metrics.json was changed" in verification.stderr


def test_dry_run_prints_the_resolved_configuration_and_trains_nothing(
    medray: Command, study: Path, tmp_path: Path
) -> None:
    result = medray("study", "study.yaml", "lora.r=4", "--dry-run")
    assert result.returncode == 0
    assert yaml.safe_load(result.stdout)["lora"]["r"] == 4
    assert not (tmp_path / "runs").exists()


def test_dry_run_lists_mistakes_of_data_base_models_and_storage_at_once(
    medray: Command, study: Path, tmp_path: Path
) -> None:
    wrong = ("task.positive_label=tumor", "base_models=[{source: /none}]")
    result = medray("study", "study.yaml", *wrong, "--dry-run")
    assert result.returncode == 1
    assert "study tiny, 2 mistakes:" in result.stderr
    assert "tumor" in result.stderr
    assert "base model /none: /none: this folder does not exist" in result.stderr


def test_dry_run_reads_the_data(medray: Command, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(dump_settings(tiny.choice_study(tmp_path)))
    too_small = "data.limit: 2 is too small; a train row of every label needs 3"
    assert medray("study", "study.yaml", "--dry-run").returncode == 0
    result = medray("study", "study.yaml", "data.limit=2", "--dry-run")
    assert result.returncode == 1
    assert too_small in result.stderr
    assert (
        "data.evaluation_rows: 2 is too small"
        in medray("study", "study.yaml", "data.evaluation_rows=2", "--dry-run").stderr
    )
    space = ("search.space={data.limit: {choice: [2, 30]}}", "search.num_trials=2")
    assert too_small in medray("study", "study.yaml", *space, "--dry-run").stderr
    rows = (tmp_path / "choices.jsonl").read_text().splitlines()
    (tmp_path / "choices.jsonl").write_text("\n".join([*rows[:6], rows[6][:-9], *rows[7:]]) + "\n")
    result = medray("study", "study.yaml", "--dry-run")
    assert result.returncode == 1
    assert "choices.jsonl:7" in result.stderr


def test_every_mistake_is_listed_at_once_with_exit_status_1(
    medray: Command, study: Path, tmp_path: Path
) -> None:
    result = medray("study", "study.yaml", "lora.rr=4", "train.epochs=0", "task.metrc=f1")
    assert result.returncode == 1
    for part in (
        "lora.rr: unknown key",
        "did you mean 'r'",
        "train.epochs: input should be greater",
        "task.metrc: unknown key",
        "did you mean 'metric'",
    ):
        assert part in result.stderr
    result = medray(
        "study",
        "study.yaml",
        "data.format.text=[body]",
        "lora.targets=[q_proj]",
        "storage_path=study.yaml/x",
    )
    assert result.returncode == 1
    for part in (
        "3 mistakes",
        "names 'body'; allowed: ",
        "none of q_proj is a linear layer of bert",
        "is not a writable folder",
    ):
        assert part in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_audit_prints_text_and_json(medray: Command, study: Path, tmp_path: Path) -> None:
    result = medray("data", "audit", "study.yaml")
    assert result.returncode == 0, result.stderr
    assert "no classifier gets more than" in result.stdout
    (audit,) = json.loads(medray("data", "audit", "study.yaml", "--json").stdout)
    assert audit["num_rows"] == 60


@pytest.mark.document(
    "000",
    "both classes become one table with class labels",
    where="`medray data convert`",
)
def test_convert_writes_the_combined_file_and_never_over_another(
    medray: Command, study: Path, tmp_path: Path
) -> None:
    command = (
        "data",
        "convert",
        "name=jsonl,path=rows.jsonl,id=id",
        "name=delimited,path=combined.psv,id=ID,text=[Title_Abstract],label=Label",
    )
    assert medray(*command).returncode == 0
    lines = (tmp_path / "combined.psv").read_text().splitlines()
    assert lines[0] == "ID|Title_Abstract|Label"
    assert len(lines) == 61
    before = files.hash_file(tmp_path / "combined.psv")
    again = medray(*command)
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert files.hash_file(tmp_path / "combined.psv") == before


def test_the_schema_knows_every_option_of_every_plugin(medray: Command, tmp_path: Path) -> None:
    schema = medray("schema").stdout
    assert {"positive_label", "label_separator", "keys", "samples_per_step"} <= set(
        schema.replace('"', " ").split()
    )
    json.loads(schema)


def test_the_installed_command_answers_a_mistake_with_one_sentence_and_a_wrong_call_with_its_usage(
    study: Path, tmp_path: Path
) -> None:
    command = Path(sys.executable).with_name("medray")
    result = subprocess.run(
        [command, "study", "study.yaml", "lora.r=many"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("medray: study.yaml: lora.r: input should be a valid integer")
    assert "Traceback" not in result.stderr
    wrong = subprocess.run([command, "stduy"], capture_output=True, text=True, cwd=tmp_path)
    assert wrong.returncode == 2
    assert "No such command" in wrong.stderr


def test_an_interrupt_prints_how_to_continue(
    medray: Command, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        "medray.runtime.cluster.start_cluster", lambda: contextlib.nullcontext(in_process.CLUSTER)
    )
    monkeypatch.setattr("medray.study.study.run", interrupt)
    result = medray("study", "study.yaml")
    assert result.returncode == 130
    assert "`medray study --resume` continues from the last stored state" in result.stderr


@pytest.mark.ray
def test_ctrl_c_ends_a_search_cleanly_and_what_ran_can_go_on(study: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [
        Path(sys.executable).with_name("medray"),
        "study",
        "study.yaml",
        "train.epochs=500",
        "train.log_every_steps=1",
    ]
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    assert running.stdout is not None
    for line in running.stdout:
        if "epoch 2" in line:
            break
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 130, errors
    assert "`medray study --resume` continues" in errors
    assert "Traceback" not in errors
    (run,) = (tmp_path / "runs" / "tiny").iterdir()
    assert [record.status for record in Run(run).records()] == ["running"]
    trial = run / "trials" / "tiny-bert-000"
    log = (trial / "log.txt").read_text()
    step = int(re.findall(r" step (\d+)/", log)[-1])
    # Every training step is in a stored state.
    assert f"step-{step:06d}" in max((trial / "state").iterdir()).name
    assert "no state within resources.grace_s" not in errors


@pytest.mark.ray
@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_study_at_once(study: Path, tmp_path: Path) -> None:
    running = Study(
        study, "train.epochs=100000", "train.evaluate_every_steps=1000000", "resources.grace_s=600"
    )
    try:
        running.until("waiting for the first trial")
        # A trial writes this file when it starts to train.
        while not list(tmp_path.glob("runs/tiny/*/trials/*/training")):
            assert running.process.poll() is None
            time.sleep(0.1)
        running.children |= serve_session.processes(running.process.pid)
        (trial,) = (
            number
            for number, name in running.children.items()
            if name.startswith("ray::TrialActor")
        )
        os.kill(trial, signal.SIGSTOP)  # it cannot store a state, so the study waits for it
        os.kill(running.process.pid, signal.SIGINT)
        running.until("within 600 s; interrupt again to end it at once")
        os.kill(running.process.pid, signal.SIGINT)
        result = running.end(timeout_s=120)
        assert result.status == 130, result.output
        assert "`medray study --resume` continues" in result.output
        assert "Traceback" not in result.output
        assert not running.survivors(), "processes were left behind"
    finally:
        running.abandon()
