"""What the trials of a study share for one base model: task, base weights, rows in tokens. Made once, opened by each trial.

It holds no labels of test rows: what a trial cannot read, it cannot train on.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medray import checkpoint, storage
from medray.config import TrialConfig
from medray.data.audit import Audit
from medray.data.base import Encoded, Example, Prepared, Split
from medray.data.dataset import Dataset
from medray.errors import ArtifactError, DataError
from medray.models import sources
from medray.models.build import load_tokenizer
from medray.models.sources import Base
from medray.tasks.base import Task, restore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Material:
    task: Task
    base: Base
    prepared: Prepared
    validation: tuple[Example, ...]
    data_fingerprint: str
    split_fingerprint: str
    audit: Mapping[str, Any]
    path: Path  # of its description, from which another process opens it


def gather(
    config: TrialConfig, dataset: Dataset, task: Task, cache_dir: Path, on_audit: Callable[[Audit], None] = lambda audit: None
) -> Material:
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
            "truncations counted",  # tables of an earlier medray do not say them
        ]
    )
    table = cache_dir / f"{fingerprint[:32]}.arrow"
    if not table.exists():
        table.parent.mkdir(parents=True, exist_ok=True)
        half = table.with_suffix(f".{os.getpid()}")
        Prepared.of(_encode(dataset, task, tokenizer), fingerprint).save(half)
        half.replace(table)
    prepared = Prepared.open(table)
    _check_sides(prepared, dataset)
    cut = prepared.num_truncated
    if any(cut.values()):
        log.warning(
            "%s: texts were cut to fit task.max_length: %s", base.source, ", ".join(f"{split} {number}" for split, number in cut.items())
        )
    audit = look(dataset, task, base.source, tokenizer)
    on_audit(audit)
    described = {
        "table": table.name,
        "task": {"options": task.options.model_dump(mode="json"), "state": task.state()},
        "base": {**asdict(base), "path": str(base.path)},
        "validation": [asdict(example) for example in dataset.validation],
        "data_fingerprint": dataset.fingerprint,
        "split_fingerprint": dataset.split_fingerprint,
        "audit": audit.as_dict() | {"truncated": cut},
    }
    content = json.dumps(described, ensure_ascii=False)
    path = cache_dir / f"{storage.hash_text([content])[:32]}.json"
    storage.write(path, content.encode())
    return open_material(path)


def open_material(path: Path) -> Material:
    """What `gather` described; the base is found or fetched anew where its folder is not on this machine."""
    try:
        described = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{path}: is not there; the storage path of a study must be one that every node sees") from None
    held = described["base"]
    base = Base(**{**held, "path": Path(held["path"])})
    if not sources.weight_files(base.path):
        base = sources.resolve(base.source, base.revision)
        if base.weight_hash != held["weight_hash"]:
            raise ArtifactError(f"{base.source}: its weights here are {base.weight_hash[:12]}, the study's are {held['weight_hash'][:12]}")
    return Material(
        task=restore(**described["task"]),
        base=base,
        prepared=Prepared.open(path.with_name(described["table"])),
        validation=tuple(map(Example.from_dict, described["validation"])),
        data_fingerprint=described["data_fingerprint"],
        split_fingerprint=described["split_fingerprint"],
        audit=described["audit"],
        path=path,
    )


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
