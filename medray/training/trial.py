"""Runs one trial in this process, from the base model to its checkpoints, or resumes it.

It reports through a callable and knows neither Ray nor the study around it.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from medray import plugins
from medray.config.trial import Precision, TrialConfig
from medray.engines.transformers import TransformersEngine
from medray.errors import TrialError
from medray.evaluation.metrics import higher_is_better
from medray.evaluation.novelty import Cloud
from medray.models import frozen_weights
from medray.models.batch import evaluation_tokens
from medray.models.build import BuiltModel, build
from medray.models.device import reserved_device
from medray.models.precision import choose as choose_precision
from medray.models.precision import default_precision
from medray.records import Evaluation
from medray.registry.probe import make_probe
from medray.storage import checkpoint
from medray.storage.checkpoint import PrecisionRecord
from medray.tasks.base.protocol import Calibrated, RowPredictor
from medray.training import distributed, trial_folder
from medray.training.loop import Loop
from medray.training.material import Material
from medray.training.plan import typical_batch
from medray.training.slot import Slot, Stopper, open_slot
from medray.training.status import StatusFile
from medray.training.stop import StopFiles
from medray.training.strategies.base import Strategy
from medray.training.trial_folder import TrialFolder, TrialResult, Validation
from medray.types import Example, Floats32, Prediction

log = logging.getLogger(__name__)
# enough to measure the ratio of two precisions, and few enough to take about a second
_TIMED_TOKENS = 2048
_EARLY_ROWS = 500  # of validation, for an evaluation inside the first epoch


class Trial:
    def __init__(
        self,
        config: TrialConfig,
        material: Material,
        folder: Path,
        report: Callable[[Evaluation], None],
        *,
        early_rungs: Sequence[float] = (),
    ) -> None:
        self.config, self.material, self.folder, self.report = config, material, folder, report
        self.early_rungs = early_rungs
        self.device = reserved_device(config.resources.gpus_per_worker)
        self.status = StatusFile(folder if distributed.rank() == 0 else None)
        self.status.stage("loading the base model")
        if config.resources.cpus_per_worker:
            torch.set_num_threads(config.resources.cpus_per_worker)
        self.task = material.task
        self.rows = material.prepared.split("train")
        self.validation_rows = material.prepared.split("validation")
        self.model: BuiltModel = build(
            material.base, self.task.head(), config.model, config.lora, seed=config.seed
        )
        # counted before the model is sharded
        self.num_parameters = self.model.num_parameters
        self.num_trainable = self.model.num_trainable
        log.info(
            "%s: %d of %d parameters train, on %d thread(s)",
            config.model.source,
            self.num_trainable,
            self.num_parameters,
            torch.get_num_threads(),
        )
        frozen_weights.move(
            self.model.network,
            self.device,
            default_precision(config.model.precision, self.device),
            moves_weights=config.train.zero_stage != 3,  # shards need not fit on one device
        )
        self.slot = self._open_slot()
        self.stop = StopFiles(folder) if distributed.rank() == 0 else None
        self.validation: Validation | None = None
        self.precision = PrecisionRecord(actual="fp32", setting=config.model.precision)

    @property
    def files(self) -> TrialFolder:
        return TrialFolder(self.folder)

    def run(self, *, resume: bool = False) -> TrialResult:
        """Train to the end; with `resume`, from the last stored state where there is one.

        Raises `TrialInterrupt` where the study requests it."""
        if self.stop is None:
            return self._run(resume)
        self.stop.open()
        try:
            return self._run(resume)
        finally:
            self.stop.close()

    def _run(self, resume: bool) -> TrialResult:
        self.loop = self.make_loop()
        state: Path | None = distributed.broadcast(self.files.latest_state())
        if resume and state:
            values, self.precision = trial_folder.read_state(state)
            self._start(values)
            log.info("resumed after step %d of %d", self.slot.step, self.slot.num_steps)
        else:
            if distributed.rank() == 0:
                self.files.clear()
                self._choose_precision()
            self.precision = distributed.broadcast(self.precision)
            self._start(None)
        self.loop.run()
        self.status.clear()
        stopper = self.slot.stopper
        if stopper.best is None:
            raise TrialError(f"{self.folder}: no evaluation gave a {stopper.metric}")
        best = self.files.checkpoint(stopper.best_step)
        return TrialResult(self.folder, best, self.slot.history, self.precision)

    def _open_slot(self) -> Slot:
        train, metric = self.config.train, self.task.options.metric
        steps_per_epoch = -(-len(self.rows) // train.samples_per_step)
        num_steps = train.max_steps or steps_per_epoch * (train.epochs or 1)
        return open_slot(
            self.model.network,
            self.model.family.head_modules,
            train,
            num_steps=num_steps,
            seed=self.config.seed,
            stopper=Stopper(metric, higher_is_better(metric), train.patience),
        )

    def make_loop(self) -> Loop:
        """Return a loop in fp32, before the precision is chosen."""
        return Loop(
            model=self.model.network,
            rows=self.rows,
            row_loss=self.task.loss(self.rows.targets(), self.rows.ids),
            slot=self.slot,
            strategy=self.make_strategy("fp32"),
            train=self.config.train,
            pad_id=self.model.tokenizer.pad_token_id,
            precision="fp32",
            device=self.device,
            evaluate=self._evaluate,
            report=self._report,
            store_state=self._store_state,
            on_step=self._show_step,
            is_interrupted=self.stop.is_requested if self.stop else lambda: False,
            early_rungs=self.early_rungs,
            padding_side=self.model.family.padding_side_train,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    def make_strategy(self, precision: Precision) -> Strategy:
        module = plugins.find("training.strategies", self.config.train.strategy)
        strategy: Strategy = module.Strategy(
            self.slot, self.config.train, precision=precision, device=self.device
        )
        return strategy

    def _start(self, state: dict[str, Any] | None) -> None:
        self.loop.precision = self.precision.actual
        if self.precision.actual == "fp32":  # a state of a CPU may go on, on a GPU
            frozen_weights.widen(self.model.network)
        self.loop.strategy = self.make_strategy(self.precision.actual)
        self.loop.model = self.loop.strategy.start(self.model.network, state)

    def _show_step(self, loss: float) -> None:
        slot = self.slot
        self.status.step(
            epoch=slot.cursor[0] + 1,
            step=slot.step,
            num_steps=slot.num_steps,
            loss=loss,
            tokens_per_s=slot.tokens_per_s,
        )

    def _choose_precision(self) -> None:
        self.status.stage(
            "timing precision" if self.config.model.precision == "auto" else "starting"
        )
        train = self.config.train
        batch = typical_batch(
            self.rows.lengths,
            token_budget=min(_TIMED_TOKENS, train.token_budget),
            samples_per_step=train.samples_per_step,
        )
        shape = (len(batch.rows), int(self.rows.lengths[list(batch.rows)].max()))
        self.model.network.train()
        self.precision = choose_precision(
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

    def _engine(
        self, precision: Precision, embeddings: list[Floats32] | None = None
    ) -> TransformersEngine:
        return TransformersEngine(
            self.model,
            precision=precision,
            token_budget=evaluation_tokens(
                self.model.network, self.config.train.token_budget, self.device
            ),
            device=self.device,
            is_sharded=self.loop.strategy.shards_model,
            embeddings=embeddings,
        )

    def _evaluate(self, is_early: bool = False) -> dict[str, float]:
        self.status.stage("evaluating")
        if self.stop:
            # The state is stored. A report may wait for a study that no longer reads it.
            self.stop.close()
        examples = self.material.validation
        if is_early:
            examples = examples[:: -(-len(examples) // _EARLY_ROWS)]
        embeddings: list[Floats32] = []
        predictions = self.predict_rows(examples, embeddings)
        task = self.task
        if isinstance(task, Calibrated):
            task = task.tune(predictions, examples)
            predictions = task.decide(predictions)
        if not self.loop.strategy.shards_model:
            embeddings = distributed.gather(embeddings)
        metrics, cloud = task.score(predictions, examples), Cloud.fit(embeddings)
        self.validation = Validation(task, predictions, metrics, cloud)
        return self.validation.metrics.values

    def predict_rows(
        self, examples: Sequence[Example], embeddings: list[Floats32]
    ) -> list[Prediction]:
        """Predict rows, with a share per worker.

        Where a forward pass is a collective call, every worker predicts all rows, and the first
        worker's predictions count."""
        engine = self._engine(self.precision.actual, embeddings)
        if self.loop.strategy.shards_model:
            return distributed.broadcast(self._predict(engine, examples))
        by_id = {
            prediction.row_id: prediction
            for prediction in distributed.gather(self._predict(engine, distributed.share(examples)))
        }
        return [by_id[example.id] for example in examples]

    def _predict(self, engine: TransformersEngine, examples: Sequence[Example]) -> list[Prediction]:
        if not isinstance(self.task, RowPredictor):
            return self.task.predict(engine, examples)
        rows = self.validation_rows.rows_of(example.id for example in examples)
        return self.task.predict_rows(engine, examples, rows)

    def _report(self, evaluation: Evaluation) -> None:
        strategy, is_first = self.loop.strategy, distributed.rank() == 0
        validation = self.validation
        assert validation is not None
        manifest = None
        if evaluation.is_early:  # it has no checkpoint
            if is_first:
                self.files.write_history(self.slot.history)
            return self.report(evaluation)
        if is_first or strategy.shards_model:  # the probe runs the model
            with frozen_weights.exact(self.model.network):
                probe = make_probe(validation.task, self._engine("fp32"))
            manifest = trial_folder.make_manifest(
                self.config,
                self.model,
                self.material,
                validation,
                evaluation,
                precision=self.precision,
                probe=probe,
            )
        with strategy.whole():
            if is_first:
                assert manifest is not None
                self.files.write_checkpoint(
                    self.slot.step,
                    lambda folder: trial_folder.write_files(
                        folder, self.model, self.material, validation, evaluation
                    ),
                    manifest,
                    self.slot.history,
                )
        self.report(evaluation)

    def _store_state(self) -> None:
        state = self.loop.strategy.state()
        if distributed.rank() > 0:
            return
        slot = self.slot
        self.files.write_state(slot.step, state, self.precision, is_evaluated=slot.is_evaluated)
        self.files.remove_checkpoints(slot.stopper.best_step, self.config.train.keep_checkpoints)
        if slot.is_evaluated and self.stop:
            self.stop.open()
