"""Checkpoints that no trial made: an untuned base model, and a PEFT folder that other software
trained."""

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import copyfile, copytree
from typing import Annotated, Any

from pydantic import Field

from medray.config.files import parse_value, put
from medray.config.load import public_settings
from medray.config.schema import Plugin, PluginOptions, Section, validate
from medray.config.study import ModelConfig, StudyConfig, TrialConfig
from medray.data import dataset as datasets
from medray.data.dataset import Dataset
from medray.engines.transformers import TransformersEngine
from medray.errors import ArtifactError, ConfigError, DataError, suggest
from medray.models import sources
from medray.models.adapter import CONFIG, WEIGHTS
from medray.models.build import BuiltModel, build, load_tokenizer
from medray.registry.loading import make_probe
from medray.registry.predictions import fit_calibration
from medray.registry.registry import Registry
from medray.registry.release import Release
from medray.storage import checkpoint
from medray.storage.checkpoint import BaseRecord, Manifest, PrecisionRecord, TaskRecord
from medray.tasks.base import protocol as tasks
from medray.tasks.base.protocol import Task
from medray.types import Example, Prediction

log = logging.getLogger(__name__)


class ImportConfig(Section):
    """The settings that a PEFT folder does not contain."""

    model: ModelConfig
    task: Annotated[PluginOptions, Plugin("tasks")]
    labels: tuple[str, ...] = Field(
        (), description="of a task that has labels, in the order of the head's outputs"
    )

    @classmethod
    def load(cls, settings: Sequence[str]) -> "ImportConfig":
        raw: dict[str, Any] = {}
        for setting in settings:
            key, sign, value = setting.partition("=")
            if not sign or not key:
                raise ConfigError(
                    f"{setting!r} is not of the form key=value, such as task.name=classification"
                )
            put(raw, key, parse_value(setting, value), where=setting)
        return validate(cls, raw, where="the settings of an import")

    def fit_task(self) -> Task:
        """The task with its labels in the order of the head's outputs."""
        examples = [Example(label, "", (label,)) for label in self.labels]
        try:
            task = tasks.fit(self.task, examples)
        except DataError as err:
            raise ConfigError(
                f"labels: task {self.task.name!r} needs them, as labels=[first,second] in the "
                f"order of the head's outputs: {err}"
            ) from None
        if sorted(task.labels) != sorted(self.labels):
            raise ConfigError(
                f"labels {', '.join(self.labels)}: task {self.task.name!r} has "
                f"{', '.join(task.labels) or 'none'}"
            )
        return (
            tasks.restore(
                self.task.model_dump(mode="json"), {**task.state(), "labels": list(self.labels)}
            )
            if self.labels
            else task
        )


def publish_adapter(
    registry: Registry, folder: Path, name: str, config: ImportConfig, *, notes: str = ""
) -> Release:
    with tempfile.TemporaryDirectory() as place:
        import_adapter(folder, config, Path(place) / "checkpoint")
        return registry.publish(Path(place) / "checkpoint", name, notes=notes)


def publish_untuned(
    registry: Registry, study: StudyConfig, source: str | None, name: str, *, notes: str = ""
) -> Release:
    """Publish an untuned base model of a study, with its figures on validation rows and a
    calibration fitted on them."""
    bases = {base.source: base for base in study.base_models}
    if source is None and len(bases) > 1:
        raise ConfigError(
            f"study {study.name} has {len(bases)} base models: say with --base which one: "
            f"{', '.join(bases)}"
        )
    source = next(iter(bases)) if source is None else source
    if source not in bases:
        raise ConfigError(
            f"base model {source!r} is not in study {study.name}; {suggest(source, bases)}"
        )
    dataset = datasets.load(study.data, tasks.task_options(study.task).bring)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "checkpoint"
        task, predictions = save_untuned(study.trial(bases[source]), dataset, folder)
        calibration = fit_calibration(task, predictions, dataset.validation, study.calibration)
        return registry.publish(folder, name, calibration=calibration, notes=notes)


def import_adapter(folder: Path, config: ImportConfig, target: Path) -> Manifest:
    """Make a checkpoint of an ordinary PEFT folder (`checkpoint-300`). Adapter and head are
    compared with what the base needs."""
    if not (folder / CONFIG).is_file():
        raise ArtifactError(f"{folder}: not the folder of a PEFT adapter: it has no {CONFIG}")
    if not (folder / WEIGHTS).is_file():
        raise ArtifactError(
            f"{folder}: has no {WEIGHTS}: save it anew with safe_serialization=True; pickles are "
            "not read"
        )
    task, base = config.fit_task(), sources.resolve(config.model.source, config.model.revision)
    own_base = json.loads((folder / CONFIG).read_bytes()).get("base_model_name_or_path")
    if own_base and own_base != base.source:
        log.warning(
            "%s: says that it was trained on %s; it is put on %s, as asked",
            folder,
            own_base,
            base.source,
        )
    if "max_length" not in config.task.model_fields_set:
        log.warning(
            "%s: does not say where its training cut long texts; the release cuts them at %d "
            "tokens, so answers may differ;"
            " give the training's own length as task.max_length=N",
            folder,
            task.options.max_length,
        )
    tokenizer = load_tokenizer(folder if any(folder.glob("tokenizer*")) else base.path)
    with tempfile.TemporaryDirectory() as name:
        parts = Path(name)
        for part in (WEIGHTS, CONFIG):
            copyfile(folder / part, parts / part)
        tokenizer.save_pretrained(str(parts / "tokenizer"))
        built = build(base, task.head(), config.model, None, adapter_dir=parts)
        manifest = _manifest(built, task, {"model": config.model.model_dump(mode="json")})

        def fill(filling: Path) -> None:
            copytree(parts, filling, dirs_exist_ok=True)

        return checkpoint.save(target, fill, manifest)


def fit_untuned_task(config: TrialConfig, dataset: Dataset) -> Task:
    """The task of a trial, for its base model before training."""
    task = tasks.fit(config.task, dataset.label_sets(), dataset.train)
    if task.head() is not None:
        raise ConfigError(
            f"{config.model.source}: task {config.task.name!r} puts a fresh head on it, which "
            "knows nothing before training"
        )
    return task


def save_untuned(
    config: TrialConfig, dataset: Dataset, target: Path
) -> tuple[Task, list[Prediction]]:
    """Make a checkpoint of a study's untuned base model, and return its predictions of the
    validation rows."""
    task = fit_untuned_task(config, dataset)
    built = build(
        sources.resolve(config.model.source, config.model.revision), None, config.model, None
    )
    engine = TransformersEngine(built, precision="fp32", token_budget=config.train.token_budget)
    predictions = task.predict(engine, dataset.validation)
    metrics = task.score(predictions, dataset.validation)
    manifest = _manifest(built, task, public_settings(config)).model_copy(
        update={
            "is_untuned": True,
            "data_fingerprint": dataset.fingerprint,
            "split_fingerprint": dataset.split_fingerprint,
            "metrics": metrics.values,
        }
    )

    def fill(filling: Path) -> None:
        built.tokenizer.save_pretrained(str(filling / "tokenizer"))
        lines = (
            json.dumps(asdict(prediction), ensure_ascii=False)
            for prediction in tasks.without_texts(task, predictions, dataset.validation)
        )
        (filling / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (filling / "metrics.json").write_text(
            json.dumps({"split": "validation", **metrics.as_dict()}, indent=1)
        )

    checkpoint.save(target, fill, manifest)
    return task, predictions


def _manifest(built: BuiltModel, task: Task, trial: dict[str, Any]) -> Manifest:
    base = built.base
    engine = TransformersEngine(built, precision="fp32", token_budget=1 << 12)
    return Manifest(
        task=TaskRecord(options=task.options.model_dump(mode="json"), state=task.state()),
        base=BaseRecord(
            source=base.source,
            revision=base.revision,
            weight_hash=base.weight_hash,
            family=built.family.name,
            note=base.note,
        ),
        trial=trial,
        data_fingerprint=None,
        split_fingerprint=None,
        cursor={"epoch": 0, "step": 0},
        metrics={},
        precision=PrecisionRecord(actual="fp32", setting="fp32"),
        seed=0,
        versions=checkpoint.versions(),
        git_commit=checkpoint.git_commit(),
        probe=make_probe(task, engine),
    )
