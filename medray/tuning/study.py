"""A study: one trial for each base model, in this process, and a last look at test rows for what each trial chose."""

import difflib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from medray import config as configs
from medray import storage
from medray.config import StudyConfig
from medray.data import dataset as datasets
from medray.data.audit import Audit
from medray.data.dataset import Dataset
from medray.errors import ConfigError
from medray.loading import load
from medray.models import sources
from medray.models.build import load_tokenizer
from medray.selection.metrics import Metrics
from medray.tasks import base as tasks
from medray.training.loop import EpochReport
from medray.training.material import gather, look
from medray.training.trial import Trial, TrialResult

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """One base model's trial and its figures on test rows."""

    source: str
    trial: TrialResult
    test: Metrics
    num_openings: int  # how often this split's test labels were read, this time included


def run(
    study: StudyConfig, *, resume: bool = False, on_audit: Callable[[str], None], on_report: Callable[[str, EpochReport], None]
) -> list[Outcome]:
    """Every base model's trial, and then one look at the test rows for all of them."""
    run_dir = _latest(study) if resume else study.study_dir / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    _same_settings(run_dir / "study.yaml", study)
    storage_dir = study.study_dir.parent
    dataset = datasets.load(study.data)
    results = []
    for number, base in enumerate(study.base_models):
        config = study.trial(base)
        own = dataset if config.data == study.data else datasets.load(config.data)  # a row limit of its own
        material = gather(config, own, tasks.fit(config.task, own.label_sets()), storage_dir / "prepared")
        on_audit(material.audit.render())
        folder = run_dir / "trials" / f"{number:02d}-{slug(base.source)}"
        results.append(Trial(config, material, folder, partial(on_report, base.source)).run(resume=resume))
    judged, num_openings = judge([result.checkpoint for result in results], dataset, storage_dir / "test_log", caller=f"train {study.name}")
    outcomes = []
    for base, result, test in zip(study.base_models, results, judged, strict=True):
        kept = {"split": "test", "checkpoint": result.checkpoint.name, "num_openings": num_openings, **test.as_dict()}
        storage.write(result.folder / "test_metrics.json", json.dumps(kept, indent=1).encode())
        outcomes.append(Outcome(base.source, result, test, num_openings))
    return outcomes


def audit(study: StudyConfig) -> Iterator[Audit]:
    """The audit of the study's data for each base model's tokenizer; nothing is trained."""
    dataset = datasets.load(study.data)
    task = tasks.fit(study.task, dataset.label_sets())
    for base in study.base_models:
        yield look(dataset, task, base.source, load_tokenizer(sources.resolve(base.source, base.revision).path))


def judge(checkpoints: Sequence[Path], dataset: Dataset, log_dir: Path, *, caller: str) -> tuple[list[Metrics], int]:
    """Figures of reloaded checkpoints on the test rows, whose labels are opened once, for all of them, and logged."""
    rows = dataset.unlabelled_test()
    answered = []
    for folder in checkpoints:
        loaded = load(folder)
        answered.append((loaded.task, loaded.task.predict(loaded.engine, rows)))
    opened = dataset.open_test(log_dir, caller)
    return [task.score(predictions, opened.examples) for task, predictions in answered], opened.num_openings


def slug(source: str) -> str:
    return "".join(
        char if char.isalnum() or char in "._-" else "-" for char in source.rsplit(":", 1)[-1].strip("/").rsplit("/", 1)[-1].lower()
    )


def _same_settings(path: Path, study: StudyConfig) -> None:
    """Keep the settings beside the run; a resume with others would mix two configurations under one name."""
    asked = configs.dump(study)
    kept = path.read_text(encoding="utf-8") if path.exists() else asked
    if kept != asked:
        changed = [
            f"{line[0]} {line[2:].strip()}"
            for line in difflib.ndiff(kept.splitlines(), asked.splitlines())
            if line.startswith(("- ", "+ "))
        ]
        raise ConfigError(f"{path.parent}: was started with other settings ({'; '.join(changed[:6])}); resume with those, or start anew")
    storage.write(path, asked.encode())


def _latest(study: StudyConfig) -> Path:
    found = max((path.parent for path in study.study_dir.glob("*/study.yaml")), default=None)
    if found is None:
        raise ConfigError(f"{study.study_dir}: there is no run to resume")
    return found
