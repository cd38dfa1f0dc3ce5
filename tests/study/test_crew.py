"""A crew in this process: its workers end, leave, or suit the next trial."""

from dataclasses import replace
from typing import Any

import pytest

from medray.study.crew import Crew, Workers
from medray.training.assignment import Assignment
from medray.training.desk import Desk

CONFIG: dict[str, Any] = {
    "launcher": "train",
    "num_workers": [1, 2],
    "placement": "pack",
    "cpus": 1,
    "gpus": 0.0,
    "shares_crew": True,
    "assignment": Assignment("one", {}, "", "").as_dict(),
}
WORKERS = Workers.of(CONFIG)


def test_a_crew_trains_only_trials_that_require_the_same_workers() -> None:
    second = {**CONFIG, "assignment": Assignment("two", {}, "", "").as_dict()}
    assert Workers.of(second) == WORKERS
    for change in ({"num_workers": 2}, {"cpus": 2}, {"gpus": 1.0}, {"placement": "spread"}):
        assert Workers.of({**CONFIG, **change}) != WORKERS
    alone = [Workers.of({**config, "shares_crew": False}) for config in (CONFIG, second)]
    assert alone[0] != alone[1]


def test_messages_of_workers_that_ended_come_before_the_error_that_ended_them() -> None:
    desk = Desk()
    desk.assign(Assignment("one", {}, "", ""), 0)

    def run() -> None:
        desk.finish(1, {"failed": "it cannot go on"})
        raise OSError("the workers are gone")

    crew = Crew(WORKERS, desk, run)
    assert [crew.next_message().row for _ in range(2)] == [{"failed": "it cannot go on"}, None]
    assert crew.dismiss()
    with pytest.raises(OSError, match="the workers are gone"):
        crew.next_message()


def test_workers_that_left_without_a_word_end_their_trial_with_an_error() -> None:
    crew = Crew(replace(WORKERS, launcher="inline"), Desk(), lambda: None)
    assert crew.dismiss()
    with pytest.raises(RuntimeError, match="its workers left before its end"):
        crew.next_message()
