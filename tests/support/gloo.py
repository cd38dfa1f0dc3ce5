"""Runs trials on several gloo processes without Ray, with the functions that Ray's workers call."""

import json
import multiprocessing
import os
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from support import tiny


@dataclass(frozen=True)
class Job:
    """A trial to run. It writes to `folder`; its base model and rows are in the folder above."""

    folder: Path
    settings: tuple[str, ...]
    resume: bool = False
    stop_after: int | None = None  # steps, as if the process were killed there
    interrupt_in: int | None = (
        None  # the step in which the study requests an interrupt, as Ctrl-C does
    )
    choice: bool = False  # train a decoder that picks a label, instead of a head
    keeps_16_bits: bool = False  # of a frozen base, as a GPU does


@dataclass
class JobResult:
    losses: list[float] = field(default_factory=list)  # one per step
    history: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    scale: float = 1.0  # of the loss, with fp16
    engine: str = ""  # class name of the model that the loop calls
    num_whole: int = 0  # parameters that this rank stores between steps
    num_moves: int = 0  # numbers that DeepSpeed moves to the device as they are
    bucket: int = 0  # numbers that DeepSpeed reserves for gradients
    num_narrow: int = 0  # weights in bf16
    checkpoints: list[str] = field(default_factory=list)


class _Stop(Exception):
    pass


def run(jobs: list[Job], num_ranks: int) -> list[JobResult]:
    """Run the jobs one after the other on all ranks and return the results of rank 0.

    A single rank starts no process group, as a study without Ray Train does."""
    place = jobs[0].folder.parent
    if torch.cuda.is_available():
        context: Any = multiprocessing.get_context(
            "spawn"
        )  # a process that is forked after a CUDA call cannot use CUDA
    else:
        context = multiprocessing.get_context(
            "forkserver"
        )  # the server imports torch, PEFT and DeepSpeed once
        context.set_forkserver_preload(["medray.training.worker", "deepspeed"])
    meeting = place / f"meeting-{uuid.uuid4().hex}"
    members = [
        context.Process(target=_rank, args=(rank, num_ranks, jobs, meeting))
        for rank in range(num_ranks)
    ]
    for member in members:
        member.start()
    for member in members:
        member.join(240)
        if member.is_alive():
            member.kill()
    assert [member.exitcode for member in members] == [0] * num_ranks
    return [JobResult(**row) for row in json.loads((place / "results.json").read_text())]


def _rank(rank: int, num_ranks: int, jobs: list[Job], meeting: Path) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    if num_ranks > 1:
        os.environ["LOCAL_RANK"] = str(rank)  # as Ray Train sets it
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=num_ranks
        )
    _shard_all()
    counts = _count_weights_of_deepspeed()
    results = []
    for job in jobs:
        counts.clear()
        results.append(replace(alone(job), **counts))
    if rank == 0:
        (meeting.parent / "results.json").write_text(
            json.dumps([vars(result) for result in results])
        )
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _shard_all() -> None:
    """Shard small weights too: DeepSpeed leaves those below 100,000 numbers whole, which are all of
    a tiny model."""
    from medray.training.strategies.deepspeed import Strategy

    settings = Strategy.settings

    def sharding(self: Strategy) -> dict[str, Any]:
        values = settings(self)
        values["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return values

    Strategy.settings = sharding  # type: ignore[method-assign]


def _count_weights_of_deepspeed() -> dict[str, int]:
    """Return a dictionary that DeepSpeed's start fills with counts of the next job."""
    import deepspeed

    initialize, counts = deepspeed.initialize, {}

    def counting_initialize(*, model: Any, config: dict[str, Any], **options: Any) -> Any:
        zero = config["zero_optimization"]
        counts["num_moves"] = sum(parameter.numel() for parameter in model.parameters())
        counts["bucket"] = zero["reduce_bucket_size"]
        return initialize(model=model, config=config, **options)

    deepspeed.initialize = counting_initialize
    return counts


def alone(job: Job) -> JobResult:
    """Run a job in this process, which may be one of several ranks."""
    from medray.errors import MedrayError
    from medray.models import frozen_weights
    from medray.training import stop
    from medray.training.loop import Loop, TrialInterrupt

    result = JobResult()
    job.folder.mkdir(exist_ok=True)
    take_step, advance, keeps_16_bits = Loop.take_step, Loop.advance, frozen_weights.keeps_16_bits

    def recording_step(self: Loop) -> Any:
        if (
            self.slot.step + 1 == job.interrupt_in and trial is not None and trial.stop
        ):  # only on rank 0
            stop.request(job.folder / "trial")
            trial.stop.open()  # checks for the request in this step
        loss, step, is_interrupted = take_step(self)
        result.losses.append(loss)
        return loss, step, is_interrupted

    def stopping_advance(self: Loop) -> None:
        advance(self)
        if self.slot.step == job.stop_after:
            raise _Stop

    Loop.take_step, Loop.advance = recording_step, stopping_advance  # type: ignore[method-assign]
    if job.keeps_16_bits:
        frozen_weights.keeps_16_bits = lambda device, precision: True
    trial = None
    try:
        study = (tiny.choice_study if job.choice else tiny.study)(job.folder.parent, *job.settings)
        trial = tiny.trial(study, job.folder)
        if trial.stop:
            stop.prepare(job.folder / "trial")
        result.history = [
            evaluation.as_dict() for evaluation in trial.run(resume=job.resume).history
        ]
    except MedrayError as err:
        result.error = str(err)
    except (_Stop, TrialInterrupt):
        pass
    finally:
        Loop.take_step, Loop.advance = take_step, advance  # type: ignore[method-assign]
        frozen_weights.keeps_16_bits = keeps_16_bits
    if trial is not None:
        result.scale = (
            trial.loop.strategy.state()["scaler"].get("scale", 1.0)
            if "model.precision=fp16" in job.settings
            else 1.0
        )
        result.engine = type(trial.loop.model).__name__
        result.num_narrow = sum(
            parameter.dtype == torch.bfloat16 for parameter in trial.model.network.parameters()
        )
        result.num_whole = sum(parameter.numel() for parameter in trial.model.network.parameters())
    result.checkpoints = sorted(
        str(path) for path in (job.folder / "trial" / "checkpoints").glob("step-*")
    )
    return result
