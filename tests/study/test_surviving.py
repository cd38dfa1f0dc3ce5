"""A study that is extended, one whose trials fail, and one whose base model is broken and mended."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError
from support import tiny
from support.ray_studies import Seen, figures, run

from medray.errors import TrialError
from medray.registry.registry import Registry
from medray.runtime.cluster import Cluster
from medray.study import ray_tune
from medray.study.run import Run

pytestmark = pytest.mark.ray
RATE = "search.space={train.learning_rate: {choice: [0.01, 0.02, 0.03, 0.04]}}"


@pytest.mark.slow
def test_a_study_that_has_ended_is_extended_ranked_anew_and_published_where_its_winner_changed(
    tmp_path: Path, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    bert, roberta = tiny.base(tmp_path, "bert"), tiny.base(tmp_path, "roberta", num_hidden_layers=1)  # smaller: it wins a tie
    weak = f"{{source: {bert}, overrides: {{train.learning_rate: 1.0e-9}}}}"
    settings = ["publish={name: cancer}", "train.epochs=1"]
    first = tiny.study(tmp_path, f"base_models=[{weak}]", *settings)
    before = run(first, cluster)
    trained = figures(before.run.history("tiny-bert-000"))
    more = tiny.study(tmp_path, f"base_models=[{weak}, {{source: {roberta}}}]", RATE, "search.num_trials=2", *settings)
    with pytest.raises(Exception, match=r"search\.space\.train\.learning_rate\.choice was 'not set'"):
        Run.resume(more)  # a space of the study's would change what the first base model is searched by
    own = "{train.learning_rate: {choice: [0.01, 0.02, 0.03, 0.04]}}"
    more = tiny.study(tmp_path, f"base_models=[{weak}, {{source: {roberta}, space: {own}, num_trials: 2}}]", *settings)
    seen = Seen()
    with caplog.at_level(logging.WARNING):
        after = run(more, cluster, seen, Run.resume(more))
    assert after.run.folder == before.run.folder
    assert {trial for trial, _ in seen.rows} == {"tiny-roberta-000", "tiny-roberta-001"}
    assert figures(after.run.history("tiny-bert-000")) == trained
    assert "were opened 1 time(s) before, by study tiny" in caplog.text
    assert after.board.num_openings == 2
    assert after.board.best.base_model == str(roberta)
    assert (after.run.folder / "leaderboard-1.json").exists()
    assert after.release is not None
    assert (after.release.reference, Registry(more.storage_path).resolve("cancer@best").record.version) == ("cancer@2", 2)
    again = run(more, cluster, Seen(), Run.resume(more))  # nothing more is asked for
    assert again.board.num_openings == 2
    assert again.release is not None
    assert again.release.reference == "cancer@2"


def test_failures_above_the_budget_end_the_search_unjudged_and_a_mended_base_model_is_tried_again(tmp_path: Path, cluster: Cluster) -> None:
    base = tiny.base(tmp_path, "bert")
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    rates = "search.space={train.learning_rate: {grid: [0.01, 0.02, 0.03, 0.04]}}"
    settings = [rates, "search.max_failed=1", f"resources={{max_failures: 0, cpus_per_worker: {int(cluster.cpus)}}}", "train.epochs=1"]
    study = tiny.study(tmp_path, *settings)
    here = Run.start(study)
    with pytest.raises(TrialError, match=r"2 trials failed, search\.max_failed allows 1: 2 x .*tiny-bert: cannot be loaded") as caught:
        run(study, cluster, here=here)
    assert "--resume --retry-failed" in str(caught.value)
    assert [record.status for record in here.records()] == ["failed", "failed"]
    assert not (tmp_path / "runs" / "test_log").exists()
    (base / "model.safetensors").write_bytes(whole)
    outcome = run(study, cluster, here=Run.resume(study), retry_failed=True)
    assert [(record.status, record.error) for record in outcome.run.records()] == [("finished", None)] * 4


def test_a_base_model_without_its_tokenizer_is_a_row_and_the_others_are_ranked(tmp_path: Path, cluster: Cluster) -> None:
    bert, roberta = tiny.base(tmp_path, "bert"), tiny.base(tmp_path, "roberta")
    for file in roberta.glob("*token*"):
        file.unlink()
    study = tiny.study(tmp_path, f"base_models=[{{source: {bert}}}, {{source: {roberta}}}]", "train.epochs=1")
    here = Run.start(study)
    with pytest.raises(TrialError, match=r"every trial of .*tiny-roberta failed \(.*tokenizer"):
        run(study, cluster, here=here)
    board = here.leaderboard()
    assert board.best.base_model == str(bert)
    (failed,) = (entry for entry in board.entries if entry.status == "failed")
    assert "tokenizer" in str(failed.error)
    shutil.rmtree(here.folder)


@pytest.mark.parametrize("times", [1, 2])
def test_a_trial_whose_process_ray_ends_for_want_of_memory_goes_on_as_often_as_allowed(
    times: int, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny.study(tmp_path, "train.epochs=3", "resources={max_failures: 1, cpus_per_worker: 1}")
    (tmp_path / "alone").mkdir()
    undisturbed = tiny.trial(study, tmp_path / "alone").run().history if times == 1 else None
    left = times

    def ended(self: object, iteration: int, trials: list[Any], **info: Any) -> None:
        nonlocal left
        # First after an evaluation, then before another.
        if left and any(trial.status == "RUNNING" and (left < times or trial.last_result.get("epoch")) for trial in trials):
            left -= 1
            raise RuntimeError("Caught unexpected exception") from OutOfMemoryError("1 worker(s) were killed")  # as Tune does

    monkeypatch.setattr(ray_tune._Callback, "on_step_end", ended)
    here = Run.start(study)
    if undisturbed is not None:
        run(study, cluster, here=here)
        assert figures(here.history("tiny-bert-000")) == figures(undisturbed)
    else:
        with pytest.raises(TrialError, match="its machine ran out of memory"):
            run(study, cluster, here=here)
        assert [record.status for record in here.records()] == ["failed"]
