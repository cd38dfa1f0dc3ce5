"""A study that is extended, a study with failing trials, and a study with a broken base model that
is repaired."""

import logging
import shutil
from pathlib import Path

import pytest
from support import tiny
from support.in_process import run
from support.watcher import RecordingWatcher, figures

from medray.errors import TrialError
from medray.registry.registry import Registry
from medray.study.run import Run

RATE = "search.space={train.learning_rate: {choice: [0.01, 0.02, 0.03, 0.04]}}"


def test_a_study_that_has_ended_is_extended_ranked_anew_and_published_where_its_winner_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bert, roberta = (
        tiny.base(tmp_path, "bert"),
        tiny.base(tmp_path, "roberta", num_hidden_layers=1),
    )  # smaller: it wins a tie
    weak = f"{{source: {bert}, overrides: {{train.learning_rate: 1.0e-9}}}}"
    settings = ["publish={name: cancer, allow_worse: true}", "train.epochs=1"]
    first = tiny.study(tmp_path, f"base_models=[{weak}]", *settings)
    before = run(first)
    before_figures = figures(before.run.history("tiny-bert-000"))
    more = tiny.study(
        tmp_path,
        f"base_models=[{weak}, {{source: {roberta}}}]",
        RATE,
        "search.num_trials=2",
        *settings,
    )
    with pytest.raises(
        Exception, match=r"search\.space\.train\.learning_rate\.choice was 'not set'"
    ):
        Run.resume(more)  # a search space of the study would change that of the first base model
    own = "{train.learning_rate: {choice: [0.01, 0.02, 0.03, 0.04]}}"
    more = tiny.study(
        tmp_path,
        f"base_models=[{weak}, {{source: {roberta}, space: {own}, num_trials: 2}}]",
        *settings,
    )
    watcher = RecordingWatcher()
    with caplog.at_level(logging.WARNING):
        after = run(more, watcher, Run.resume(more))
    assert after.run.folder == before.run.folder
    assert {trial for trial, _ in watcher.evaluations} == {"tiny-roberta-000", "tiny-roberta-001"}
    assert figures(after.run.history("tiny-bert-000")) == before_figures
    assert "were opened 1 time(s) before, by study tiny" in caplog.text
    assert after.board.num_openings == 2
    assert after.board.best.base_model == str(roberta)
    assert (after.run.folder / "leaderboard-1.json").exists()
    assert after.release is not None
    assert (
        after.release.reference,
        Registry(more.storage_path).resolve("cancer@best").record.version,
    ) == ("cancer@2", 2)
    again = run(more, RecordingWatcher(), Run.resume(more))  # the study has nothing more to do
    assert again.board.num_openings == 2
    assert again.release is not None
    assert again.release.reference == "cancer@2"


def test_failures_above_the_budget_end_the_search_unjudged_and_a_mended_base_model_is_tried_again(
    tmp_path: Path,
) -> None:
    base = tiny.base(tmp_path, "bert")
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    rates = "search.space={train.learning_rate: {grid: [0.01, 0.02, 0.03, 0.04]}}"
    settings = [rates, "search.max_failed=1", "resources.max_failures=0", "train.epochs=1"]
    study = tiny.study(tmp_path, *settings)
    here = Run.start(study)
    with pytest.raises(
        TrialError,
        match=r"2 trials failed, search\.max_failed allows 1: 2 x .*tiny-bert: cannot be loaded",
    ) as error:
        run(study, here=here)
    assert "--resume --retry-failed" in str(error.value)
    assert [record.status for record in here.records()] == ["failed", "failed"]
    assert not (tmp_path / "runs" / "test_log").exists()
    (base / "model.safetensors").write_bytes(whole)
    outcome = run(study, here=Run.resume(study), retry_failed=True)
    assert [(record.status, record.error) for record in outcome.run.records()] == [
        ("finished", None)
    ] * 4


def test_a_base_model_without_its_tokenizer_is_a_row_and_the_others_are_ranked(
    tmp_path: Path,
) -> None:
    bert, roberta = tiny.base(tmp_path, "bert"), tiny.base(tmp_path, "roberta")
    for file in roberta.glob("*token*"):
        file.unlink()
    study = tiny.study(
        tmp_path, f"base_models=[{{source: {bert}}}, {{source: {roberta}}}]", "train.epochs=1"
    )
    here = Run.start(study)
    with pytest.raises(TrialError, match=r"every trial of .*tiny-roberta failed \(.*tokenizer"):
        run(study, here=here)
    board = here.leaderboard()
    assert board.best.base_model == str(bert)
    (failure,) = (entry for entry in board.entries if entry.status == "failed")
    assert "tokenizer" in str(failure.error)
    shutil.rmtree(here.folder)
