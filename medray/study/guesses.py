"""The settings that a search tries first: those of an earlier study, or the table's learning rate
for the base model."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medray.config.search import Axis
from medray.config.study import LEARNING_RATE, BaseModelConfig, StudyConfig
from medray.errors import ArtifactError, ConfigError
from medray.evaluation import leaderboard
from medray.models import architecture
from medray.models.families import ENCODERS
from medray.storage import files
from medray.study.rates import best_guess
from medray.study.run import Run, latest

log = logging.getLogger(__name__)
Guess = Mapping[str, Any]  # settings by their dotted names


def first_guesses(study: StudyConfig, run: Run) -> list[Guess]:
    """Return the first guess of each base model. A run keeps them, so that a resume proposes the
    same trials."""
    path = run.folder / "guesses.json"
    guesses: list[Guess] = json.loads(path.read_bytes()) if path.exists() else []
    if new_bases := study.base_models[len(guesses) :]:
        earlier = _best_trials(study) if study.search.from_run else {}
        guesses += [_guess(study, base, earlier.get(base.source, {})) for base in new_bases]
        files.write(path, json.dumps(guesses).encode())
    return guesses


def check(study: StudyConfig) -> list[str]:
    """Return mistakes in `search.from`."""
    if not study.search.from_run:
        return []
    if not any(map(study.has_search, study.base_models)):
        return ["search.from: this study searches no settings; give search.space, or drop it"]
    try:
        _best_trials(study)
    except (ArtifactError, ConfigError) as err:
        return [str(err)]
    return []


def _best_trials(study: StudyConfig) -> dict[str, Guess]:
    """Return the settings of each base model's best trial in the study's earlier run."""
    run = latest(Path(str(study.search.from_run)))
    before = run.settings()
    name, metric = study.task.name, study.task.model_dump()["metric"]
    if (before.task.name, before.task.model_dump()["metric"]) != (name, metric):
        raise ConfigError(
            f"search.from: {run.folder} is of task {before.task.name}, metric "
            f"{before.task.model_dump()['metric']}, and this study of {name}, {metric}; name a run "
            "of the same task and metric"
        )
    entries = run.entries(metric, lambda record: record.of is None)
    best: dict[str, Guess] = {}
    for source in dict.fromkeys(base.source for base in before.base_models):
        own = [entry for entry in entries if entry.base_model == source and entry.validation]
        for entry in leaderboard.finalists(own, metric, 1):
            base = before.base_models[entry.base or 0]
            rate = before.trial(base, entry.settings).train.peak_rate
            best[source] = {LEARNING_RATE: rate, **entry.settings}
    if not best:
        raise ConfigError(f"search.from: {run.folder} has no evaluation; name another run")
    return best


def _guess(study: StudyConfig, base: BaseModelConfig, earlier: Guess) -> Guess:
    if not study.tries_rates(base):
        axes = study.space(base)
        return {
            path: earlier[path]
            for path in axes
            if path in earlier and _is_on(axes[path], earlier[path])
        }
    rate = earlier.get(LEARNING_RATE) or _rate(base)
    return {LEARNING_RATE: rate} if rate else {}


def _is_on(axis: Axis, value: Any) -> bool:
    if value is None or axis.is_finite:
        return value in axis.values
    low, high = axis.values[:2]
    return bool(low <= value <= high)


def _rate(base: BaseModelConfig) -> float | None:
    try:
        config = architecture.find(base.source, base.revision)[0]
    except ArtifactError as err:  # fails the base model's own trials
        log.warning("%s: its size is unknown: %s", base.source, err)
        return None
    text = config.get_text_config()
    num_weights = 12 * text.num_hidden_layers * text.hidden_size**2
    return best_guess(num_weights, is_encoder=config.model_type in ENCODERS)
