"""Every mistake of a study that is known before a weight is loaded or a GPU requested, all at
once."""

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import util
from pathlib import Path

from medray import plugins
from medray.config.addresses import has_reference, resolved
from medray.config.study import BaseModelConfig, StudyConfig, TrialConfig
from medray.data import dataset as datasets
from medray.data.formats.base import protocol as formats
from medray.errors import ArtifactError, ConfigError, MedrayError, redaction
from medray.models import quantization, sources
from medray.models.architecture import check_targets, num_adapter_weights
from medray.storage import files
from medray.storage.store import open_store
from medray.study import run, search
from medray.study.run import latest, study_dir
from medray.tasks.base import protocol as tasks
from medray.tasks.base.protocol import needs_of

log = logging.getLogger(__name__)
_WEIGHT_BYTES = 4  # as stored: adapters train in fp32
_STATE_FIGURES = 3  # the weight, and Adam's two figures for it
_MINIMUM_BYTES = 50_000_000  # predictions, curves, logs, rows in tokens


def check(study: StudyConfig, *, resume: bool = False, with_data: bool = False) -> None:
    """Raise one ConfigError that lists every mistake; `with_data` reads the rows too, as a study
    does when it starts."""
    mistakes = [*formats.check(study.data.format), *_storage(study), *_references(study)]
    try:
        tasks.task_options(study.task).samples()
    except ConfigError as err:
        mistakes.append(str(err))
    if study.data.corrections and not Path(study.data.corrections).is_file():
        mistakes.append(f"data.corrections: there is no file {study.data.corrections}")
    if study.mlflow and util.find_spec("mlflow") is None:
        mistakes.append(
            "mlflow: MLflow is not installed; pip install 'medray[mlflow]', or take the section out"
        )
    for base in study.base_models:
        mistakes += [f"base model {base.source}: {sentence}" for sentence in _base(study, base)]
    if not mistakes:  # sizes are known of a study that is right
        mistakes = [*_disk(study, resume), *(_data(study) if with_data else [])]
    if mistakes:
        listed = "\n".join(f"  {sentence}" for sentence in mistakes)
        raise ConfigError(
            f"study {study.name}, {len(mistakes)} "
            f"mistake{'s' if len(mistakes) > 1 else ''}:\n{listed}"
        )


def _references(study: StudyConfig) -> list[str]:
    """What is wrong with secrets that are named, and with those that trials would miss; of others
    that are written in the study, a warning."""
    mistakes = []
    for setting, kind in redaction.find(study.model_dump(mode="json")):
        if not setting.startswith(
            ("data.", "mlflow.")
        ):  # what a trial is given, and a release keeps
            mistakes.append(
                f"{setting}: holds what looks like a key or password ({kind}), which is never "
                "stored; write it in other words"
            )
            continue
        log.warning(
            "%s: holds %s, which is used and not stored: --resume needs it again; name it "
            "instead: ${env:NAME} or ${file:PATH}",
            setting,
            kind,
        )
    for setting, value in run.leaves(study.model_dump(mode="json")):
        if (
            has_reference(str(value))
            and not setting.startswith("data.format.")
            and setting != "mlflow.tracking_uri"
        ):
            mistakes.append(
                f"{setting}: {value}: a secret is named in data.format and mlflow.tracking_uri "
                "alone; write the value itself"
            )
    if study.mlflow:
        try:
            with resolved(study.mlflow.tracking_uri):
                pass
        except ConfigError as err:
            mistakes.append(f"mlflow.tracking_uri: {err}")
    return mistakes


def _data(study: StudyConfig) -> list[str]:
    """What is wrong with the rows: what a reader refuses, limits that are too small for the labels,
    labels that do not fit the task."""
    mistakes = []
    for trial in _trials(study):
        try:
            dataset = datasets.load(trial.data, tasks.task_options(trial.task).bring)
            tasks.fit(trial.task, dataset.label_sets(), dataset.train)
        except MedrayError as err:
            mistakes.append(str(err))
    return list(dict.fromkeys(mistakes))


def _trials(study: StudyConfig) -> list[TrialConfig]:
    """One per data and task that trials of the study have, with every fold that is pooled."""
    trials = []
    for base in study.base_models:
        axes = [
            (path, axis)
            for path, axis in study.space(base).items()
            if path.startswith(("data.", "task."))
        ]
        trials += [
            study.trial(base),
            *(study.trial(base, {path: value}) for path, axis in axes for value in axis.extremes),
        ]
    if study.data.split.is_pooled:
        trials = [
            _of_fold(trial, fold) for trial in trials for fold in range(study.data.split.folds)
        ]
    return list(
        {
            f"{trial.data.model_dump_json()}{trial.task.model_dump_json()}": trial
            for trial in trials
        }.values()
    )


def _of_fold(trial: TrialConfig, fold: int) -> TrialConfig:
    split = trial.data.split.model_copy(update={"fold": fold})
    return trial.model_copy(update={"data": trial.data.model_copy(update={"split": split})})


def _storage(study: StudyConfig) -> list[str]:
    if "://" in study.storage_path.removeprefix("file://"):
        return [
            (
                f"storage_path: {study.storage_path}: runs need a folder that every node sees; "
                "releases may lie elsewhere: publish.storage_path"
            )
        ]
    if study.publish and study.publish.storage_path:
        try:
            open_store(study.publish.storage_path).check()
        except MedrayError as err:
            return [f"publish.storage_path: {err}"]
    folder = _existing(study)
    if folder.is_dir() and os.access(folder, os.W_OK):
        return []
    return [f"storage_path: {folder} is not a folder that can be written to"]


def _existing(study: StudyConfig) -> Path:
    """The study's folder, or what there is of the way to it."""
    folder = study_dir(study)
    while not folder.exists():
        folder = folder.parent
    return folder


def _disk(study: StudyConfig, resume: bool) -> list[str]:
    folder = _existing(study)
    already = (
        sum(path.stat().st_size for path in files.files(latest(folder).folder / "trials"))
        if resume
        else 0
    )
    free, needed = shutil.disk_usage(folder).free, num_bytes(study) - already
    if needed <= free:
        return []
    return [
        f"storage_path: {folder} has {_show_bytes(free)} free, and this study may write "
        f"{_show_bytes(needed)}; allowed: fewer trials, a smaller"
        " lora.r or train.keep_checkpoints, another storage_path, or `medray gc` to remove what "
        "earlier studies left"
    ]


def num_bytes(study: StudyConfig) -> int:
    """What a study may write at most: every trial's best checkpoint, the latest ones, one being
    written, and the state for a resume."""
    num_repeats = search.num_repeats(study)
    return _MINIMUM_BYTES + sum(
        (search.num_trials(study, base) + num_repeats) * num_trial_bytes(study, base)
        for base in study.base_models
    )


def num_trial_bytes(study: StudyConfig, base: BaseModelConfig) -> int:
    """By the size of the largest adapter of a base model's trials."""
    config = study.trial(base)
    axis = study.space(base).get("lora.r")
    lora = config.lora.model_copy(update={"r": max(axis.extremes)} if axis else {})
    folder = sources.config_dir(config.model.source, config.model.revision)
    num_weights = num_adapter_weights(folder, lora, needs_of(config.task))
    tokenizer_bytes = sum(path.stat().st_size for path in folder.glob("*token*") if path.is_file())
    num_checkpoints = config.train.keep_checkpoints + 2
    return (
        num_checkpoints * (_WEIGHT_BYTES * num_weights + tokenizer_bytes)
        + 2 * _STATE_FIGURES * _WEIGHT_BYTES * num_weights
    )


def _show_bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _base(study: StudyConfig, base: BaseModelConfig) -> list[str]:
    config = study.trial(base)
    axis = study.space(base).get("model.quantization")
    searched = (
        [study.trial(base, {"model.quantization": value}) for value in axis.extremes]
        if axis
        else []
    )
    mistakes = list(
        dict.fromkeys(
            sentence
            for trial in [config, *searched]
            for sentence in quantization.check(trial.model)
        )
    )
    mistakes += plugins.find("training.strategies", config.train.strategy).lacking()
    try:
        check_targets(
            sources.config_dir(config.model.source, config.model.revision),
            config.lora,
            needs_of(config.task),
        )
    except (ArtifactError, ConfigError) as err:
        mistakes.append(str(err))
    return mistakes


_PATIENCE_S = 10.0  # a file server may show a new file to others only after a while
_START_S = 120.0


def check_shared(folder: Path, look: Callable[[Path], Mapping[str, bool]] | None = None) -> None:
    """Raise where a node does not see a file that is written here. `look` tells of each other node
    by its address."""
    with tempfile.NamedTemporaryFile(
        dir=folder, prefix=".seen-by-all-", suffix=f"-{socket.gethostname()}"
    ) as file:
        blind = sorted(
            address for address, sees in (look or _others)(Path(file.name)).items() if not sees
        )
    if blind:
        raise ConfigError(
            f"storage_path: {folder} is a folder of one node: {', '.join(blind)} cannot see what "
            "is written to it; "
            "set storage_path to a folder that every node mounts (NFS, EFS, Filestore, a "
            "ReadWriteMany volume)"
        )


def sees(path: Path, patience_s: float = _PATIENCE_S) -> bool:
    end = time.monotonic() + patience_s
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _others(path: Path) -> dict[str, bool]:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    calls = {}
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] != here:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            calls[node["NodeManagerAddress"]] = (
                ray.remote(sees).options(num_cpus=0, scheduling_strategy=there).remote(path)
            )
    visible = {}
    for address, call in calls.items():
        try:
            visible[address] = bool(ray.get(call, timeout=_START_S))
        except RayError as err:
            raise ConfigError(
                f"node {address} cannot run what this study would run on it: "
                f"{str(err).strip().splitlines()[-1]}"
            ) from None
    return visible
