"""The settings that a search tries first: from an earlier run, or by the size of the base model."""

from dataclasses import replace
from pathlib import Path

import pytest
from support import run_files, tiny

from medray.config.study import StudyConfig
from medray.errors import ConfigError
from medray.records import TrialRecord, dump_history
from medray.study import preflight
from medray.study.guesses import first_guesses
from medray.study.rates import best_guess
from medray.study.run import Run
from medray.study.search import Search

RATE = "train.learning_rate"


def earlier_run(study: StudyConfig, *trials: tuple[dict[str, object], float]) -> Run:
    """Write a run whose trials have these settings and reach these accuracies."""
    run = Run.start(study)
    source = study.base_models[0].source
    for number, (settings, accuracy) in enumerate(trials):
        record = TrialRecord(
            trial=f"t-{number}",
            base_model=source,
            base=0,
            number=number,
            settings=settings,
            status="stopped",
        )
        run.write(record)
        history = run_files.history([accuracy], number)
        evaluations = [
            replace(row, metrics={**row.metrics, "f1_macro": accuracy}) for row in history
        ]
        (run.trial_dir(record.trial) / "history.json").write_bytes(dump_history(evaluations))
    return run


def test_a_guess_follows_the_size_of_the_base_model_and_a_run_keeps_it(tmp_path: Path) -> None:
    study = tiny.study(tmp_path, f"{RATE}=null")
    run = Run.start(study)
    assert first_guesses(study, run) == [{RATE: 0.001}]
    other = tiny.study(tmp_path, f"{RATE}=null", "search.from=nowhere")
    assert first_guesses(other, run) == [{RATE: 0.001}]
    assert first_guesses(tiny.study(tmp_path, f"{RATE}=0.2"), Run.start(study)) == [{}]


@pytest.mark.parametrize(
    ("num_weights", "is_encoder", "rate"),
    [
        (11e6, True, 1e-3),  # MiniLM
        (85e6, True, 5e-4),  # BERT base
        (302e6, True, 3e-4),  # RoBERTa large
        (119e6, False, 1e-3),  # SmolLM2
        (805e6, False, 5e-4),  # Llama 1B
        (64e9, False, 3e-4),  # Llama 70B
    ],
)
def test_larger_base_models_begin_with_lower_rates(
    num_weights: float, is_encoder: bool, rate: float
) -> None:
    assert best_guess(num_weights, is_encoder=is_encoder) == rate


def test_a_search_begins_where_an_earlier_study_was_best(tmp_path: Path) -> None:
    space = f"search.space={{{RATE}: {{loguniform: [1.0e-4, 1.0e-2]}}, lora.r: {{choice: [4, 8]}}}}"
    before = tiny.study(tmp_path, space, "name=before")
    run = earlier_run(before, ({RATE: 0.002, "lora.r": 8}, 0.7), ({RATE: 0.007, "lora.r": 4}, 0.9))
    warm = f"search.from={run.folder}"

    rates = tiny.study(tmp_path, f"{RATE}=null", warm)
    guesses = first_guesses(rates, Run.start(rates))
    assert guesses == [{RATE: 0.007}]

    # The best rate lies outside this space, and the rank inside.
    narrow = space.replace("1.0e-2", "1.0e-3")
    for algorithm in ("random", "optuna"):
        study = tiny.study(tmp_path, narrow, warm, f"search.algorithm={algorithm}")
        guesses = first_guesses(study, Run.start(study))
        assert guesses == [{"lora.r": 4}]
        proposal = Search(study, "f1_macro", guesses=guesses).next()
        assert proposal is not None
        assert proposal.settings["lora.r"] == 4
        assert 1e-4 <= proposal.settings[RATE] <= 1e-3


def test_an_earlier_run_must_be_of_the_same_task_and_have_results(tmp_path: Path) -> None:
    def mistake(run: Run, *settings: str) -> str:
        with pytest.raises(ConfigError) as error:
            preflight.check(
                tiny.study(tmp_path, f"{RATE}=null", f"search.from={run.folder}", *settings)
            )
        return str(error.value)

    before = tiny.study(tmp_path, "name=before")
    assert "has no evaluation" in mistake(earlier_run(before))
    run = earlier_run(before, ({RATE: 0.002}, 0.7))
    assert "name a run of the same task and metric" in mistake(run, "task.metric=accuracy")
    assert "has no run of a study" in mistake(Run(tmp_path / "empty"))
    preflight.check(tiny.study(tmp_path, f"{RATE}=null", f"search.from={run.folder}"))
    assert "this study searches no settings" in mistake(run, f"{RATE}=0.1")


def test_an_axis_may_hold_null_and_no_earlier_study_be_named(tmp_path: Path) -> None:
    space = "search.space={lora.top_layers: {choice: [null, 1]}}"
    study = tiny.study(tmp_path, f"{RATE}=0.001", "search.algorithm=random", space)
    assert first_guesses(study, Run.start(study)) == [{}]
