"""Checkpoints without a trial: a base model before training, and a PEFT adapter from other
software."""

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
from medray.config.study import StudyConfig
from medray.config.trial import ModelConfig, TrialConfig
from medray.data import dataset as datasets
from medray.data.dataset import Dataset
from medray.engines.transformers import TransformersEngine
from medray.errors import ArtifactError, ConfigError, DataError, suggest
from medray.models import sources
from medray.models.adapter import CONFIG, WEIGHTS
from medray.models.build import BuiltModel, build, load_tokenizer
from medray.registry.predictions import fit_calibration
from medray.registry.probe import make_probe
from medray.registry.registry import Registry
from medray.registry.release import Release
from medray.storage import checkpoint
from medray.storage.checkpoint import BaseRecord, Manifest, PrecisionRecord, TaskRecord
from medray.tasks.base import protocol as tasks
from medray.tasks.base.encoders import for_base
from medray.tasks.base.protocol import Task
from medray.types import Example, Prediction

log = logging.getLogger(__name__)


class ImportConfig(Section):
    """The settings that a PEFT folder does not contain."""

    model: ModelConfig
    task: Annotated[PluginOptions, Plugin("tasks")]
    labels: tuple[str, ...] = Field(
        (), description="for a task with labels, in the order of the head's outputs"
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
        """Return the task with its labels in the order of the head's outputs."""
        examples = [Example(label, "", (label,)) for label in self.labels]
        try:
            task = tasks.fit(self.task, examples)
        except DataError as err:
            raise ConfigError(
                f"labels: task {self.task.name!r} needs them: {err}; give labels=[first,second] in "
                "the "
                "order of the head's outputs"
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


def publish_base_model(
    registry: Registry, study: StudyConfig, source: str | None, name: str, *, notes: str = ""
) -> Release:
    """Publish a base model of a study before training, with its metrics on validation rows and a
    calibration."""
    bases = {base.source: base for base in study.base_models}
    if source is None and len(bases) > 1:
        raise ConfigError(
            f"study {study.name}: has {len(bases)} base models; choose one by --base: "
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
        task, predictions = save_base_model(study.trial(bases[source]), dataset, folder)
        calibration = fit_calibration(task, predictions, dataset.validation, study.calibration)
        return registry.publish(folder, name, calibration=calibration, notes=notes)


def import_adapter(folder: Path, config: ImportConfig, target: Path) -> Manifest:
    """Build a checkpoint from an ordinary PEFT folder (`checkpoint-300`). Check that adapter and
    head fit the base."""
    if not (folder / CONFIG).is_file():
        raise ArtifactError(f"{folder}: has no {CONFIG}; name the folder of a PEFT adapter")
    if not (folder / WEIGHTS).is_file():
        raise ArtifactError(
            f"{folder}: has no {WEIGHTS}; save it with safe_serialization=True, since medray reads "
            "no pickles"
        )
    base = sources.resolve(config.model.source, config.model.revision)
    task = for_base(config.fit_task(), config.model.source, config.model.revision)
    own_base = json.loads((folder / CONFIG).read_bytes()).get("base_model_name_or_path")
    if own_base and own_base != base.source:
        log.warning(
            "%s: names the base %s; the import uses %s, as in its settings",
            folder,
            own_base,
            base.source,
        )
    if "max_length" not in config.task.model_fields_set:
        log.warning(
            "%s: does not name the maximum length of its training; the release uses %d tokens, so "
            "answers may differ;"
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
        model = build(base, task.head(), config.model, None, adapter_dir=parts)
        manifest = _manifest(model, task, {"model": config.model.model_dump(mode="json")})

        def fill(filling: Path) -> None:
            copytree(parts, filling, dirs_exist_ok=True)

        return checkpoint.save(target, fill, manifest)


def fit_base_model_task(config: TrialConfig, dataset: Dataset) -> Task:
    """Fit the task of a trial for its base model before training."""
    task = for_base(
        tasks.fit(config.task, dataset.label_sets(), dataset.train),
        config.model.source,
        config.model.revision,
    )
    if task.head() is not None:
        raise ConfigError(
            f"{config.model.source}: task {config.task.name!r} adds a new head, which predicts "
            "nothing useful before training; train it by a study"
        )
    return task


def save_base_model(
    config: TrialConfig, dataset: Dataset, target: Path
) -> tuple[Task, list[Prediction]]:
    """Save a base model before training as a checkpoint. Return its task and its predictions of
    validation rows."""
    task = fit_base_model_task(config, dataset)
    model = build(
        sources.resolve(config.model.source, config.model.revision), None, config.model, None
    )
    engine = TransformersEngine(model, precision="fp32", token_budget=config.train.token_budget)
    predictions = task.predict(engine, dataset.validation)
    metrics = task.score(predictions, dataset.validation)
    manifest = _manifest(model, task, public_settings(config)).model_copy(
        update={
            "is_untuned": True,
            "data_fingerprint": dataset.fingerprint,
            "split_fingerprint": dataset.split_fingerprint,
            "metrics": metrics.values,
        }
    )

    def fill(filling: Path) -> None:
        model.tokenizer.save_pretrained(str(filling / "tokenizer"))
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


def _manifest(model: BuiltModel, task: Task, trial: dict[str, Any]) -> Manifest:
    base = model.base
    engine = TransformersEngine(model, precision="fp32", token_budget=1 << 12)
    return Manifest(
        task=TaskRecord(options=task.options.model_dump(mode="json"), state=task.state()),
        base=BaseRecord(
            source=base.source,
            revision=base.revision,
            weight_hash=base.weight_hash,
            family=model.family.name,
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
