"""What runs in a process of Ray: a trial itself, or a driver that hands it to the workers of a
TorchTrainer.

The training code is imported where it runs: a driver computes nothing, and importing it would take
seconds and half a GB. Ray imports this module where it runs a function of it, so that it stands
apart from `ray_tune`: workers need no Ray Tune."""

import ctypes
import gc
import sys
from typing import Any

from medray.errors import MedrayError
from medray.models.imports import uncollected
from medray.storage import files
from medray.training.assignment import FAILED, Assignment, failure


def start(config: dict[str, Any]) -> None:
    (inline if config["launcher"] == "inline" else driven)(config)


def inline(config: dict[str, Any]) -> None:
    """Train in this process."""
    from ray import tune

    with uncollected():
        from medray.training import worker

    try:
        worker.run_in_ray(Assignment(**config["assignment"]), tune.report)
    except MedrayError as err:
        tune.report(failure(err))  # not raised: Tune would try again what cannot go on
    finally:
        give_memory_back()  # the next trial is started in this process


def give_memory_back() -> None:
    """Free what a finished call used, for other processes and for the next call in this one."""
    gc.collect()  # a trial and its loop hold each other
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(
            0
        )  # glibc keeps what was freed between others' blocks: it may be as much as a trial takes


def driven(config: dict[str, Any]) -> None:
    """Train in workers of Ray Train. This process computes nothing and holds no CPU."""
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
            # Without limits Train waits for ever for workers that never start.
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
        # Train writes too, and of what a worker raised it keeps the text.
        report(
            failure(files.full(assignment.folder)) if files.is_full(err) else {FAILED: _cause(err)}
        )


def _train(assignment: dict[str, Any]) -> None:
    """In a worker of Ray Train."""
    with uncollected():
        from medray.training import worker

    worker.train(assignment)


def _cause(err: BaseException) -> str:
    """The first sentence of what a worker raised: Train wraps it in its own."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    sentence = next(
        (line for line in reversed(lines) if line.startswith("medray.errors.")),
        lines[-1] if lines else type(err).__name__,
    )
    return sentence.removeprefix("medray.errors.")
