"""One trial, start to end, in this process: build, choose the arithmetic, run the loop, keep
checkpoints, resume.

It reports through a callable and knows neither Ray nor the study around it.
"""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from medray import plugins
from medray.config.load import public_settings
from medray.config.study import Precision, TrialConfig
from medray.data.prepared import EncodedSplit
from medray.engines.transformers import TransformersEngine
from medray.errors import TrialError
from medray.evaluation.metrics import Metrics, higher_is_better
from medray.evaluation.novelty import Cloud
from medray.models import precision
from medray.models.build import BuiltModel, build, save
from medray.records import HISTORY, Evaluation, dump_history
from medray.registry.loading import TRAIN_ROWS, make_probe, write_cloud
from medray.storage import checkpoint, files
from medray.storage.checkpoint import BaseRecord, Manifest, PrecisionRecord, TaskRecord
from medray.tasks.base import protocol as tasks
from medray.tasks.base.protocol import Calibrated, Task
from medray.training import distributed
from medray.training.loop import Loop
from medray.training.plan import MicroBatch
from medray.training.prepared import Material
from medray.training.slot import Slot, Stopper, open_slot
from medray.training.status import StatusFile
from medray.training.stop import StopFiles
from medray.training.strategies.base import Strategy
from medray.types import Example, Floats32, Prediction

log = logging.getLogger(__name__)
STATE = "state.pt"  # read with weights_only: tensors and plain values
_PROBE_TOKENS = (
    2048  # enough for the ratio of two types to hold, little enough to cost about a second
)


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
class Validation:
    """A trial's answers to its validation rows."""

    task: Task  # with what was fitted on validation
    predictions: list[Prediction]
    metrics: Metrics
    cloud: Cloud | None  # of the validation rows' embeddings


class Trial:
    def __init__(
        self,
        config: TrialConfig,
        material: Material,
        folder: Path,
        report: Callable[[Evaluation], None],
    ) -> None:
        self.config, self.material, self.folder, self.report = config, material, folder, report
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.status = StatusFile(folder if distributed.rank() == 0 else None)
        self.status.stage("loading the base model")
        if config.resources.cpus_per_worker:
            torch.set_num_threads(config.resources.cpus_per_worker)
        self.task = material.task
        self.rows = material.prepared.split("train")
        self.built: BuiltModel = build(
            material.base, self.task.head(), config.model, config.lora, seed=config.seed
        )
        self.num_parameters, self.num_trainable = (
            self.built.num_parameters,
            self.built.num_trainable,
        )  # shards cannot be counted
        trained = self.num_trainable, self.num_parameters
        log.info(
            "%s: %d of %d parameters train, on %d thread(s)",
            config.model.source,
            *trained,
            torch.get_num_threads(),
        )
        if config.train.zero_stage != 3:  # a model that is sharded need not fit on one device
            self.built.model.to(self.device)
        self.slot = self._open_slot()
        self.stop = StopFiles(folder) if distributed.rank() == 0 else None
        self.validation: Validation | None = None
        self.chosen = PrecisionRecord(actual="fp32", setting=config.model.precision)

    def run(self, *, resume: bool = False) -> TrialResult:
        """Train to the end, from the last stored state where asked and there is one; `Interrupted`
        where the study requests it."""
        if self.stop is None:
            return self._run(resume)
        self.stop.open()
        try:
            return self._run(resume)
        finally:
            self.stop.close()

    def _run(self, resume: bool) -> TrialResult:
        self.loop = self.make_loop()
        state: Path | None = distributed.shared(self._latest("state"))
        if resume and state:
            self.chosen = PrecisionRecord.model_validate_json(
                (state / "precision.json").read_bytes()
            )
            self._start(_read_state(state / STATE))
            log.info("resumed after step %d of %d", self.slot.step, self.slot.num_steps)
        else:
            if distributed.rank() == 0:
                for stale in ("state", "checkpoints"):
                    shutil.rmtree(self.folder / stale, ignore_errors=True)
                self._choose_precision()
            self.chosen = distributed.shared(self.chosen)
            self._start(None)
        self.loop.run()
        self.status.clear()
        best = self._checkpoint_folder(self.slot.stopper.best_step)
        if self.slot.stopper.best is None:
            raise TrialError(f"{self.folder}: no evaluation gave a {self.slot.stopper.metric}")
        return TrialResult(self.folder, best, self.slot.history, self.chosen)

    def _open_slot(self) -> Slot:
        train, metric = self.config.train, self.task.options.metric
        steps_per_epoch = -(-len(self.rows) // train.samples_per_step)
        num_steps = train.max_steps or steps_per_epoch * (train.epochs or 1)
        stopper = Stopper(metric, higher_is_better(metric), train.patience)
        return open_slot(
            self.built.model,
            self.built.family.head_modules,
            train,
            num_steps=num_steps,
            seed=self.config.seed,
            stopper=stopper,
        )

    def make_loop(self) -> Loop:
        """One in fp32, before the arithmetic is chosen."""
        return Loop(
            model=self.built.model,
            rows=self.rows,
            row_loss=self.task.loss(self.rows.targets(), self.rows.ids),
            slot=self.slot,
            strategy=self.make_strategy("fp32"),
            train=self.config.train,
            pad_id=self.built.tokenizer.pad_token_id,
            precision="fp32",
            device=self.device,
            evaluate=self._evaluate,
            report=self._report,
            store_state=self._store_state,
            on_step=self._show_step,
            is_interrupted=self.stop.is_requested if self.stop else lambda: False,
            padding_side=self.built.family.padding_side_train,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    def make_strategy(self, used: Precision) -> Strategy:
        module = plugins.find("training.strategies", self.config.train.strategy)
        strategy: Strategy = module.Strategy(
            self.slot, self.config.train, precision=used, device=self.device
        )
        return strategy

    def _start(self, stored: dict[str, Any] | None) -> None:
        self.loop.precision = self.chosen.actual
        self.loop.strategy = self.make_strategy(self.chosen.actual)
        self.loop.model = self.loop.strategy.start(self.built.model, stored)

    def _show_step(self, loss: float) -> None:
        slot = self.slot
        epoch = slot.cursor[0] + 1
        self.status.step(
            epoch=epoch,
            step=slot.step,
            num_steps=slot.num_steps,
            loss=loss,
            tokens_per_s=slot.tokens_per_s,
        )

    def _choose_precision(self) -> None:
        self.status.stage(
            "timing precision" if self.config.model.precision == "auto" else "starting"
        )
        batch = self._typical_batch(self.rows)
        shape = (len(batch.rows), int(self.rows.lengths[list(batch.rows)].max()))
        self.built.model.train()
        self.chosen = precision.choose(
            self.config.model.precision,
            lambda: self.loop.loss(batch).sum() / len(batch.rows),
            shape=shape,
            device=self.device,
            key=(
                self.material.base.weight_hash,
                self.config.model.model_dump_json(),
                self.config.task.name,
                *(
                    f"{name} {version}"
                    for name, version in checkpoint.versions().items()
                    if name in ("medray", "torch", "transformers", "peft")
                ),
            ),
            folder=self.material.path.parent,
            study=(
                self.folder.parent,
                (self.material.base.weight_hash, self.config.model.quantization, self.device),
            ),
        )
        self.loop.strategy.abandon()

    def _typical_batch(self, rows: EncodedSplit) -> MicroBatch:
        """Rows of about the median length, as many as a step or the probe's budget holds."""
        by_length = rows.lengths.argsort(kind="stable")
        middle = len(by_length) // 2
        budget = min(_PROBE_TOKENS, self.config.train.token_budget)
        count = max(
            1,
            min(
                self.config.train.samples_per_step,
                budget // int(rows.lengths[by_length[middle]]),
                middle,
            ),
        )
        return MicroBatch(tuple(int(row) for row in by_length[middle - count + 1 : middle + 1]))

    def _engine(
        self, used: Precision, embeddings: list[Floats32] | None = None
    ) -> TransformersEngine:
        budget, is_sharded = self.config.train.token_budget, self.loop.strategy.shards_model
        return TransformersEngine(
            self.built,
            precision=used,
            token_budget=budget,
            device=self.device,
            is_sharded=is_sharded,
            embeddings=embeddings,
        )

    def _evaluate(self) -> dict[str, float]:
        self.status.stage("evaluating")
        if (
            self.stop
        ):  # the state is stored, and a report may wait for a study that has stopped listening
            self.stop.close()
        examples = self.material.validation
        embeddings: list[Floats32] = []
        predictions = self.predict_rows(examples, embeddings)
        task = self.task
        if isinstance(task, Calibrated):
            task = task.tune(predictions, examples)
            predictions = task.decide(predictions)
        cloud = (
            Cloud.fit(distributed.gathered(embeddings))
            if not self.loop.strategy.shards_model
            else Cloud.fit(embeddings)
        )
        self.validation = Validation(task, predictions, task.score(predictions, examples), cloud)
        return self.validation.metrics.values

    def predict_rows(
        self, examples: Sequence[Example], embeddings: list[Floats32]
    ) -> list[Prediction]:
        """Each worker predicts its share; where a forward pass is a call in common, all predict
        all, and the first one counts."""
        engine = self._engine(self.chosen.actual, embeddings)
        if self.loop.strategy.shards_model:
            return distributed.shared(self.task.predict(engine, examples))
        by_id = {
            prediction.row_id: prediction
            for prediction in distributed.gathered(
                self.task.predict(engine, distributed.share(examples))
            )
        }
        return [by_id[example.id] for example in examples]

    def _report(self, evaluation: Evaluation) -> None:
        strategy, is_first = self.loop.strategy, distributed.rank() == 0
        assert self.validation is not None
        manifest = (
            self._manifest(evaluation, self.validation)
            if is_first or strategy.shards_model
            else None
        )  # it asks the model its probe
        with strategy.whole():
            if is_first:
                assert manifest is not None
                self._keep(evaluation, self.validation, manifest)
        self.report(evaluation)

    def _keep(self, evaluation: Evaluation, validation: Validation, manifest: Manifest) -> None:
        folder = self._checkpoint_folder(self.slot.step)
        shutil.rmtree(
            folder, ignore_errors=True
        )  # left by a process that died before it could store its state
        with files.room_for(self.folder):
            checkpoint.save(
                folder, lambda filling: self._fill(filling, evaluation, validation), manifest
            )
            files.write(self.folder / HISTORY, dump_history(self.slot.history))

    def _fill(self, folder: Path, evaluation: Evaluation, validation: Validation) -> None:
        save(self.built, folder)
        kept = tasks.without_texts(
            validation.task, validation.predictions, self.material.validation
        )
        lines = (json.dumps(asdict(prediction), ensure_ascii=False) for prediction in kept)
        (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if validation.cloud:
            write_cloud(folder, validation.cloud)
        if self.material.train_rows:
            shutil.copyfile(self.material.train_rows, folder / TRAIN_ROWS)
        metrics = {
            "split": "validation",
            **validation.metrics.as_dict(),
            "train_loss": evaluation.train_loss,
        }
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
        (folder / "audit.json").write_text(
            json.dumps(self.material.audit, indent=1, ensure_ascii=False), encoding="utf-8"
        )

    def _manifest(self, evaluation: Evaluation, validation: Validation) -> Manifest:
        base = self.material.base
        return Manifest(
            task=TaskRecord(
                options=validation.task.options.model_dump(mode="json"),
                state=validation.task.state(),
            ),
            base=BaseRecord(
                source=base.source,
                revision=base.revision,
                weight_hash=base.weight_hash,
                family=self.built.family.name,
                note=base.note,
            ),
            trial=public_settings(self.config),
            data_fingerprint=self.material.data_fingerprint,
            split_fingerprint=self.material.split_fingerprint,
            cursor={"epoch": evaluation.epoch, "step": evaluation.step},
            metrics=evaluation.metrics,
            precision=self.chosen,
            seed=self.config.seed,
            versions=checkpoint.versions(),
            git_commit=checkpoint.git_commit(),
            probe=make_probe(validation.task, self._engine("fp32")),
        )

    def _checkpoint_folder(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step:06d}"

    def _store_state(self) -> None:
        """The state of a resume: read only from this trial's own folder, never published."""
        state = self.loop.strategy.state()
        if distributed.rank() > 0:
            return
        # The one from before the evaluation of a step stays until that after it is whole, and is in
        # front of it by name.
        target = (
            self.folder
            / "state"
            / f"step-{self.slot.step:06d}{'-evaluated' if self.slot.is_evaluated else ''}"
        )
        shutil.rmtree(target, ignore_errors=True)
        with files.room_for(self.folder), files.new_folder(target) as folder:
            with (folder / STATE).open(
                "wb"
            ) as file:  # not by its path: torch would hide why a write failed
                torch.save(state, file)
            (folder / "precision.json").write_text(self.chosen.model_dump_json())
        for old in (self.folder / "state").glob("step-*"):
            if old != target:
                shutil.rmtree(old)
        self._forget_checkpoints()
        if self.slot.is_evaluated and self.stop:
            self.stop.open()

    def _forget_checkpoints(self) -> None:
        """Only once the state is stored: a process that goes on from an older one may need what was
        the best then."""
        stored = sorted((self.folder / "checkpoints").glob("step-*"))
        keep = {
            self._checkpoint_folder(self.slot.stopper.best_step),
            *stored[-self.config.train.keep_checkpoints :],
        }
        for old in stored:
            if old not in keep:
                shutil.rmtree(old)

    def _latest(self, kind: str) -> Path | None:
        return max((self.folder / kind).glob("step-*"), default=None)


def _read_state(path: Path) -> dict[str, Any]:
    stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if "slots" in stored:  # as an earlier medray stored it
        stored["slot"] = stored.pop("slots")["default"]
    return stored
