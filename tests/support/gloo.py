"""Trials on several gloo processes, without Ray: the same functions that Ray's workers run."""

import json
import multiprocessing
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from support import tiny


@dataclass(frozen=True)
class Job:
    """A trial to run; what it makes lies in `folder`, its base and rows in the folder above."""

    folder: Path
    settings: tuple[str, ...]
    resume: bool = False
    stop_after: int | None = None  # steps, as if the process had been killed there
    interrupt_in: int | None = None  # step, as Ctrl-C at the study does it
    choice: bool = False  # a decoder that picks from labels, instead of a head


@dataclass
class Done:
    losses: list[float] = field(default_factory=list)  # of each step
    history: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    scale: float = 1.0  # of the loss, in fp16
    engine: str = ""  # the class of what the loop calls
    num_whole: int = 0  # numbers of weights that this rank holds when it is not computing
    checkpoints: list[str] = field(default_factory=list)


class _Stopped(Exception):
    pass


def run(jobs: list[Job], num_ranks: int) -> list[Done]:
    """Each job on all ranks, one after the other; what the first rank saw. One rank alone has no
    group, as where Ray Train is not used."""
    place = jobs[0].folder.parent
    if torch.cuda.is_available():
        context: Any = multiprocessing.get_context(
            "spawn"
        )  # what was forked after a look at CUDA cannot use it
    else:
        context = multiprocessing.get_context(
            "forkserver"
        )  # torch, PEFT and DeepSpeed are imported once, by the server
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
    return [Done(**row) for row in json.loads((place / "done.json").read_text())]


def _rank(rank: int, num_ranks: int, jobs: list[Job], meeting: Path) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    if num_ranks > 1:
        os.environ["LOCAL_RANK"] = str(rank)  # as Ray Train sets it
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=num_ranks
        )
    _shard_all()
    done = [alone(job) for job in jobs]
    if rank == 0:
        (meeting.parent / "done.json").write_text(json.dumps([vars(one) for one in done]))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _shard_all() -> None:
    """DeepSpeed leaves weights below 100,000 numbers whole: every one of a tiny model."""
    from medray.training.strategies.deepspeed import Strategy

    settings = Strategy.settings

    def sharding(self: Strategy) -> dict[str, Any]:
        asked = settings(self)
        asked["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return asked

    Strategy.settings = sharding  # type: ignore[method-assign]


def alone(job: Job) -> Done:
    """One job in this process, which may be one of several ranks."""
    from medray.errors import MedrayError
    from medray.training import stop
    from medray.training.loop import Interrupted, Loop

    done = Done()
    job.folder.mkdir(exist_ok=True)
    take_step, advance = Loop.take_step, Loop.advance

    def taking(self: Loop) -> Any:
        if (
            self.slot.step + 1 == job.interrupt_in and trial is not None and trial.stop
        ):  # of the first rank
            stop.request(job.folder / "trial")
            trial.stop.open()  # it looks in this step
        loss, step, is_interrupted = take_step(self)
        done.losses.append(loss)
        return loss, step, is_interrupted

    def advancing(self: Loop) -> None:
        advance(self)
        if self.slot.step == job.stop_after:
            raise _Stopped

    Loop.take_step, Loop.advance = taking, advancing  # type: ignore[method-assign]
    trial = None
    try:
        asked = (tiny.choice_study if job.choice else tiny.study)(job.folder.parent, *job.settings)
        trial = tiny.trial(asked, job.folder)
        if trial.stop:
            stop.prepare(job.folder / "trial")
        done.history = [evaluation.as_dict() for evaluation in trial.run(resume=job.resume).history]
    except MedrayError as err:
        done.error = str(err)
    except (_Stopped, Interrupted):
        pass
    finally:
        Loop.take_step, Loop.advance = take_step, advance  # type: ignore[method-assign]
    if trial is not None:
        done.scale = (
            trial.loop.strategy.state()["scaler"].get("scale", 1.0)
            if "model.precision=fp16" in job.settings
            else 1.0
        )
        done.engine = type(trial.loop.model).__name__
        done.num_whole = sum(parameter.numel() for parameter in trial.built.model.parameters())
    done.checkpoints = sorted(
        str(path) for path in (job.folder / "trial" / "checkpoints").glob("step-*")
    )
    return done
