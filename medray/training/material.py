"""What the trials of a study share for one base model: data, task, base weights, rows in tokens. Made once."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medray import checkpoint, storage
from medray.config import TrialConfig
from medray.data.audit import Audit
from medray.data.base import Encoded, Example, Prepared, Split
from medray.data.dataset import Dataset
from medray.errors import DataError
from medray.models import sources
from medray.models.build import load_tokenizer
from medray.models.sources import Base
from medray.tasks.base import Task


@dataclass(frozen=True)
class Material:
    dataset: Dataset
    task: Task
    base: Base
    prepared: Prepared
    audit: Audit


def gather(config: TrialConfig, dataset: Dataset, task: Task, cache_dir: Path) -> Material:
    """Resolve the base and encode every row with its tokenizer, unless a table of the same fingerprint is there already."""
    base = sources.resolve(config.model.source, config.model.revision)
    tokenizer = load_tokenizer(base.path)
    fingerprint = storage.hash_text(
        [
            dataset.fingerprint,
            dataset.split_fingerprint,
            str(config.data.limit),
            task.options.model_dump_json(),
            repr(task.state()),
            tokenizer.backend_tokenizer.to_str(),
            str(tokenizer.model_max_length),
            checkpoint.versions()["tokenizers"],
        ]
    )
    path = cache_dir / f"{fingerprint[:32]}.arrow"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{os.getpid()}")
        Prepared.of(_encode(dataset, task, tokenizer), fingerprint).save(half)
        half.replace(path)
    prepared = Prepared.open(path)
    _check_sides(prepared, dataset)
    return Material(dataset, task, base, prepared, look(dataset, task, base.source, tokenizer))


def look(dataset: Dataset, task: Task, source: str, tokenizer: Any) -> Audit:
    """The audit with token counts of one base model's tokenizer."""
    lengths = [len(ids) for ids in tokenizer(dataset.texts(), split_special_tokens=True, verbose=False)["input_ids"]]
    return dataset.audit({source: lengths}, task.options.max_length)


def _encode(dataset: Dataset, task: Task, tokenizer: Any) -> Iterator[tuple[Encoded, Split, Mapping[str, str]]]:
    examples: dict[Split, list[Example]] = {"train": dataset.train, "validation": dataset.validation, "test": dataset.unlabelled_test()}
    for split, members in examples.items():
        metadata = {example.id: example.metadata for example in members}
        for row in task.encode(members, tokenizer):
            yield row, split, metadata[row.row_id]


def _check_sides(prepared: Prepared, dataset: Dataset) -> None:
    """Rows that train must be training rows of this split: the last stop before a leak."""
    wrong = [row_id for row_id in prepared.split("train").ids if dataset.splits.get(row_id) != "train"]
    if wrong:
        raise DataError(f"{len(wrong)} row(s) that are not training rows would train, {wrong[0]!r} first")
