"""What a study will write, before it is started: checkpoints and states of its trials, by the sizes of their adapters."""

import shutil
from pathlib import Path

from medray.config.study import BaseModelConfig, StudyConfig
from medray.models import sources
from medray.models.architecture import num_adapter_weights
from medray.study import samplers
from medray.tasks.base.protocol import needs_of

_BYTES = 4  # of a stored weight: adapters train in fp32
_STATE = 3  # the weight, and Adam's two figures for it
_MINIMUM = 50_000_000  # predictions, curves, logs, rows in tokens


def check(study: StudyConfig, folder: Path, *, already: int = 0) -> list[str]:
    """`already`: bytes that the run which goes on has written."""
    free, wanted = shutil.disk_usage(folder).free, needed(study) - already
    if wanted <= free:
        return []
    return [
        f"storage_path: {folder} has {_shown(free)} free, and this study may write {_shown(wanted)}; allowed: fewer trials, a smaller lora.r or"
        " train.keep_checkpoints, another storage_path, or `medray gc` to remove what earlier studies left"
    ]


def needed(study: StudyConfig) -> int:
    """At most, in bytes: every trial's best checkpoint, the latest ones, one being written, and the state for a resume."""
    return _MINIMUM + sum((num_trials(study, base) + num_repeats(study)) * _trial(study, base) for base in study.base_models)


def num_repeats(study: StudyConfig) -> int:
    """Trials of each base model after the search: finalists with other seeds, or on the other folds."""
    folds = study.data.split.folds if study.data.split.is_pooled else 1
    return study.search.num_finalists * (max(study.search.num_seeds, folds) - 1)


def num_trials(study: StudyConfig, base: BaseModelConfig) -> int:
    algorithm = "grid" if study.search.algorithm == "grid" else "random"  # how many there are does not depend on how they are drawn
    wanted = base.num_trials or study.search.num_trials or 1
    if study.search.algorithm == "optuna":
        return wanted
    return samplers.make(algorithm, study.space(base), wanted, seed=0, base_model=base.source).num_trials


def _trial(study: StudyConfig, base: BaseModelConfig) -> int:
    config = study.trial(base)
    axis = study.space(base).get("lora.r")
    lora = config.lora.model_copy(update={"r": max(axis.extremes)} if axis else {})
    folder = sources.config_dir(config.model.source, config.model.revision)
    weights = _BYTES * num_adapter_weights(folder, lora, needs_of(config.task))
    tokenizer = sum(path.stat().st_size for path in folder.glob("*token*") if path.is_file())
    return (config.train.keep_checkpoints + 2) * (weights + tokenizer) + 2 * _STATE * weights


def _shown(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
