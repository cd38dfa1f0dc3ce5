"""Checks of a study before it loads a weight or requests a GPU. They report all mistakes at
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
from medray.config.addresses import has_reference, resolve
from medray.config.study import BaseModelConfig, StudyConfig
from medray.config.trial import TrialConfig
from medray.data import dataset as datasets
from medray.data.formats.base import protocol as formats
from medray.errors import ArtifactError, ConfigError, MedrayError, nearest_file, redaction
from medray.models import quantization, sources
from medray.models.architecture import check_targets, num_adapter_weights
from medray.storage import files
from medray.storage.store import open_store
from medray.study import guesses, search
from medray.study import resume as resumes
from medray.study.run import latest, study_dir
from medray.tasks.base import protocol as tasks
from medray.tasks.base.protocol import needs_of

log = logging.getLogger(__name__)
_WEIGHT_BYTES = 4  # as stored: adapters train in fp32
_STATE_NUMBERS = 3  # the weight and its two moments in Adam
_MINIMUM_BYTES = 50_000_000  # predictions, curves, logs, prepared rows


def check(study: StudyConfig, *, resume: bool = False, with_data: bool = False) -> None:
    """Raise one ConfigError that lists each mistake. `with_data` also reads the rows, as the start
    of a study does."""
    mistakes = _inputs(study)
    if with_data and not mistakes:
        mistakes = _data(study)
    mistakes += [*_storage(study), *_references(study)]
    mistakes += [] if resume else guesses.check(study)
    if study.mlflow and util.find_spec("mlflow") is None:
        mistakes.append(
            "mlflow: MLflow is not installed; pip install 'medray[mlflow]', or remove the section"
        )
    for base in study.base_models:
        mistakes += [f"base model {base.source}: {sentence}" for sentence in _base(study, base)]
    if not mistakes:  # it needs a valid study
        mistakes = _disk(study, resume)
    if mistakes:
        lines = "\n".join(f"  {sentence}" for sentence in mistakes)
        raise ConfigError(
            f"study {study.name}, {len(mistakes)} "
            f"mistake{'s' if len(mistakes) > 1 else ''}:\n{lines}"
        )


def _inputs(study: StudyConfig) -> list[str]:
    """Return mistakes about the files that a study reads."""
    mistakes = list(formats.check(study.data.format))
    try:
        tasks.task_options(study.task).samples()
    except ConfigError as err:
        mistakes.append(str(err))
    if (path := study.data.corrections) and not Path(path).is_file():
        mistakes.append(f"data.corrections: {path}: no such file{nearest_file(path)}")
    return mistakes


def _references(study: StudyConfig) -> list[str]:
    """Return mistakes about secrets: wrong references, and secrets in settings of a trial. Warn of
    other secrets in the study."""
    mistakes = []
    for setting, kind in redaction.find(study.model_dump(mode="json")):
        # All other settings reach the trial and its release.
        if not setting.startswith(("data.", "mlflow.")):
            mistakes.append(
                f"{setting}: looks like a key or password ({kind}), which is never stored; change "
                "the "
                "value"
            )
            continue
        log.warning(
            "%s: contains %s, which is used but not stored, so --resume needs it again; refer to "
            "it as ${env:NAME} or ${file:PATH}",
            setting,
            kind,
        )
    for setting, value in resumes.leaves(study.model_dump(mode="json")):
        if (
            has_reference(str(value))
            and not setting.startswith("data.format.")
            and setting not in ("mlflow.tracking_uri", "references")
        ):
            mistakes.append(
                f"{setting}: {value}: only data.format, mlflow.tracking_uri and the token of a "
                "reference may refer to a secret; write the value itself"
            )
    addresses = {"mlflow.tracking_uri": study.mlflow.tracking_uri} if study.mlflow else {}
    addresses |= {
        f"references.{place}.token": reference.token
        for place, reference in enumerate(study.references)
        if reference.token
    }
    for setting, address in addresses.items():
        try:
            with resolve(address):
                pass
        except ConfigError as err:
            mistakes.append(f"{setting}: {err}")
    return mistakes


def _data(study: StudyConfig) -> list[str]:
    """Return mistakes in the rows: reading errors, limits too small for the labels, and labels that
    do not fit the task."""
    mistakes = []
    for trial in _trials(study):
        try:
            dataset = datasets.load(trial.data, tasks.task_options(trial.task).bring)
            tasks.fit(trial.task, dataset.label_sets(), dataset.train)
        except MedrayError as err:
            mistakes.append(str(err))
    return list(dict.fromkeys(mistakes))


def _trials(study: StudyConfig) -> list[TrialConfig]:
    """Return one trial per combination of data and task in the study, and per pooled fold."""
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
                f"storage_path: {study.storage_path}: runs need a folder that each node can read; "
                "set publish.storage_path for releases in an object store"
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
    return [f"storage_path: {folder} is not a writable folder; choose another one"]


def _existing(study: StudyConfig) -> Path:
    """Return the study's folder, or its nearest parent that exists."""
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
    free, need = shutil.disk_usage(folder).free, num_bytes(study) - already
    if need <= free:
        return []
    return [
        f"storage_path: {folder} has {_show_bytes(free)} free, and this study may write "
        f"{_show_bytes(need)}; use fewer trials, a smaller"
        " lora.r or train.keep_checkpoints, or another storage_path, or remove files of earlier "
        "studies with `medray gc`"
    ]


def num_bytes(study: StudyConfig) -> int:
    """Return the most bytes that a study may write: per trial the best checkpoint, the latest ones,
    one in progress, and the state for a resume."""
    num_repeats = search.num_repeats(study)
    return _MINIMUM_BYTES + sum(
        (search.num_trials(study, base) + num_repeats) * num_trial_bytes(study, base)
        for base in study.base_models
    )


def num_trial_bytes(study: StudyConfig, base: BaseModelConfig) -> int:
    """Return the most bytes of one trial, from the largest adapter of a base model's trials."""
    config = study.trial(base)
    axis = study.space(base).get("lora.r")
    lora = config.lora.model_copy(update={"r": max(axis.extremes)} if axis else {})
    folder = sources.config_dir(config.model.source, config.model.revision)
    num_weights = num_adapter_weights(folder, lora, needs_of(config.task))
    tokenizer_bytes = sum(path.stat().st_size for path in folder.glob("*token*") if path.is_file())
    num_checkpoints = config.train.keep_checkpoints + 2
    weight_bytes = _WEIGHT_BYTES * num_weights
    state_bytes = 2 * _STATE_NUMBERS * weight_bytes
    return num_checkpoints * (weight_bytes + tokenizer_bytes) + state_bytes


def _show_bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _base(study: StudyConfig, base: BaseModelConfig) -> list[str]:
    config = study.trial(base)
    axis = study.space(base).get("model.quantization")
    others = (
        [study.trial(base, {"model.quantization": value}) for value in axis.extremes]
        if axis
        else []
    )
    mistakes = list(
        dict.fromkeys(
            sentence for trial in [config, *others] for sentence in quantization.check(trial.model)
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


_PATIENCE_S = 10.0  # a file server may show a new file to other nodes late
_START_S = 120.0


def check_folder_on_nodes(
    folder: Path, look: Callable[[Path], Mapping[str, bool]] | None = None
) -> None:
    """Raise where a node does not see a file that this process writes. `look` returns the view of
    each other node by address."""
    with tempfile.NamedTemporaryFile(
        dir=folder, prefix=".seen-by-all-", suffix=f"-{socket.gethostname()}"
    ) as file:
        blind = sorted(
            address for address, sees in (look or _others)(Path(file.name)).items() if not sees
        )
    if blind:
        raise ConfigError(
            f"storage_path: {folder} is a folder of one node: {', '.join(blind)} cannot see its "
            "files; "
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
                f"node {address} cannot run a task of this study: "
                f"{str(err).strip().splitlines()[-1]}"
            ) from None
    return visible
