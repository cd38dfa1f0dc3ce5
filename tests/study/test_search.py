"""The search without Ray: the order of base models, early stops, and the end of the search."""

from pathlib import Path

import pytest
from support import tiny

from medray.config.study import StudyConfig
from medray.errors import ConfigError
from medray.study.early_stop import Rungs
from medray.study.search import Proposal, Search

METRIC = "f1_macro"
RATE = "search.space={train.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}}"


def two_bases(folder: Path, *settings: str) -> StudyConfig:
    bert, roberta = tiny.base(folder, "bert"), tiny.base(folder, "roberta")
    return tiny.study(folder, f"base_models=[{{source: {bert}}}, {{source: {roberta}}}]", *settings)


def proposals(search: Search) -> list[Proposal]:
    trials = []
    while proposal := search.next():
        search.begin(f"{proposal.base}-{proposal.number}", proposal)
        trials.append(proposal)
    return trials


def test_base_models_take_turns_by_their_share(tmp_path: Path) -> None:
    study = two_bases(tmp_path, RATE, "search.num_trials=4", "base_models.1.num_trials=2")
    search = Search(study, "f1_macro")
    assert search.num_trials == 6
    assert [proposal.base for proposal in proposals(search)] == [0, 1, 0, 0, 1, 0]


def test_an_override_sets_what_another_base_model_searches(tmp_path: Path) -> None:
    study = two_bases(
        tmp_path, RATE, "search.num_trials=3", "base_models.1.overrides={train.learning_rate: 0.01}"
    )
    trials = proposals(Search(study, "f1_macro"))
    assert [sorted(proposal.settings) for proposal in trials if proposal.base == 1] == [[]]
    assert (
        len({proposal.settings["train.learning_rate"] for proposal in trials if proposal.base == 0})
        == 3
    )


def test_a_base_model_adds_axes_of_its_own(tmp_path: Path) -> None:
    study = two_bases(
        tmp_path, RATE, "search.num_trials=2", "base_models.1.space={lora.r: {choice: [2, 4]}}"
    )
    trials = proposals(Search(study, "f1_macro"))
    assert {tuple(proposal.settings) for proposal in trials if proposal.base == 1} == {
        ("train.learning_rate", "lora.r")
    }


def test_like_is_compared_with_like_a_weak_base_model_keeps_its_own_rungs(tmp_path: Path) -> None:
    study = two_bases(tmp_path, RATE, "search.num_trials=3", "search.scheduler=asha")
    search = Search(study, "f1_macro")
    proposals(search)
    assert search.observe("0-0", 1.0, {METRIC: 0.9})
    # far below the other base model's, but the first of its own
    assert search.observe("1-0", 1.0, {METRIC: 0.4})
    assert not search.observe("1-1", 1.0, {METRIC: 0.3})
    assert search.observe("1-2", 1.0, {METRIC: 0.5})


def test_rungs_stop_what_is_not_among_the_best_so_far() -> None:
    rungs = Rungs(grace_epochs=1, reduction_factor=3)
    assert rungs.goes_on("a", 0.5, 0.0)  # before the first rung
    assert rungs.goes_on("a", 1.0, 0.5)
    assert not rungs.goes_on("b", 1.0, 0.4)
    assert rungs.goes_on("c", 1.0, 0.6)
    assert rungs.goes_on("a", 2.0, 0.1)  # no rung lies between 1 and 3
    assert rungs.goes_on("a", 3.0, 0.7)
    assert not rungs.goes_on("c", 3.0, 0.65)
    assert not rungs.goes_on("d", 1.0, float("nan"))
    assert rungs.goes_on("e", 1.0, 0.6)  # as good as the best is no worse
    assert rungs.goes_on("a", 3.0, 0.0)  # a repeated report counts once


def test_of_nine_equal_trials_asha_trains_less_than_half_of_the_epochs(tmp_path: Path) -> None:
    study = tiny.study(
        tmp_path, RATE, "search.num_trials=9", "search.scheduler=asha", "train.epochs=9"
    )
    search = Search(study, "f1_macro")
    for proposal in proposals(search):
        trial, value = f"0-{proposal.number}", ((proposal.number * 4) % 9) / 10
        for epoch in range(1, 10):
            if not search.observe(trial, epoch, {METRIC: value}):
                break
    assert sum(search.epochs.values()) < 0.5 * 9 * 9


@pytest.mark.parametrize("metric", ["log_loss", "f1_macro"])
def test_a_lower_log_loss_is_better(tmp_path: Path, metric: str) -> None:
    search = Search(
        tiny.study(tmp_path, RATE, "search.num_trials=2", "search.scheduler=asha"), metric
    )
    proposals(search)
    search.observe("0-0", 1.0, {metric: 0.5})
    assert search.observe("0-1", 1.0, {metric: 0.4}) == (metric == "log_loss")


def test_budgets_end_the_search(tmp_path: Path) -> None:
    search = Search(
        tiny.study(tmp_path, RATE, "search.num_trials=9", "search.num_epochs=4"), "f1_macro"
    )
    first = search.next()
    assert first
    search.begin("t", first)
    assert search.observe("t", 3.0, {METRIC: 0.5})
    assert search.next() is not None
    assert not search.observe("t", 4.0, {METRIC: 0.5})
    assert search.next() is None

    now = [100.0]
    search = Search(
        tiny.study(tmp_path, RATE, "search.num_trials=9", "search.time_s=60"),
        "f1_macro",
        clock=lambda: now[0],
    )
    first = search.next()
    assert first
    search.begin("t", first)
    assert search.observe("t", 1.0, {METRIC: 0.5})
    search.start()  # after the data is read
    now[0] = 120.0
    assert search.observe("t", 1.5, {METRIC: 0.5})
    search.spent_s = 39.0  # by a process before this one
    now[0] = 121.0
    assert not search.observe("t", 2.0, {METRIC: 0.5})
    assert search.next() is None


def test_what_an_earlier_process_proposed_is_not_proposed_again(tmp_path: Path) -> None:
    study = tiny.study(tmp_path, RATE, "search.num_trials=5")
    whole = proposals(Search(study, "f1_macro"))
    later = Search(study, "f1_macro")
    for proposal in whole[:3]:
        later.recall(proposal)
    assert proposals(later) == whole[3:]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["search.num_trials=4"], "search.num_trials 4 and no search.space"),
        (["search.algorithm=grid", RATE], "a grid takes choice and grid axes only"),
        (
            ["search.algorithm=grid", "search.space={lora.r: {grid: [1]}}", "search.num_trials=2"],
            "as many trials as points",
        ),
        (["search.algorithm=optuna", "search.space={lora.r: {grid: [1]}}"], "Optuna has no grid"),
        (
            ["search.algorithm=optuna", "search.space={lora.alpha: {qloguniform: [1, 9, 2]}}"],
            "Optuna has no qloguniform",
        ),
        (["search.space={lora.rank: {choice: [1]}}"], "lora.rank: unknown key"),
        (["search.space={lora.r: {choice: [4, 0]}}"], "(search space lora.r: 0)"),
        (
            ["search.space={data.split.seed: {choice: [0, 1]}}"],
            "of data only data.limit can differ",
        ),
        (["base_models.0.overrides={task.metric: accuracy}"], "task.metric cannot be overridden"),
        (
            ["base_models.0.overrides={data.near_duplicate: 0.5}"],
            "of data only data.limit can differ",
        ),
        (
            ["base_models.0.overrides={task.positive_label: other}"],
            "task.positive_label cannot be overridden",
        ),
        (
            ["search.space={model.source: {choice: [elsewhere]}}"],
            "model.source and model.revision are the base model's",
        ),
        (
            ["search.space={lora.r: {loguniform: [4, 64]}}"],
            "lora.r: input should be a valid integer",
        ),
        (["publish={name: cancer, alias: '1'}"], "publish.alias"),
        ([RATE, "search.grace_epochs=2"], "only asha has rungs"),
        (["search.scheduler=none", "search.reduction_factor=2"], "only asha has rungs"),
        (
            ["search.algorithm=grid", "search.from=runs", "search.space={lora.r: {grid: [1]}}"],
            "a grid runs every point",
        ),
        (
            ["resources.launcher=inline", "resources.num_workers=2"],
            "several workers need launcher train",
        ),
        (["base_models.0.num_trials=3"], "nothing to search"),
        (
            [
                RATE,
                "base_models.0.space={lora.r: {choice: [1]}}",
                "base_models.0.overrides={lora.r: 2}",
            ],
            "in both space and overrides",
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused_when_it_is_read(
    tmp_path: Path, settings: list[str], sentence: str
) -> None:
    with pytest.raises(ConfigError) as error:
        tiny.study(tmp_path, *settings)
    assert sentence in str(error.value)


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
def test_a_search_that_goes_on_proposes_what_it_would_have_proposed(
    tmp_path: Path, algorithm: str
) -> None:
    study = tiny.study(tmp_path, RATE, "search.num_trials=12", f"search.algorithm={algorithm}")

    def tell(search: Search, proposal: Proposal) -> None:
        trial = f"t-{proposal.number}"
        search.begin(trial, proposal)
        distance = abs(proposal.settings["train.learning_rate"] - 0.003)
        search.observe(trial, 1.0, {METRIC: 1 / (1 + distance)})
        search.complete(trial, proposal.settings, is_failure=proposal.number == 2)

    whole, trials = Search(study, "f1_macro"), []
    while proposal := whole.next():
        trials.append(proposal)
        tell(whole, proposal)
    assert len(trials) == 12
    later = Search(study, "f1_macro")
    for proposal in trials[:8]:
        later.recall(proposal)
        tell(later, proposal)
    rest = []
    while proposal := later.next():
        rest.append(proposal)
        tell(later, proposal)
    assert rest == trials[8:]


def test_a_search_gives_up_when_more_trials_failed_than_may(tmp_path: Path) -> None:
    def has_failed(num: int, *settings: str) -> bool:
        search = Search(tiny.study(tmp_path, RATE, "search.num_trials=6", *settings), "f1_macro")
        for number in range(num):
            proposal = search.next()
            assert proposal is not None
            search.begin(f"t-{number}", proposal)
            search.complete(f"t-{number}", proposal.settings, is_failure=True)
        assert (search.next() is None) == search.has_failed
        return search.has_failed

    assert [has_failed(num) for num in (3, 4)] == [False, True]  # half of them may
    assert [has_failed(num, "search.max_failed=0") for num in (0, 1)] == [False, True]
    assert not has_failed(5, "search.max_failed=5")


def test_without_a_space_a_study_tries_learning_rates_the_best_guess_first(tmp_path: Path) -> None:
    study = two_bases(
        tmp_path,
        "train.learning_rate=null",
        "base_models.1.num_trials=8",
        "base_models.0.overrides={lora.r: 4}",
    )
    guesses = [{"train.learning_rate": 0.001}, {}]
    trials = proposals(Search(study, METRIC, guesses=guesses))
    rates = [
        [trial.settings["train.learning_rate"] for trial in trials if trial.base == at]
        for at in (0, 1)
    ]
    assert rates[0] == [0.001, 0.0005, 0.002, 0.00025, 0.000707, 0.00141]
    # More draws lie between these. A base model without a guess begins at 5e-4.
    assert rates[1] == [0.0005, 0.00025, 0.001, 0.000125, 0.000354, 0.000707, 0.000177, 0.00042]


@pytest.mark.parametrize(
    "settings",
    [
        ["train.learning_rate=0.003"],
        ["train.learning_rate=null", "base_models.0.overrides={train.learning_rate: 0.003}"],
        ["train.learning_rate=null", "search.algorithm=random"],
        ["train.learning_rate=null", "search.algorithm=grid"],
    ],
)
def test_a_learning_rate_that_is_set_or_another_algorithm_gives_one_trial(
    tmp_path: Path, settings: list[str]
) -> None:
    search = Search(tiny.study(tmp_path, *settings), METRIC)
    assert [trial.settings for trial in proposals(search)] == [{}]
    assert all(
        search.observe("0-0", epoch, {METRIC: 0.5, "log_loss": 1.0}) for epoch in range(1, 9)
    )


def test_rungs_compare_losses_unless_trials_have_different_tasks(tmp_path: Path) -> None:
    def goes_on(*settings: str) -> bool:
        study = tiny.study(tmp_path, "search.num_trials=2", "search.scheduler=asha", *settings)
        search = Search(study, METRIC)
        proposals(search)
        search.observe("0-0", 1.0, {METRIC: 0.5, "log_loss": 0.6})
        return search.observe("0-1", 1.0, {METRIC: 0.4, "log_loss": 0.5})

    weights = "task.class_weights: {choice: [none, balanced]}"
    assert goes_on(RATE)
    assert not goes_on("search.space={" + weights + "}")


def test_a_trial_stops_after_two_evaluations_without_a_better_loss_or_figure(
    tmp_path: Path,
) -> None:
    study = tiny.study(tmp_path, RATE, "search.num_trials=2", "search.scheduler=asha")

    def num_evaluations(*evaluations: tuple[float, float]) -> int:
        search = Search(study, METRIC)
        proposals(search)
        for epoch, (loss, value) in enumerate(evaluations, start=1):
            if not search.observe("0-0", epoch, {METRIC: value, "log_loss": loss}):
                return epoch
        return len(evaluations)

    assert num_evaluations((0.5, 0.8), (0.6, 0.8), (0.6, 0.8), (0.6, 0.8)) == 3
    assert num_evaluations((0.5, 0.8), (0.6, 0.8), (0.4, 0.8), (0.5, 0.8)) == 4
    assert num_evaluations((0.5, 0.8), (0.6, 0.8), (0.6, 0.9), (0.6, 0.8)) == 4


def test_a_report_that_is_repeated_after_a_kill_counts_once(tmp_path: Path) -> None:
    study = tiny.study(tmp_path, RATE, "search.num_trials=2", "search.scheduler=asha")
    search = Search(study, METRIC)
    proposals(search)
    assert search.observe("0-0", 1.0, {METRIC: 0.8, "log_loss": 0.5})
    for _ in range(3):
        assert search.observe("0-0", 2.0, {METRIC: 0.8, "log_loss": 0.6})
    for _ in range(2):
        assert not search.observe("0-0", 3.0, {METRIC: 0.8, "log_loss": 0.6})


@pytest.mark.parametrize(
    ("settings", "steps_per_epoch", "rung"),
    [
        ((), 10, 5.0),
        ((), 25, 2.0),
        ((), 149, 1.0),
        ((), 150, 1 / 3),
        ((), 450, 1 / 9),
        ((), 100_000, 1 / 27),
        (("train.warmup_ratio=0.1",), 100_000, 1.0),  # 20,000 steps of warm-up
        (("train.warmup_steps=100",), 1800, 1 / 9),
        (("search.grace_epochs=2",), 100_000, 2.0),
    ],
)
def test_the_first_rung_comes_after_the_warm_up_and_fifty_steps(
    tmp_path: Path, settings: tuple[str, ...], steps_per_epoch: int, rung: float
) -> None:
    asha = ("search.num_trials=2", "search.scheduler=asha")
    search = Search(
        tiny.study(tmp_path, RATE, *asha, *settings), METRIC, steps_per_epoch=[steps_per_epoch]
    )
    proposals(search)
    search.observe("0-0", rung - 0.01, {METRIC: 0.5})
    assert search.observe("0-1", rung - 0.01, {METRIC: 0.4})
    search.observe("0-0", rung, {METRIC: 0.5})
    assert not search.observe("0-1", rung, {METRIC: 0.4})
    assert search.early_rungs(0) == tuple(
        share for share in (1 / 27, 1 / 9, 1 / 3) if share >= rung - 1e-9
    )
