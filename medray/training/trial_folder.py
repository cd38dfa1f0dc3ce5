"""The folder of a trial: its checkpoints, its result and the state to resume from."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from medray.config.load import public_settings
from medray.config.trial import TrialConfig
from medray.evaluation.metrics import Metrics
from medray.evaluation.novelty import Cloud
from medray.models.build import BuiltModel, save
from medray.records import HISTORY, Evaluation, dump_history
from medray.registry.loading import TRAIN_ROWS, write_cloud
from medray.storage import checkpoint, files
from medray.storage.checkpoint import BaseRecord, Manifest, PrecisionRecord, Probe, TaskRecord
from medray.tasks.base import protocol as tasks
from medray.tasks.base.protocol import Task
from medray.training.material import Material
from medray.types import Prediction

_STATE, _PRECISION = "state.pt", "precision.json"


@dataclass(frozen=True)
class Validation:
    """A trial's predictions for its validation rows."""

    task: Task  # with the values that are fitted on validation
    predictions: list[Prediction]
    metrics: Metrics
    cloud: Cloud | None  # of the embeddings of the validation rows


@dataclass(frozen=True)
class TrialResult:
    folder: Path
    checkpoint: Path  # of the best evaluation
    history: list[Evaluation]
    precision: PrecisionRecord

    @property
    def best(self) -> Evaluation:
        step = int(self.checkpoint.name.removeprefix("step-"))
        return next(evaluation for evaluation in self.history if evaluation.step == step)


@dataclass(frozen=True)
class TrialFolder:
    path: Path

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:06d}"

    def clear(self) -> None:
        """Remove the state and the checkpoints of an earlier process."""
        for name in ("state", "checkpoints"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def write_checkpoint(
        self,
        step: int,
        fill: Callable[[Path], None],
        manifest: Manifest,
        history: Sequence[Evaluation],
    ) -> None:
        """Write a checkpoint, with the files that `fill` adds, and the history."""
        folder = self.checkpoint(step)
        # A process that died before it stored its state may have left one.
        shutil.rmtree(folder, ignore_errors=True)
        with files.room_for(self.path):
            checkpoint.save(folder, fill, manifest)
            files.write(self.path / HISTORY, dump_history(history))

    def write_history(self, history: Sequence[Evaluation]) -> None:
        with files.room_for(self.path):
            files.write(self.path / HISTORY, dump_history(history))

    def remove_checkpoints(self, best_step: int, num_newest: int) -> None:
        """Keep the best checkpoint and the newest ones.

        Call it only once the state is stored: a process that resumes from an older state may need
        an earlier best one.
        """
        checkpoints = sorted((self.path / "checkpoints").glob("step-*"))
        keep = {self.checkpoint(best_step), *checkpoints[-num_newest:]}
        for old in checkpoints:
            if old not in keep:
                shutil.rmtree(old)

    def latest_state(self) -> Path | None:
        return max((self.path / "state").glob("step-*"), default=None)

    def write_state(
        self, step: int, state: dict[str, Any], precision: PrecisionRecord, *, is_evaluated: bool
    ) -> None:
        """Write the state to resume from. It is read from this folder only and never published."""
        # The state before the evaluation of a step stays until the one after it is complete, which
        # follows it in the order of names.
        target = self.path / "state" / f"step-{step:06d}{'-evaluated' if is_evaluated else ''}"
        shutil.rmtree(target, ignore_errors=True)
        with files.room_for(self.path), files.new_folder(target) as folder:
            # With a path instead of a file, torch would hide why a write failed.
            with (folder / _STATE).open("wb") as file:
                torch.save(state, file)
            (folder / _PRECISION).write_text(precision.model_dump_json())
        for old in (self.path / "state").glob("step-*"):
            if old != target:
                shutil.rmtree(old)


def read_state(folder: Path) -> tuple[dict[str, Any], PrecisionRecord]:
    """Return a stored state and the precision of its trial. Only tensors and plain values load."""
    state: dict[str, Any] = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
    if "slots" in state:  # the format of an earlier medray
        state["slot"] = state.pop("slots")["default"]
    return state, PrecisionRecord.model_validate_json((folder / _PRECISION).read_bytes())


def write_files(
    folder: Path,
    model: BuiltModel,
    material: Material,
    validation: Validation,
    evaluation: Evaluation,
) -> None:
    """Write the files of a checkpoint beside its manifest: adapter, predictions and metrics."""
    save(model, folder)
    predictions = tasks.without_texts(validation.task, validation.predictions, material.validation)
    lines = (json.dumps(asdict(prediction), ensure_ascii=False) for prediction in predictions)
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if validation.cloud:
        write_cloud(folder, validation.cloud)
    if material.train_rows:
        shutil.copyfile(material.train_rows, folder / TRAIN_ROWS)
    metrics = {
        "split": "validation",
        **validation.metrics.as_dict(),
        "train_loss": evaluation.train_loss,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
    (folder / "audit.json").write_text(
        json.dumps(material.audit, indent=1, ensure_ascii=False), encoding="utf-8"
    )


def make_manifest(
    config: TrialConfig,
    model: BuiltModel,
    material: Material,
    validation: Validation,
    evaluation: Evaluation,
    *,
    precision: PrecisionRecord,
    probe: Probe,
) -> Manifest:
    base = material.base
    return Manifest(
        task=TaskRecord(
            options=validation.task.options.model_dump(mode="json"),
            state=validation.task.state(),
        ),
        base=BaseRecord(
            source=base.source,
            revision=base.revision,
            weight_hash=base.weight_hash,
            family=model.family.name,
            note=base.note,
        ),
        trial=public_settings(config),
        data_fingerprint=material.data_fingerprint,
        split_fingerprint=material.split_fingerprint,
        cursor={"epoch": evaluation.epoch, "step": evaluation.step},
        metrics=evaluation.metrics,
        precision=precision,
        seed=config.seed,
        versions=checkpoint.versions(),
        git_commit=checkpoint.git_commit(),
        probe=probe,
    )
