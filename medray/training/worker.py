"""One trial in the process that computes it, from an assignment: it reports to a callable, or as a
worker of Ray Train."""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from medray.config.schema import validate
from medray.config.study import TrialConfig
from medray.errors import MedrayError
from medray.records import Evaluation
from medray.training import distributed
from medray.training.assignment import Assignment, TrialReport, failure
from medray.training.loop import Interrupted
from medray.training.prepared import open_material
from medray.training.trial import Trial

log = logging.getLogger(__name__)


def run(assignment: Assignment, report: Callable[[dict[str, Any]], None], *, node: str) -> None:
    """Train to the end, from the last stored state where there is one. `node`: the address of the
    node that this process is on.

    Where the study interrupts the trial, it raises `Interrupted` once the state is stored.
    """
    folder = Path(assignment.folder)
    config = validate(TrialConfig, assignment.config, where=f"trial {assignment.trial}")
    with _log_file(folder):
        log.info(
            "%d worker(s) on %s", distributed.world_size(), ", ".join(distributed.gathered([node]))
        )

        def send(evaluation: Evaluation) -> None:
            report(
                TrialReport(
                    evaluation, trial.loop.first_step_at, trial.num_parameters, trial.num_trainable
                ).as_row()
            )

        trial = Trial(config, open_material(Path(assignment.material)), folder, send)
        try:
            trial.run(resume=True)
        except Interrupted as err:
            log.info("%s; its state is stored", err)
            raise


def run_in_ray(assignment: Assignment, report: Callable[[dict[str, Any]], None]) -> None:
    """As `run`, in a process of Ray's. A trial that is interrupted waits for the end of its
    process, since Ray would start it again."""
    import ray

    try:
        run(assignment, report, node=ray.util.get_node_ip_address())
    except Interrupted:
        threading.Event().wait()


def train(assignment: dict[str, Any]) -> None:
    """The loop of a TorchTrainer: every worker reports, the first one's figures count."""
    import ray.train

    try:
        run_in_ray(Assignment(**assignment), ray.train.report)
    except MedrayError as err:
        if distributed.world_size() > 1:
            # the others may be waiting inside a collective call: only the end of the group frees
            # them
            raise
        ray.train.report(failure(err))


class _Log(logging.FileHandler):
    """Where there is no room for it, the trial itself says so: what stands in its way would hide
    that."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class _log_file:
    """What a trial logs, kept beside its checkpoints; rank 0 speaks."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.handler = (
            _Log(folder / "log.txt") if distributed.rank() == 0 else logging.NullHandler()
        )
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def __enter__(self) -> None:
        logger = logging.getLogger("medray")
        self.level = logger.level
        logger.addHandler(self.handler)
        logger.setLevel(logging.INFO)

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("medray")
        logger.removeHandler(self.handler)
        logger.setLevel(self.level)
        self.handler.close()
