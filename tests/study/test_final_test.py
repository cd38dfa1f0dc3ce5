"""The final test measures a base model and its fine-tuned copy alike."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from support import tiny

from medray.evaluation.leaderboard import Entry
from medray.study import candidates
from medray.types import Example, Prediction


def test_the_seconds_of_predicting_leave_a_models_first_row_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            return self.now

    clock = Clock()

    class Task:
        is_warm = False

        def predict(self, engine: object, rows: Sequence[Example]) -> list[Prediction]:
            clock.now += len(rows) + (0.0 if self.is_warm else 100.0)
            self.is_warm = True
            return [Prediction(row.id, (), ()) for row in rows]

    monkeypatch.setattr(candidates, "time", clock)
    predictions, seconds = candidates.predict_with_time(
        Task(), object(), [Example(str(row), "") for row in range(5)]
    )  # type: ignore[arg-type]
    assert ([row.row_id for row in predictions], seconds) == (["0", "1", "2", "3", "4"], 5.0)


def test_a_base_model_is_judged_in_the_arithmetic_of_its_finalist(tmp_path: Path) -> None:
    study = tiny.choice_study(tmp_path, "model.precision=auto")
    config, finalist_dir = (
        study.trial(study.base_models[0]),
        tiny.checkpoint("choice", "model.precision=bf16"),
    )
    finalists = [
        Entry("other", "trial", base=1, checkpoint="-"),
        Entry("own", "trial", base=0, checkpoint=str(finalist_dir)),
    ]
    assert candidates.with_precision_of(finalists, config, 0).model.precision == "bf16"
    assert candidates.with_precision_of(finalists, config, 2) is config
