"""Crews: the workers of a slot, which outlive a trial. A crew is a thread of the trial actor
(inline), or the workers of one TorchTrainer.

Workers import this module, so it imports neither torch nor Ray Tune."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import ray
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from medray.models.imports import without_garbage_collection
from medray.runtime.cluster import free_leaked_groups
from medray.storage import files
from medray.training.assignment import DISK_FULL, ERROR
from medray.training.desk import WAIT_S, Desk, TrialMessage

_LEAVE_S = 30.0  # for the workers of a crew to end


@dataclass(frozen=True)
class Workers:
    """The processes of a crew. It trains a trial only if the trial requires the same."""

    launcher: str
    num_workers: int | tuple[int, int]
    placement: str
    cpus: float
    gpus: float
    trial: str | None  # the only one that the crew trains

    @property
    def most(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Return the workers that the configuration of a trial requires."""
        num_workers = config["num_workers"]
        return cls(
            config["launcher"],
            num_workers if isinstance(num_workers, int) else tuple(num_workers),
            config["placement"],
            config["cpus"],
            config["gpus"],
            None if config["shares_crew"] else config["assignment"]["trial"],
        )


class Crew:
    def __init__(self, workers: Workers, desk: Desk, run: Callable[[], object]) -> None:
        """`run` returns when the desk has dismissed the workers."""
        self.workers, self.desk = workers, desk
        self._run = run
        self._error: BaseException | None = None
        self._has_started = False
        self._thread = threading.Thread(target=self._keep_error, daemon=True)
        self._thread.start()

    def next_message(self) -> TrialMessage:
        """Wait for the next message of the trial. Raise the error that ended the workers."""
        while True:
            has_ended = not self._thread.is_alive()
            if message := self.desk.next_message(WAIT_S):
                self._has_started = True
                return message
            if has_ended:
                raise self._error or RuntimeError("its workers left before its end")
            if not self._has_started and self.workers.launcher == "train":
                free_leaked_groups()  # of a crew that died here: this one waits for its CPUs

    def dismiss(self) -> bool:
        """Let the workers leave, and return whether they have left."""
        try:
            self.desk.dismiss()
        except RayActorError:  # of a desk that died; its workers end with this process
            return False
        self._thread.join(_LEAVE_S)
        return not self._thread.is_alive()

    def _keep_error(self) -> None:
        try:
            self._run()
        except BaseException as err:
            self._error = err


def hire(config: Mapping[str, Any]) -> Crew:
    """Return a crew for the trial of a configuration and those that require the same workers."""
    workers = Workers.of(config)
    if workers.launcher == "inline":
        desk = Desk()
        return Crew(workers, desk, lambda: _work(desk))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = (
        ray.remote(Desk)
        # Each worker waits in a call, beside those that it replaced, and so does this process.
        .options(num_cpus=0, max_concurrency=2 * workers.most + 8, scheduling_strategy=here)
        .remote()
    )
    return Crew(workers, _at(actor), lambda: _fit(config, workers, actor))


def _fit(config: Mapping[str, Any], workers: Workers, actor: Any) -> None:
    """Run the workers of Ray Train until they leave. This process computes nothing and reserves no
    CPU. `ray.train.torch` imports torch here too, once per crew."""
    from ray.train.torch import TorchTrainer

    TorchTrainer(
        _work_in_train,
        train_loop_config={"desk": actor},
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.gpus > 0,
            placement_strategy=workers.placement.upper(),
            resources_per_worker={
                "CPU": workers.cpus,
                **({"GPU": workers.gpus} if workers.gpus else {}),
            },
        ),
        run_config=RunConfig(
            name=config["assignment"]["trial"],  # the first of the crew
            storage_path=config["storage_path"],
            # The desk counts the failures of each trial. Without the other limit, Train waits
            # forever for workers that never start.
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=3),
            callbacks=[_Losses(actor, config["storage_path"])],
        ),
    ).fit()


def _work(desk: Desk) -> None:
    with without_garbage_collection():
        from medray.training import worker

    worker.work(desk, node=ray.util.get_node_ip_address())


def _work_in_train(config: Mapping[str, Any]) -> None:
    _work(_at(config["desk"]))


class _RemoteDesk:
    """A desk in another process."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._actor, name)
        return lambda *values, **options: ray.get(method.remote(*values, **options))


def _at(actor: Any) -> Desk:
    return cast(Desk, _RemoteDesk(actor))


class _Losses(UserCallback):
    """Counts the losses of workers at the desk. Ray Train calls it in its controller."""

    def __init__(self, actor: Any, storage_path: str) -> None:
        self.actor, self.storage_path = actor, storage_path

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        errors = list(worker_exceptions.values())
        # A machine that a cloud takes back is no failure of the trial.
        if any(getattr(err, "preempted", False) for err in errors):
            return
        if any(map(files.is_full, errors)):
            row = {DISK_FULL: str(files.full(self.storage_path))}
        else:
            row = {ERROR: "; ".join(dict.fromkeys(map(_cause, errors)))}
        self.actor.lose.remote(row)


def _cause(err: Exception) -> str:
    """Return the last sentence of a worker's error."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[-1] if lines else type(err).__name__
