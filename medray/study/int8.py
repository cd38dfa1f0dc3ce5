"""What 8 bits do to a checkpoint's answers, measured on its study's validation rows before it is published. It sees no test row."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from medray.config.study import Int8Mode, StudyConfig
from medray.engines.transformers import TransformersEngine
from medray.errors import ConfigError, MedrayError
from medray.evaluation import leaderboard
from medray.models import int8
from medray.models.build import merge
from medray.records import Int8Record
from medray.registry import answers, loading
from medray.storage import checkpoint
from medray.tasks.base.protocol import restore
from medray.types import Example, Prediction

log = logging.getLogger(__name__)
_MOST_WORK = 3e10  # parameters times rows that `auto` answers: about a minute of one core for abstracts
# Rounding falls otherwise on another machine. An engine that is wrong is off by more than a few times of what rounding does.
_TOLERANCE, _LEAST_TOLERANCE = 4.0, 0.05


def measured(
    mode: Int8Mode,
    folder: Path,
    *,
    num_parameters: int,
    read: Callable[[], tuple[StudyConfig, Sequence[Example]]],
    metric: str,
) -> Int8Record | None:
    """By `mode`: `auto` is silent about models that cannot be had in 8 bits, and leaves out those that would take long."""
    if mode == "never":
        return None
    try:
        _check(folder)
        num_rows = len(answers.stored(folder))
        if mode == "auto" and num_parameters * num_rows > _MOST_WORK:
            raise ConfigError(f"{num_parameters:,} parameters and {num_rows} validation rows take longer than publishing should")
        study, rows = read()
        return measure(folder, rows, study, metric)
    except MedrayError as err:
        if mode == "always":
            raise
        log.info("%s: was not tried in 8 bits: %s", folder, str(err).removeprefix(f"{folder}: "))
        return None


def measure(folder: Path, rows: Sequence[Example], study: StudyConfig, metric: str) -> Int8Record:
    """The checkpoint's stored answers against those of its merged model in 8 bits, by one metric."""
    start = time.perf_counter()
    own = answers.stored(folder)
    loaded = loading.load(folder, precision="fp32")
    task, manifest = loaded.task, loaded.manifest
    int8.check(loaded.built)
    built = replace(loaded.built, model=merge(loaded.built).eval())
    difference = loading.probe_difference(manifest, task, built)
    with int8.quantised(built):
        found = task.predict(TransformersEngine(built, precision="int8", token_budget=manifest.token_budget), rows)
    f1 = leaderboard.f1_of(manifest.metrics, metric)
    record = Int8Record(
        metric=f1,
        plain=task.score(own, rows).values[f1],
        int8=task.score(found, rows).values[f1],
        agreement=sum(map(_alike, own, found)) / len(rows),
        num_rows=len(rows),
        tolerance=max(_TOLERANCE * difference, _LEAST_TOLERANCE),
        calibration=answers.fit(task, found, rows, study.calibration),
    )
    log.info("%s: %s %.4f, in 8 bits %.4f (%.1f s)", folder, f1, record.plain, record.int8, time.perf_counter() - start)
    return record


def _check(folder: Path) -> None:
    """What is known before rows are read and weights are loaded."""
    manifest = checkpoint.read(folder)
    if manifest.quantization != "none":
        raise ConfigError(f"{folder}: is in 4 bits ({manifest.quantization})")
    if restore(manifest.task.options, manifest.task.state).head() is None:
        raise ConfigError(f"{folder}: is a language model: 8 bits are for models with a head")


def _alike(one: Prediction, other: Prediction) -> bool:
    places = [[(mention.start, mention.end, mention.kind) for mention in row.mentions] for row in (one, other)]
    return one.labels == other.labels and places[0] == places[1]
