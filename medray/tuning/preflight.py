"""Everything that can be told to be wrong before a model is loaded or a GPU asked for, all of it at once."""

import os
from pathlib import Path

from medray import plugins
from medray.config import StudyConfig, TrialConfig
from medray.errors import ConfigError
from medray.models import families, sources


def check(study: StudyConfig) -> None:
    """Raise one ConfigError that lists every mistake found."""
    found = [*plugins.find("data.formats", study.data.format.name).check(study.data.format), *_storage(study)]
    for base in study.base_models:
        found += [f"base model {base.source}: {sentence}" for sentence in _base(study.trial(base))]
    if found:
        raise ConfigError(f"study {study.name}: {len(found)} mistake(s)\n" + "\n".join(f"  {sentence}" for sentence in found))


def _storage(study: StudyConfig) -> list[str]:
    folder = study.study_dir
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return [f"storage_path {study.storage_path}: {folder} is not a folder that can be written to"]
    return []


def _base(config: TrialConfig) -> list[str]:
    wrong = sources.check(config.model.source, config.model.revision)
    if wrong:
        return wrong
    base = sources.resolve(config.model.source, config.model.revision) if not needs_download(config.model.source) else None
