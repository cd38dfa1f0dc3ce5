"""Code that runs in a process of Ray: a trial, or a driver that passes it to the workers of a
TorchTrainer.

A function imports training code itself: a driver computes nothing, and that import would cost it
seconds and half a GB. The module is apart from `ray_tune` because workers import it and need no Ray
Tune."""

import ctypes
import gc
import sys
from typing import Any

from medray.errors import MedrayError
from medray.models.imports import without_garbage_collection
from medray.storage import files
from medray.training.assignment import ERROR, Assignment, failure


def start(config: dict[str, Any]) -> None:
    (inline if config["launcher"] == "inline" else drive)(config)


def inline(config: dict[str, Any]) -> None:
    """Train in this process."""
    from ray import tune

    with without_garbage_collection():
        from medray.training import worker

    try:
        worker.run_in_ray(Assignment(**config["assignment"]), tune.report)
    except MedrayError as err:
        tune.report(failure(err))  # not raised: Tune would retry a trial that cannot continue
    finally:
        give_memory_back()  # the next trial runs in this process


def give_memory_back() -> None:
    """Free the memory of a finished call, for other processes and the next call in this one."""
    gc.collect()  # a trial and its loop refer to each other
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)  # glibc keeps free blocks between used ones: up to the memory of a trial


def drive(config: dict[str, Any]) -> None:
    """Train in workers of Ray Train. This process computes nothing and reserves no CPU."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.tune import report
    from ray.tune.integration.ray_train import TuneReportCallback

    assignment = Assignment(**config["assignment"])
    trainer = TorchTrainer(
        _train,
        train_loop_config=assignment.as_dict(),
        scaling_config=ScalingConfig(
            num_workers=config["num_workers"]
            if isinstance(config["num_workers"], int)
            else tuple(config["num_workers"]),
            use_gpu=config["gpus"] > 0,
            placement_strategy=config["placement"].upper(),
            resources_per_worker={
                "CPU": config["cpus"],
                **({"GPU": config["gpus"]} if config["gpus"] else {}),
            },
        ),
        run_config=RunConfig(
            name=assignment.trial,
            storage_path=config["storage_path"],
            # Without limits, Train waits forever for workers that never start.
            failure_config=FailureConfig(
                max_failures=config["max_failures"], controller_failure_limit=3
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[TuneReportCallback()],
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as err:
        # Train also writes files, and keeps only the text of a worker's error.
        report(
            failure(files.full(assignment.folder)) if files.is_full(err) else {ERROR: _cause(err)}
        )


def _train(assignment: dict[str, Any]) -> None:
    """Train in a worker of Ray Train."""
    with without_garbage_collection():
        from medray.training import worker

    worker.train(assignment)


def _cause(err: BaseException) -> str:
    """Return the first sentence of a worker's error, without the text that Train adds."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    sentence = next(
        (line for line in reversed(lines) if line.startswith("medray.errors.")),
        lines[-1] if lines else type(err).__name__,
    )
    return sentence.removeprefix("medray.errors.")
