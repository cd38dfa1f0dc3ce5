"""A study: one trial for each base model, in this process, and a last look at test rows for what each trial chose."""

import difflib
import json
import logging
from collections.abc import Callable, Iterator
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
    audit: str


def run(
    study: StudyConfig, *, resume: bool = False, on_audit: Callable[[str], None], on_report: Callable[[str, EpochReport], None]
) -> list[Outcome]:
    run_dir = _latest(study) if resume else study.study_dir / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    _same_settings(run_dir / "study.yaml", study)
    dataset = datasets.load(study.data)
    task = tasks.fit(study.task, dataset.label_sets())
    outcomes = []
    for number, base in enumerate(study.base_models):
        trial_config = study.trial(base)
        material = gather(trial_config, dataset, task, study.study_dir.parent / "prepared")
        on_audit(material.audit.render())
        folder = run_dir / "trials" / f"{number:02d}-{slug(base.source)}"
        trial = Trial(trial_config, material, folder, partial(on_report, base.source))
        result = trial.run(resume=resume)
        test, count = judge(result.checkpoint, dataset, study.study_dir.parent / "test_log", caller=f"medray train {study.name}")
        (folder / "test_metrics.json").write_text(json.dumps({"split": "test", **test.as_dict()}, indent=1))
        outcomes.append(Outcome(base.source, result, test, count, material.audit.render()))
    return outcomes


def audit(study: StudyConfig) -> Iterator[Audit]:
    """The audit of the study's data for each base model's tokenizer; nothing is trained."""
    dataset = datasets.load(study.data)
    task = tasks.fit(study.task, dataset.label_sets())
    for base in study.base_models:
        yield look(dataset, task, base.source, load_tokenizer(sources.resolve(base.source, base.revision).path))


def judge(checkpoint: Path, dataset: Dataset, log_dir: Path, *, caller: str) -> tuple[Metrics, int]:
    """Figures of a reloaded checkpoint on the test rows, whose labels are opened for this and logged."""
    loaded = load(checkpoint)
    predictions = loaded.task.predict(loaded.engine, dataset.unlabelled_test())
    opened = dataset.open_test(log_dir, caller)
    return loaded.task.score(predictions, opened.examples), opened.num_openings


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
