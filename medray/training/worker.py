"""Runs one trial from an assignment, and reports to a callable or as a worker of Ray Train."""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from medray.config.schema import validate
from medray.config.trial import TrialConfig
from medray.errors import MedrayError
from medray.records import Evaluation
from medray.training import distributed
from medray.training.assignment import Assignment, TrialReport, failure
from medray.training.loop import TrialInterrupt
from medray.training.material import open_material
from medray.training.trial import Trial

log = logging.getLogger(__name__)


def run(assignment: Assignment, report: Callable[[dict[str, Any]], None], *, node: str) -> None:
    """Train to the end, from the last stored state where there is one.

    `node` is the address of this node, for the log. Raises `TrialInterrupt` where the study stops
    the trial, once the state is stored.
    """
    folder = Path(assignment.folder)
    config = validate(TrialConfig, assignment.config, where=f"trial {assignment.trial}")
    with TrialLog(folder):
        log.info(
            "%d worker(s) on %s", distributed.world_size(), ", ".join(distributed.gather([node]))
        )

        def send(evaluation: Evaluation) -> None:
            report(
                TrialReport(
                    evaluation, trial.loop.first_step_at, trial.num_parameters, trial.num_trainable
                ).as_row()
            )

        material = open_material(Path(assignment.material))
        trial = Trial(config, material, folder, send, early_rungs=assignment.early_rungs)
        try:
            trial.run(resume=True)
        except TrialInterrupt as err:
            log.info("%s; its state is stored", err)
            raise


def run_in_ray(assignment: Assignment, report: Callable[[dict[str, Any]], None]) -> None:
    """Call `run` in a process of Ray. A trial with an interrupt waits for the end of its process,
    since Ray would start it again."""
    import ray

    try:
        run(assignment, report, node=ray.util.get_node_ip_address())
    except TrialInterrupt:
        threading.Event().wait()


def train(assignment: dict[str, Any]) -> None:
    """Run a trial as the training function of a TorchTrainer. Ray Train uses the first worker's
    report."""
    import ray.train

    try:
        run_in_ray(Assignment(**assignment), ray.train.report)
    except MedrayError as err:
        if distributed.world_size() > 1:
            # The others may wait inside a collective call, which only the end of the group ends.
            raise
        ray.train.report(failure(err))


class _LogFile(logging.FileHandler):
    """Ignores write errors: the trial itself reports a full disk, which they would hide."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class TrialLog:
    """Writes the log of rank 0 to log.txt beside the checkpoints of the trial."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.handler = (
            _LogFile(folder / "log.txt") if distributed.rank() == 0 else logging.NullHandler()
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
