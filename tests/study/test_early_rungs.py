"""A study whose trials are compared inside their first epoch, in the test's own process."""

import csv
from pathlib import Path

from support import in_process, tiny

GRID = "search.space={train.learning_rate: {grid: [1.0e-9, 0.05]}}"  # the second rises in its loss


def test_a_trial_that_is_stopped_inside_its_first_epoch_is_ranked_last(tmp_path: Path) -> None:
    study = tiny.study(
        tmp_path,
        GRID,
        "search.scheduler=asha",
        "search.grace_epochs=0.5",
        "search.reduction_factor=2",
        "search.num_finalists=2",
        "train.samples_per_step=4",
    )
    outcome = in_process.run(study)
    winner, loser = (entry for entry in outcome.board.entries if entry.kind == "trial")
    assert (winner.status, loser.status) == ("finished", "stopped")
    assert outcome.board.winner == winner.name
    histories = [outcome.run.history(entry.name) for entry in (winner, loser)]
    assert [[row.is_early for row in history] for history in histories] == [
        [True, False, False],
        [True],
    ]
    assert 0.5 <= histories[1][0].epochs < 0.6
    # Part of the validation rows ranks no trial, and leaves no checkpoint.
    assert loser.validation == {}
    assert (winner.num_epochs, loser.num_epochs) == (2, 0)
    table = list(csv.DictReader((outcome.run.folder / "history.csv").open(encoding="utf-8")))
    assert [row["is_early"] for row in table] == ["True", "", "", "True"]
    assert not (outcome.run.trial_dir(loser.name) / "checkpoints").exists()
