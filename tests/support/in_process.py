"""Runs studies without Ray: this process trains one trial after another, with the functions that
Ray's processes call.

It supports early stops, failures, a full disk and interrupts. Tests of processes that die need
Ray."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
from support.watcher import RecordingWatcher

from medray.config.study import StudyConfig
from medray.errors import MedrayError
from medray.runtime.cluster import Cluster, Node
from medray.study import study as studies
from medray.study.placement import Placement
from medray.study.run import Run
from medray.study.session import Session, TrialStart
from medray.study.study import Outcome
from medray.training import worker
from medray.training.assignment import Assignment, failure
from medray.training.loop import TrialInterrupt

CLUSTER = Cluster((Node(cpus=4, gpus=0),), dashboard=None, is_joined=False)


def run(
    study: StudyConfig,
    watcher: RecordingWatcher | None = None,
    here: Run | None = None,
    **options: bool,
) -> Outcome:
    return studies.run(
        study,
        CLUSTER,
        here or Run.start(study),
        watcher=watcher or RecordingWatcher(),
        launch=launch,
        call=call,
        **options,
    )


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace Ray in the studies that commands of this process run."""
    monkeypatch.setattr("medray.runtime.cluster.start_cluster", lambda: nullcontext(CLUSTER))
    monkeypatch.setattr(studies, "run", partial(studies.run, launch=launch, call=call))


def launch(session: Session, placements: Sequence[Placement]) -> None:
    while (start := _next(session)) is not None:
        _train(session, start.assignment)


def call(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], placement: Placement
) -> list[Any]:
    return [function(*values) for values in arguments]


def _next(session: Session) -> TrialStart | None:
    with session.ending_on_full_disk():
        return session.next()
    return None


def _train(session: Session, assignment: Assignment) -> None:
    def report(row: dict[str, Any]) -> None:
        with session.ending_on_full_disk():
            if session.on_trial_report(assignment.trial, row):
                return
        raise worker.EarlyStop

    with session.ending_on_full_disk():
        session.on_trial_start(assignment.trial)
    try:
        worker.run(assignment, report, node="this process")
    except worker.EarlyStop:
        pass
    except TrialInterrupt as err:
        raise KeyboardInterrupt from err
    except MedrayError as err:
        with session.ending_on_full_disk():
            session.on_trial_report(assignment.trial, failure(err))
    finally:
        worker.give_memory_back()
    with session.ending_on_full_disk():
        session.on_trial_end(assignment.trial)
