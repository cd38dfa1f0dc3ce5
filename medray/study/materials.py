"""Values that the trials of a study share: data sets, the task, and each base model's prepared
rows. Each is built once."""

from collections.abc import Callable, Iterator
from pathlib import Path

from medray.config.study import StudyConfig
from medray.config.trial import DataConfig, TrialConfig
from medray.data import dataset as datasets
from medray.data.audit import Audit
from medray.data.dataset import Dataset
from medray.errors import ArtifactError
from medray.models import sources
from medray.models.build import load_tokenizer
from medray.storage import files
from medray.tasks.base import protocol as tasks
from medray.training.material import audit_tokens, gather


class Materials:
    def __init__(self, study: StudyConfig, folder: Path, on_audit: Callable[[Audit], None]) -> None:
        self.folder, self.on_audit = folder, on_audit
        self._bring = tasks.task_options(study.task).bring
        self._datasets: dict[str, Dataset] = {}
        self._prepared: dict[str, Path | ArtifactError] = {}
        self._audit_sources: set[str] = set()  # base models with an audit
        dataset = self.dataset(study.data)
        self.task = tasks.fit(study.task, dataset.label_sets(), dataset.train)

    def dataset(self, data: DataConfig) -> Dataset:
        """Return the rows of one split, fold and row limit."""
        split = data.split.model_copy(update={"fold": data.split.fold or 0})
        key = data.model_copy(update={"split": split}).model_dump_json()
        if key not in self._datasets:
            self._datasets[key] = datasets.load(data, self._bring)
        return self._datasets[key]

    def steps_per_epoch(self, config: TrialConfig) -> int:
        return -(-len(self.dataset(config.data).train) // config.train.samples_per_step)

    def prepared(self, config: TrialConfig) -> Path:
        """Return the path of a trial's prepared rows. Raise the same error again for each trial
        whose rows cannot be prepared."""
        key = files.hash_text(
            [
                config.model.source,
                str(config.model.revision),
                config.data.model_dump_json(),
                config.task.model_dump_json(),
            ]
        )
        if key not in self._prepared:
            self._prepared[key] = self._prepare(config)
        prepared = self._prepared[key]
        if isinstance(prepared, ArtifactError):
            raise prepared
        return prepared

    def _prepare(self, config: TrialConfig) -> Path | ArtifactError:
        dataset = self.dataset(config.data)
        task = tasks.fit(config.task, dataset.label_sets(), dataset.train)
        # An audit covers all rows, so each base model has one.
        has_audit = config.model.source in self._audit_sources
        on_audit = (lambda audit: None) if has_audit else self.on_audit
        self._audit_sources.add(config.model.source)
        try:
            return gather(config, dataset, task, self.folder, on_audit).path
        except ArtifactError as err:
            return err


def audit(study: StudyConfig) -> Iterator[Audit]:
    """Yield the audit of the study's data for each base model's tokenizer, without training."""
    dataset = datasets.load(study.data, tasks.task_options(study.task).bring)
    task = tasks.fit(study.task, dataset.label_sets(), dataset.train)
    for base in study.base_models:
        yield audit_tokens(
            dataset,
            task,
            base.source,
            load_tokenizer(sources.resolve(base.source, base.revision).path),
        )
