"""A base model before training is evaluated for a task of choices, and refused for a task with a
new head."""

import logging
from pathlib import Path

import pytest
from support import tiny

from medray import cli
from medray.config.load import dump_settings
from medray.errors import ConfigError
from medray.registry import evaluate
from medray.registry.loading import load
from medray.study import preflight


@pytest.mark.document(
    "004",
    "accuracy before and after, on the same rows",
    where="`medray leaderboard`, `medray evaluate`",
)
def test_an_untuned_base_is_judged_on_the_rows_of_the_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tiny.choice_study(tmp_path, family="phi", num_rows=120)
    source = study.base_models[0].source
    evaluation = evaluate.evaluate_base_model(
        study.trial(study.base_models[0]), "validation", log_dir=tmp_path / "log"
    )
    assert (evaluation.of, evaluation.num_openings, evaluation.metrics.num_rows) == (
        f"{source}, untuned",
        None,
        24,
    )
    checkpoint = tiny.trial(study, tmp_path).run()
    assert checkpoint.best.metrics["log_loss"] < evaluation.metrics.values["log_loss"]
    path = tmp_path / "study.yaml"
    path.write_text(dump_settings(study))
    assert cli.main(["evaluate", source, str(path), "--split", "validation"]) == 0
    assert (
        f"{source}, untuned on 24 validation rows: f1_macro "
        f"{evaluation.metrics.values['f1_macro']:.4f}"
    ) in capsys.readouterr().out
    on_test = evaluate.evaluate_base_model(
        study.trial(study.base_models[0]), "test", log_dir=tmp_path / "log"
    )
    assert on_test.num_openings == 1


def test_a_fresh_head_knows_nothing_and_is_not_asked(tmp_path: Path) -> None:
    study = tiny.study(tmp_path)
    with pytest.raises(
        ConfigError, match="adds a new head, which predicts nothing useful before training"
    ):
        evaluate.evaluate_base_model(
            study.trial(study.base_models[0]), "validation", log_dir=tmp_path
        )


def test_an_encoder_is_refused_for_a_choice_before_anything_starts(tmp_path: Path) -> None:
    preflight.check(tiny.choice_study(tmp_path))
    with pytest.raises(
        ConfigError, match="'bert' is an encoder; this task needs a causal language model"
    ):
        preflight.check(tiny.choice_study(tmp_path, family="bert"))


def test_texts_that_were_cut_are_counted_and_the_count_travels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "medray"):
        trial = tiny.trial(
            tiny.choice_study(tmp_path, "task.max_length=10", "train.epochs=1"), tmp_path
        )
    cut = trial.material.prepared.num_truncated
    assert all(
        0 < cut[split] < number
        for split, number in (("train", 36), ("validation", 12), ("test", 12))
    )
    assert (
        f"texts were cut to fit task.max_length: train {cut['train']}, validation "
        f"{cut['validation']}, test {cut['test']}"
    ) in caplog.text
    checkpoint = trial.run().checkpoint
    assert '"truncated"' in (checkpoint / "audit.json").read_text()
    assert load(checkpoint).task.options.max_length == 10
