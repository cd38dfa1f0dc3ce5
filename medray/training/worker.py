"""Trains the assignments of a desk, one after another, in a process of its own or as one of several
workers."""

import ctypes
import gc
import logging
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from medray.config.schema import validate
from medray.config.trial import TrialConfig
from medray.errors import MedrayError
from medray.models.device import limit_memory
from medray.records import Evaluation
from medray.training import distributed
from medray.training.assignment import Assignment, TrialReport, failure
from medray.training.desk import WAIT_S, Order, WorkerDesk
from medray.training.loop import TrialInterrupt
from medray.training.material import open_material
from medray.training.trial import Trial

log = logging.getLogger(__name__)


class EarlyStop(Exception):
    """Ends a trial in its report, because the study stops it."""


def run(assignment: Assignment, report: Callable[[dict[str, Any]], None], *, node: str) -> None:
    """Train to the end, from the last stored state where there is one.

    `node` is the address of this node, for the log. Raises `TrialInterrupt` where the study stops
    the trial, once the state is stored.
    """
    folder = Path(assignment.folder)
    config = validate(TrialConfig, assignment.config, where=f"trial {assignment.trial}")
    limit_memory(config.resources.gpus_per_worker or 0.0)
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


def work(desk: WorkerDesk, *, node: str) -> None:
    """Train the assignments of a desk until it lets this worker leave."""
    order = _next(desk, Order(0, None))
    while order.assignment:
        _train(desk, order.number, order.assignment, node)
        give_memory_back()
        order = _next(desk, order)


def _next(desk: WorkerDesk, last: Order) -> Order:
    while (order := desk.take(last.number, WAIT_S)) is None:
        pass
    return order


def _train(desk: WorkerDesk, number: int, assignment: Assignment, node: str) -> None:
    def report(row: dict[str, Any]) -> None:
        goes_on = distributed.rank() == 0 and desk.report(number, row)
        if not distributed.broadcast(goes_on):
            raise EarlyStop

    try:
        run(assignment, report, node=node)
    except EarlyStop:
        return
    except TrialInterrupt:
        # The study has ended, and this process ends with it. Without a wait, Ray would start the
        # trial again.
        threading.Event().wait()
    except MedrayError as err:
        # The others may wait inside a collective call, which only the end of the group ends.
        ends_workers = distributed.world_size() > 1
        desk.finish(number, failure(err), ends_workers=ends_workers)
        if ends_workers:
            raise
    else:
        if distributed.rank() == 0:
            desk.finish(number)


def give_memory_back() -> None:
    """Free the memory of a finished trial, for other processes and the next trial in this one."""
    gc.collect()  # a trial and its loop refer to each other
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)  # glibc keeps free blocks between used ones: up to the memory of a trial


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
