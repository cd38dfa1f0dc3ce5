"""Files of a finished study that `medray gc` removes, and files that it always keeps."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support import tiny

from medray import cli
from medray.config.study import StudyConfig
from medray.errors import ArtifactError
from medray.evaluation import leaderboard, leaderboard_files
from medray.evaluation.bootstrap import LabelResults
from medray.evaluation.leaderboard import Contender, Entry, Leaderboard
from medray.records import TrialRecord
from medray.registry.registry import Registry
from medray.storage import files
from medray.study import gc
from medray.study.run import LEADERBOARD, Run


@pytest.fixture
def study(tmp_path: Path) -> StudyConfig:
    return tiny.study(tmp_path, "train.epochs=1")


@pytest.fixture
def ended_run(study: StudyConfig, tmp_path: Path) -> Run:
    """Three trials of one training: the first won, the second is another finalist, the third
    lost."""
    run = Run.start(study)
    training = tiny.trial(study, tmp_path / "made")
    folder = training.run().folder
    candidates, entries = [], []
    for number in range(3):
        trial = f"t-{number:03d}"
        shutil.copytree(folder, run.trial_dir(trial))
        run.write(
            TrialRecord(
                trial=trial, base_model="t", base=0, number=number, settings={}, status="finished"
            )
        )
        best = next((run.trial_dir(trial) / "checkpoints").glob("step-*"))
        (best / "manifest.json").write_bytes(
            (best / "manifest.json").read_bytes() + b"\n" * number
        )  # a content id of its own
        entries.append(
            Entry(
                trial,
                "trial",
                base=0,
                validation={"f1_macro": 0.9 - number / 10},
                num_parameters=10,
                checkpoint=str(best),
            )
        )
    answers = LabelResults(*(training.task.truth(training.material.validation) for _ in range(2)))
    candidates = [
        Contender(replace(entry, test={"f1_macro": 0.8}), answers, answers) for entry in entries[:2]
    ]
    board: Leaderboard = leaderboard.conclude("tiny", "f1_macro", entries, candidates, [], 1)
    assert board.winner == "t-000"
    files.write(run.folder / LEADERBOARD, leaderboard_files.to_json(board).encode())
    return run


def file_names(run: Run) -> set[str]:
    return {
        f"{path.parent.parent.name}/{path.parent.name}"
        for kind in ("checkpoints", "state")
        for path in run.folder.glob(f"trials/*/{kind}/*")
    }


def test_losing_trials_lose_checkpoints_and_states_and_keep_their_history(
    ended_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (ended_run.trial_dir("t-000") / "state" / ".step-000004.half").mkdir()
    before = file_names(ended_run)
    assert cli.main(["gc", str(ended_run.folder.parent), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "t-002" in output
    assert "t-001" not in output
    assert "would free" in output
    assert file_names(ended_run) == before
    assert cli.main(["gc", str(ended_run.storage_dir)]) == 0
    assert "freed" in capsys.readouterr().out
    assert file_names(ended_run) == {
        f"t-00{number}/{kind}" for number in (0, 1) for kind in ("checkpoints", "state")
    }
    assert not list(ended_run.folder.glob("trials/*/state/.*"))
    assert ended_run.history("t-002")
    assert (ended_run.trial_dir("t-002") / "log.txt").parent.exists()
    assert gc.find(ended_run.folder).surplus == []


def test_asked_for_finalists_go_too_but_never_the_winner_nor_what_a_release_refers_to(
    ended_run: Run,
) -> None:
    third = Path(str(ended_run.leaderboard().entries[2].checkpoint))
    Registry(str(ended_run.storage_dir)).publish(third, "cancer")
    sweep = gc.find(ended_run.folder, finalists=True)
    assert {(item.trial, item.folder.parent.name) for item in sweep.surplus} == {
        ("t-001", "checkpoints"),
        ("t-001", "state"),
        ("t-002", "state"),
    }
    assert sweep.num_bytes > 1000


def test_a_study_that_has_not_ended_or_runs_is_left_alone(
    ended_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ended_run.lock():
        sweep = gc.find(ended_run.folder)
    assert (sweep.surplus, len(sweep.skips)) == ([], 1)
    assert "another process runs this study" in sweep.skips[0]
    (ended_run.folder / LEADERBOARD).unlink()
    assert cli.main(["gc", str(ended_run.folder)]) == 0
    assert "has not ended" in capsys.readouterr().out
    assert "t-002/state" in file_names(ended_run)
    with pytest.raises(ArtifactError, match="has no run of a study"):
        gc.find(tmp_path / "made")
