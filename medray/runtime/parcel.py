"""What of this machine travels to a cluster with a study: the package, the resolved study, and data
files that were requested."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medray.config.files import put
from medray.config.load import load_study
from medray.config.study import StudyConfig
from medray.data.remote import is_remote
from medray.errors import ConfigError, redaction
from medray.storage import checkpoint, files

STUDY = "study.yaml"
DATA_SETTINGS = (  # settings that name files of data
    "data.format.path",
    "data.format.ground_truth",
    "data.corrections",
    "task.sample_prompts",
)


@dataclass(frozen=True)
class Parcel:
    """Which files of this machine are sent with a study."""

    upload_data: bool = False
    max_bytes: int = 100_000_000  # of each file or folder
    hub_token_file: str | None = None  # on the cluster's nodes


def stage(study: StudyConfig, folder: Path, parcel: Parcel) -> int:
    """Fill the folder that is sent, and return its size in bytes."""
    raw = study.model_dump(mode="json")
    mistakes = [
        f"base model {base.source}: {_path_mistake(base.source)}"
        for base in study.base_models
        if _is_local_folder(base.source)
    ]
    mistakes += _stage_data(study, raw, folder, parcel)
    mistakes += [
        f"{setting}: holds what looks like a key or password ({kind}); a study is stored and "
        "printed: name the secret instead, as ${env:NAME} of the head node's environment or "
        "${file:PATH} there"
        for setting, kind in redaction.find(raw)
    ]
    if mistakes:
        raise ConfigError(
            f"study {study.name} cannot run on a cluster as it is:\n"
            + "\n".join(f"  {mistake}" for mistake in mistakes)
        )
    (folder / STUDY).write_text(
        yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    shutil.copytree(
        Path(checkpoint.__file__).parents[1],
        folder / "medray",
        ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
    )
    load_study([folder / STUDY])  # what the job will read
    return _size(folder)


def _stage_data(
    study: StudyConfig, raw: dict[str, Any], folder: Path, parcel: Parcel
) -> Iterator[str]:
    """Copy the data files that are sent and change their settings; yield what is wrong with the
    others."""
    for setting, value in _data_files(raw):
        is_path = setting == "data.format.path"
        if is_path and getattr(study.data.format, "is_remote", False):
            continue  # the nodes pull it
        if setting.startswith("data.format.") and is_remote(value):
            continue  # the nodes pull it
        source = Path(value).expanduser()
        if parcel.upload_data and source.exists():
            put(raw, setting, _copy(setting, source, folder, parcel.max_bytes), where=setting)
        elif not Path(value).is_absolute():
            remedy = ", or send it with --upload-data" if source.exists() else ""
            yield f"{setting}: {value}: {_path_mistake(value)}{remedy}"


def _data_files(raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each setting that names a file, and its path."""
    for setting in DATA_SETTINGS:
        value: Any = raw
        for key in setting.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value:
            yield setting, str(value)


def _is_local_folder(source: str) -> bool:
    """Return whether a base model is a relative folder; an absolute one may be the cluster's."""
    return (
        not source.startswith("pkg:")
        and not Path(source).is_absolute()
        and Path(source).expanduser().is_dir()
    )


def _path_mistake(path: str) -> str:
    return (
        "is a path of this machine or does not exist; give the absolute path under which the "
        f"cluster's nodes see {Path(path).name}"
    )


def _copy(setting: str, source: Path, folder: Path, max_bytes: int) -> str:
    """Copy a data file or folder into the parcel, and return its path there."""
    size = _size(source)
    if size > max_bytes:
        raise ConfigError(
            f"{setting}: {source} has {size / 1e6:.1f} MB, more than the {max_bytes / 1e6:.1f} "
            "MB that --max-upload-mb allows; put it where the cluster's nodes see it"
        )
    target = folder / "data" / setting.rpartition(".")[2] / source.resolve().name
    target.parent.mkdir(parents=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    return target.relative_to(folder).as_posix()


def _size(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in files.files(path))
        if path.is_dir()
        else path.stat().st_size
    )
