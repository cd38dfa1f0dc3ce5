"""Who wins: by validation rows, at the best epoch of the whole history, and a tie goes to the
cheaper model."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from medray.errors import ArtifactError, TrialError
from medray.evaluation import leaderboard, leaderboard_files
from medray.evaluation.bootstrap import LabelResults
from medray.evaluation.leaderboard import (
    Contender,
    Entry,
    Leaderboard,
    conclude,
    finalists,
    rank,
)
from medray.evaluation.metrics import Metrics
from medray.evaluation.trial_entries import entry_of
from medray.records import Evaluation, MergeRecord, TrialRecord

METRIC = "accuracy"


def evaluation(epoch: int, value: float, **more: float) -> Evaluation:
    metrics = {METRIC: value, "f1_macro": value, "log_loss": 1 - value, **more}
    return Evaluation(
        epoch,
        epoch * 10,
        0.5,
        metrics,
        is_best=False,
        epochs=float(epoch),
        is_last=False,
        seconds=epoch * 2.0,
        tokens_per_s=100.0,
    )


def record(trial: str, base: str = "small", **more: object) -> TrialRecord:
    return TrialRecord(
        trial=trial,
        base_model=base,
        base=0,
        number=0,
        settings={"lora.r": 8},
        status="finished",
        **more,
    )  # type: ignore[arg-type]


def entry(
    name: str, value: float, base: str = "small", num_parameters: int = 10, status: str = "finished"
) -> Entry:
    place = ("small", "large").index(base)
    return Entry(
        name=name,
        kind="trial",
        base_model=base,
        base=place,
        status=status,
        validation={METRIC: value},
        num_parameters=num_parameters,
    )


def contender_of(
    name: str,
    validation: int,
    test: int,
    base: str = "small",
    num_parameters: int = 10,
    kind: str = "trial",
    first: int = 0,
) -> Contender:
    """A candidate that gets so many of 200 rows right, from the first on."""

    def answers(right: int) -> tuple[Metrics, LabelResults]:
        truth = np.tile(np.array([[True, False], [False, True]]), (100, 1))
        predictions = np.where((np.arange(200) - first) % 200 < right, truth.T, ~truth.T).T
        return Metrics({METRIC: right / 200}, 200), LabelResults(truth, predictions)

    entry = Entry(
        name=name,
        kind=kind,
        base_model=base,
        epoch=1,
        num_parameters=num_parameters,
        checkpoint=f"/{name}",
    )  # type: ignore[arg-type]
    return leaderboard.contender(
        entry, METRIC, validation=answers(validation), test=answers(test), ms_per_row=1.0
    )


def board(
    *candidates: Contender, references: tuple[Contender, ...] = (), tie: float | None = 1.5
) -> Leaderboard:
    trials = [result.entry for result in candidates]
    return conclude("s", METRIC, trials, candidates, references, num_openings=1, tie=tie)


def test_an_early_evaluation_ranks_no_trial() -> None:
    early = replace(evaluation(1, 0.9), is_early=True)
    assert entry_of(record("t"), [early, evaluation(1, 0.6)], METRIC).validation[METRIC] == 0.6
    assert entry_of(record("t"), [early], METRIC).validation == {}


def test_the_best_epoch_of_the_whole_history_counts_not_the_last() -> None:
    result = entry_of(
        record("a"), [evaluation(1, 0.7), evaluation(2, 0.9), evaluation(3, 0.6)], METRIC
    )
    assert (result.epoch, result.step, result.validation[METRIC], result.num_epochs) == (
        2,
        20,
        0.9,
        3,
    )
    first = entry_of(record("a"), [evaluation(1, 0.9), evaluation(2, 0.9)], METRIC)
    assert first.epoch == 1
    lowest = entry_of(
        record("a"), [evaluation(1, 0.7), evaluation(2, 0.9), evaluation(3, 0.6)], "log_loss"
    )
    assert lowest.epoch == 2


def test_an_evaluation_that_is_not_a_number_never_counts() -> None:
    assert entry_of(record("a"), [evaluation(1, float("nan"))], METRIC).validation == {}
    assert (
        entry_of(record("a"), [evaluation(1, float("nan")), evaluation(2, 0.1)], METRIC).epoch == 2
    )


def test_seconds_to_the_first_step_count_from_the_start_of_the_trial() -> None:
    assert (
        entry_of(
            record("a", started_at=100.0, first_step_at=103.5), [], METRIC
        ).seconds_to_first_step
        == 3.5
    )


def test_trials_without_a_figure_come_last_and_finalists_are_the_best_of_each_base_model() -> None:
    entries = [
        entry("none", 0),
        entry("low", 0.5),
        entry("high", 0.8),
        entry("other", 0.3, base="large"),
        entry("broken", 0.9, status="failed"),
    ]
    entries[0] = Entry(name="none", kind="trial", base_model="small", base=0)
    assert [result.name for result in rank(entries, METRIC)] == [
        "broken",
        "high",
        "low",
        "other",
        "none",
    ]
    assert [result.name for result in finalists(entries, METRIC, 1)] == ["high", "other"]
    assert [result.name for result in finalists(entries, METRIC, 2)] == ["high", "low", "other"]


def test_the_winner_is_chosen_by_validation_rows_whatever_test_rows_say() -> None:
    result = board(
        contender_of("a", validation=190, test=100),
        contender_of("b", validation=120, test=199, base="large"),
    )
    assert (result.winner, result.runner_up, result.tied) == ("a", "b", ())
    assert result.entries[0].name == "a"
    on_test = next(pair for pair in result.comparisons if pair.split == "test")
    assert on_test.comparison.difference < 0
    assert not on_test.is_tie


@pytest.mark.document(
    "001",
    "the best model is chosen, a smaller one where it is as good",
    where="`medray leaderboard`",
)
def test_a_tie_is_won_by_a_model_that_is_much_smaller_and_else_by_the_figure() -> None:
    large = contender_of("large-000", validation=181, test=180, base="large", num_parameters=1000)
    small = contender_of("small-000", validation=180, test=180, num_parameters=10, first=100)
    result = board(large, small)
    assert (result.winner, result.tied) == ("small-000", ("large-000", "small-000"))
    why = (
        "tie: validation rows cannot separate large-000, small-000; small-000 wins by its size: it "
        "has 10 parameters, large-000 has 1,000"
    )
    assert why in leaderboard_files.sentences(result)
    near = contender_of("small-000", validation=180, test=180, num_parameters=700, first=100)
    assert [board(large, near, tie=tie).winner for tie in (1.0, 1.4, 1.5, None)] == [
        "small-000",
        "small-000",
        "large-000",
        "large-000",
    ]
    assert board(large, near).tied == ("large-000", "small-000")
    assert any(
        sentence.endswith("small-000; large-000 wins by its accuracy")
        for sentence in leaderboard_files.sentences(board(large, near))
    )
    clear = board(
        contender_of("large-000", validation=195, test=180, base="large", num_parameters=1000),
        small,
    )
    assert (clear.winner, clear.tied) == ("large-000", ())


def test_of_tied_models_none_wins_by_its_size_that_is_better_in_no_resample() -> None:
    """Compare a model that always predicts "cancer" with one that is right there and elsewhere."""
    large = contender_of("large-000", validation=181, test=180, base="large", num_parameters=1000)
    within = contender_of("small-000", validation=180, test=180, num_parameters=10)
    result = board(large, within)
    assert (result.winner, result.tied) == ("large-000", ("large-000", "small-000"))
    medium = contender_of("medium-000", validation=180, test=180, num_parameters=100, first=100)
    under_medium = contender_of("small-000", validation=179, test=180, num_parameters=10, first=100)
    assert board(large, medium, under_medium).winner == "medium-000"
    alike = contender_of("small-000", validation=181, test=180, num_parameters=10)
    assert board(large, alike).winner == "small-000"


def test_references_stand_in_the_ranking_and_are_compared_but_never_win() -> None:
    result = board(
        contender_of("a", 150, 150),
        references=(contender_of("TF-IDF", 180, 180, kind="reference"),),
    )
    assert [entry.name for entry in result.entries] == ["TF-IDF", "a"]
    assert result.winner == "a"
    assert any(
        "winner minus the best baseline (TF-IDF) on the same test rows" in sentence
        and "worse" in sentence
        for sentence in leaderboard_files.sentences(result)
    )


def test_the_sentences_compare_with_the_best_baseline_and_the_board_with_all() -> None:
    def baseline(name: str, validation: int, test: int) -> Contender:
        reference = contender_of(name, validation, test, kind="reference")
        return replace(reference, entry=replace(reference.entry, base_model=""))

    references = [
        baseline("majority", 100, 100),
        baseline("TF-IDF", 150, 130),
        baseline("frozen", 140, 160),
        contender_of("small, untuned", 90, 90, kind="reference", base="small"),
        contender_of("large, untuned", 95, 95, kind="reference", base="large"),
    ]
    result = board(contender_of("a", 190, 190, base="small"), references=references)
    assert result.best_baseline is not None
    assert result.best_baseline.name == "TF-IDF"  # by validation rows, not by test rows
    assert {pair.other for pair in result.comparisons} == {one.entry.name for one in references}
    others = {pair.other for pair in result.main_comparisons}
    assert others == {"TF-IDF", "small, untuned"}
    text = "\n".join(leaderboard_files.sentences(result))
    assert "winner minus the best baseline (TF-IDF) on the same test rows" in text
    assert "winner minus small, untuned on the same test rows" in text
    assert "frozen" not in text
    assert "majority" not in text


def test_test_figures_carry_an_interval_and_rows_that_were_seen_before_say_so() -> None:
    result = board(contender_of("a", 150, 150))
    spread = result.best.test_interval
    assert spread is not None
    assert spread.low < 0.75 < spread.high
    again = conclude("s", METRIC, [result.best], [contender_of("a", 150, 150)], [], num_openings=3)
    assert "were read 3 times" in leaderboard_files.sentences(again)[-1]


def test_a_study_without_a_figure_has_no_leaderboard() -> None:
    with pytest.raises(TrialError, match="nothing to rank"):
        conclude("s", METRIC, [entry("a", 0.5)], [], [], num_openings=1)


def test_the_files_say_the_same_and_json_comes_back_whole() -> None:
    failure = Entry(
        name="broken", kind="trial", base_model="small", status="failed", error="the loss is nan"
    )
    first = contender_of("a", 150, 140)
    result = conclude(
        "s",
        METRIC,
        [first.entry, failure],
        [first],
        [contender_of("majority", 100, 100, kind="reference")],
        num_openings=1,
    )
    assert leaderboard_files.from_json(leaderboard_files.to_json(result), "x") == result
    rows = list(
        csv.DictReader(io.StringIO(leaderboard_files.to_csv(leaderboard_files.rows(result))))
    )
    assert [row["name"] for row in rows] == ["a", "majority", "broken"]
    assert float(rows[0]["validation_accuracy"]) == 0.75
    assert float(rows[0]["test_accuracy"]) == 0.7
    assert rows[2]["error"] == "the loss is nan"
    assert [row["is_winner"] for row in rows] == ["True", "False", "False"]
    page = leaderboard_files.to_markdown(result)
    assert "| 1 | a (winner) | small | 1 | 0.7500 | 0.7000 [" in page
    assert "broken failed: the loss is nan" in page
    with pytest.raises(ArtifactError, match="x: not a valid leaderboard"):
        leaderboard_files.from_json("{}", "x")


def test_history_rows_name_their_split() -> None:
    (row,) = leaderboard_files.history_rows({"a": [evaluation(1, 0.5)]})
    assert (
        row["trial"],
        row["epoch"],
        row["train_loss"],
        row["validation_loss"],
        row["validation_accuracy"],
    ) == ("a", 1, 0.5, 0.5, 0.5)


def test_a_merge_is_judged_by_f1_the_studys_own_where_it_ranks_by_one() -> None:
    before, after = (
        {"accuracy": 0.9, "f1_macro": 0.8, "f1_binary": 0.7},
        {"accuracy": 0.9, "f1_macro": 0.79, "f1_binary": 0.6},
    )
    result = Entry(name="a", kind="trial", validation=before, validation_merged=after)
    assert leaderboard.merge_of(result, "accuracy") == MergeRecord(
        metric="f1_macro", unmerged=0.8, merged=0.79
    )
    assert leaderboard.merge_of(result, "f1_binary") == MergeRecord(
        metric="f1_binary", unmerged=0.7, merged=0.6
    )
    assert leaderboard.merge_of(entry("a", 0.9), METRIC) is None
