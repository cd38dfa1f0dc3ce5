"""The material that the trials of a study share per base model: task, base weights, encoded rows.

It is made once, and each trial opens it. It holds no labels of test rows, so that no trial can
train on them.
"""

import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from safetensors import numpy as safetensors

from medray.config.trial import TrialConfig
from medray.data import examples
from medray.data.audit import Audit
from medray.data.dataset import Dataset, RowCounts
from medray.data.examples import Examples
from medray.data.minhash import hash_rows
from medray.data.prepared import Prepared
from medray.errors import ArtifactError, DataError
from medray.evaluation import metrics
from medray.models import sources
from medray.models.build import load_tokenizer
from medray.models.sources import Base
from medray.storage import checkpoint, files
from medray.tasks.base.encoders import for_base
from medray.tasks.base.protocol import Chatting, Task, restore
from medray.text import windows
from medray.types import SPLITS, Encoded, Example, Split

log = logging.getLogger(__name__)
ROWS_PER_BATCH = 1024  # rows per call of the tokenizer
ROWS_PER_PIECE = 8192  # rows per file of an encoding that is not finished


@dataclass(frozen=True)
class Material:
    task: Task
    base: Base
    prepared: Prepared
    validation: Sequence[Example]
    data_fingerprint: str
    split_fingerprint: str
    audit: Mapping[str, Any]
    # the file of the training rows' hashes, for checkpoints; an earlier medray wrote none
    train_rows: Path | None
    path: Path  # of the description from which another process opens it


def gather(
    config: TrialConfig,
    dataset: Dataset,
    task: Task,
    cache_dir: Path,
    on_audit: Callable[[Audit], None] = lambda audit: None,
) -> Material:
    """Resolve the base model, and encode every row with its tokenizer.

    An existing table with the same fingerprint is used again.
    """
    base = sources.resolve(config.model.source, config.model.revision)
    task = for_base(task, config.model.source, config.model.revision)
    tokenizer = load_tokenizer(base.path)
    fingerprint = _fingerprint(config, dataset, task, tokenizer)
    table = cache_dir / f"{fingerprint[:32]}.arrow"
    train_rows = table.with_suffix(".train.safetensors")
    table.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(table.with_suffix(".lock")):  # one of several studies encodes
        if not table.exists():
            _prepare(dataset, task, tokenizer, fingerprint, table)
        if not train_rows.exists():
            files.write(
                train_rows, safetensors.save({"hashes": np.unique(hash_rows(dataset.train))})
            )
    prepared = Prepared.open(table)
    _check_sides(prepared, dataset)
    cut = prepared.num_truncated
    if any(cut.values()):
        log.warning(
            "%s: texts were cut to fit task.max_length: %s",
            base.source,
            ", ".join(f"{split} {number}" for split, number in cut.items()),
        )
    audit = audit_tokens(dataset, task, base.source, tokenizer, prepared)
    on_audit(audit)
    description = {
        "table": table.name,
        "train_rows": train_rows.name,
        "task": {"options": task.options.model_dump(mode="json"), "state": task.state()},
        "base": {**asdict(base), "path": str(base.path)},
        "validation": store_validation(dataset.validation, cache_dir),
        "data_fingerprint": dataset.fingerprint,
        "split_fingerprint": dataset.split_fingerprint,
        "audit": audit.as_dict() | {"truncated": cut},
    }
    content = json.dumps(description, ensure_ascii=False)
    path = cache_dir / f"{files.hash_text([content])[:32]}.json"
    files.write(path, content.encode())
    return open_material(path)


def _fingerprint(config: TrialConfig, dataset: Dataset, task: Task, tokenizer: Any) -> str:
    return files.hash_text(
        [
            dataset.fingerprint,
            dataset.split_fingerprint,
            *map(
                str, (config.data.limit, config.data.evaluation_rows, config.data.split.seed)
            ),  # which decide the rows of each split
            task.options.model_dump_json(),
            repr(task.state()),
            *_identity(tokenizer),
            "truncations counted",  # which tables of an earlier medray lack
        ]
    )


def open_material(path: Path) -> Material:
    """Open the material at the path of its description.

    Resolves the base model again where its folder is not on this machine.
    """
    try:
        description = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(
            f"{path}: does not exist; the storage path of a study must be one that every node can "
            "read"
        ) from None
    record = description["base"]
    base = Base(**{**record, "path": Path(record["path"])})
    if not sources.weight_files(base.path):
        base = sources.resolve(base.source, base.revision)
        if base.weight_hash != record["weight_hash"]:
            raise ArtifactError(
                f"{base.source}: the weights on this node are {base.weight_hash[:12]}, those of "
                "the "
                f"study {record['weight_hash'][:12]}; use the same weights on every node"
            )
    return Material(
        task=restore(**description["task"]),
        base=base,
        prepared=Prepared.open(path.with_name(description["table"])),
        validation=load_validation(description["validation"], path.parent),
        data_fingerprint=description["data_fingerprint"],
        split_fingerprint=description["split_fingerprint"],
        audit=description["audit"],
        train_rows=path.with_name(description["train_rows"])
        if "train_rows" in description
        else None,
        path=path,
    )


def audit_tokens(
    dataset: Dataset, task: Task, source: str, tokenizer: Any, prepared: Prepared | None = None
) -> Audit:
    """Return the audit of a dataset, with token counts of one base model's tokenizer. Texts that
    were counted for `prepared` rows are not counted again."""
    lengths = {source: _lengths(dataset, task, tokenizer, prepared)}
    return dataset.audit(lengths, task.options.max_length, metrics.constant_f1)


def _lengths(dataset: Dataset, task: Task, tokenizer: Any, prepared: Prepared | None) -> RowCounts:
    """Return the number of tokens of each text, or of each whole conversation for a chat task."""
    chat_task = task if isinstance(task, Chatting) else None
    cache_path = None
    if dataset.folder:
        key = [
            dataset.fingerprint,
            *_identity(tokenizer),
            *([chat_task.options.model_dump_json()] if chat_task else []),
        ]
        cache_path = dataset.folder / f"lengths-{files.hash_text(key)[:32]}.npy"
        if cache_path.exists():
            lengths: RowCounts = np.load(cache_path)
            return lengths

    def count(rows: Sequence[Example]) -> Iterable[int]:
        if chat_task:
            return chat_task.count_tokens(rows, tokenizer)
        return map(len, windows.encode((example.text for example in rows), tokenizer))

    sides = {side: prepared.split(side).text_lengths() for side in SPLITS} if prepared else {}
    lengths = dataset.count("counting tokens", count, sides)
    if cache_path:
        content = io.BytesIO()
        np.save(content, lengths)
        files.write(cache_path, content.getvalue())
    return lengths


def _identity(tokenizer: Any) -> list[str]:
    return [
        tokenizer.backend_tokenizer.to_str(),
        str(tokenizer.model_max_length),
        checkpoint.versions()["tokenizers"],
    ]


def _prepare(dataset: Dataset, task: Task, tokenizer: Any, fingerprint: str, table: Path) -> None:
    """Encode every row into a table, in pieces that an interrupted study can use again."""
    pieces = table.with_suffix(".pieces")
    pieces.mkdir(exist_ok=True)
    sides: dict[Split, Sequence[Example]] = {
        "train": dataset.train,
        "validation": dataset.validation,
        "test": dataset.unlabelled_test(),
    }
    paths = []
    with dataset.stage("encoding", sum(map(len, sides.values()))) as progress:
        for number, (split, members) in enumerate(sides.items()):
            for start in range(0, len(members), ROWS_PER_PIECE):
                paths.append(pieces / f"{number}-{start:012}.arrow")
                rows = list(members[start : start + ROWS_PER_PIECE])
                if not paths[-1].exists():
                    new_file = paths[-1].with_suffix(f".{os.getpid()}")
                    Prepared.of(encode(split, rows, task, tokenizer), fingerprint).save(new_file)
                    new_file.replace(paths[-1])
                progress.add(len(rows))
    new_file = table.with_suffix(f".{os.getpid()}")
    Prepared.join(paths, fingerprint, new_file)
    new_file.replace(table)
    shutil.rmtree(pieces, ignore_errors=True)


def encode(
    split: Split, members: Sequence[Example], task: Task, tokenizer: Any
) -> Iterator[tuple[Encoded, Split, Mapping[str, str]]]:
    """Encode the rows of one split, each with its example's metadata."""
    metadata = {example.id: example.metadata for example in members}
    for start in range(0, len(members), ROWS_PER_BATCH):
        for row in task.encode(members[start : start + ROWS_PER_BATCH], tokenizer):
            yield row, split, metadata[row.row_id]


def store_validation(
    validation: Sequence[Example], folder: Path
) -> list[dict[str, Any]] | dict[str, str]:
    """Return the rows as JSON, or for many rows the name of a file that every trial maps."""
    if len(validation) <= ROWS_PER_PIECE:
        return [asdict(example) for example in validation]
    digest = files.hash_text(json.dumps(asdict(example), sort_keys=True) for example in validation)
    path = folder / f"{digest[:32]}.rows.arrow"
    if not path.exists():
        examples.write(validation, path)
    return {"table": path.name}


def load_validation(
    record: list[dict[str, Any]] | dict[str, str], folder: Path
) -> Sequence[Example]:
    if isinstance(record, dict):
        return Examples.open(folder / record["table"])
    return tuple(map(Example.from_dict, record))


def _check_sides(prepared: Prepared, dataset: Dataset) -> None:
    """Check that all rows to train on are training rows of this split: the last check against a
    leak."""
    wrong = [
        row_id for row_id in prepared.split("train").ids if dataset.splits.get(row_id) != "train"
    ]
    if wrong:
        raise DataError(
            f"{len(wrong)} row(s) to train on are no training rows of this split, for example "
            f"{wrong[0]!r}; remove the folder of prepared rows and run the study again"
        )
