"""What the trials of a study share for one base model: task, base weights, rows in tokens. Made
once, opened by each trial.

It holds no labels of test rows: what a trial cannot read, it cannot train on.
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

from medray.config.study import TrialConfig
from medray.data import examples
from medray.data.audit import Audit
from medray.data.dataset import Dataset
from medray.data.examples import Examples
from medray.data.minhash import hash_rows
from medray.data.prepared import Prepared
from medray.errors import ArtifactError, DataError
from medray.evaluation import metrics
from medray.models import sources
from medray.models.build import load_tokenizer
from medray.models.sources import Base
from medray.storage import checkpoint, files
from medray.tasks.base.protocol import Chatting, Task, restore
from medray.types import Encoded, Example, Split

log = logging.getLogger(__name__)
_BATCH = 1024  # rows that are in tokens at a time
_PIECE = 8192  # rows that are encoded before they are kept


@dataclass(frozen=True)
class Material:
    task: Task
    base: Base
    prepared: Prepared
    validation: Sequence[Example]
    data_fingerprint: str
    split_fingerprint: str
    audit: Mapping[str, Any]
    train_rows: (
        Path | None
    )  # their hashes, for checkpoints to keep; None in a description of an earlier medray
    path: Path  # of its description, from which another process opens it


def gather(
    config: TrialConfig,
    dataset: Dataset,
    task: Task,
    cache_dir: Path,
    on_audit: Callable[[Audit], None] = lambda audit: None,
) -> Material:
    """Resolve the base and encode every row with its tokenizer, unless a table of the same
    fingerprint is there already."""
    base = sources.resolve(config.model.source, config.model.revision)
    tokenizer = load_tokenizer(base.path)
    fingerprint = files.hash_text(
        [
            dataset.fingerprint,
            dataset.split_fingerprint,
            *map(
                str, (config.data.limit, config.data.evaluation_rows, config.data.split.seed)
            ),  # which rows of a side were chosen
            task.options.model_dump_json(),
            repr(task.state()),
            *_identity(tokenizer),
            "truncations counted",  # tables of an earlier medray do not say them
        ]
    )
    table = cache_dir / f"{fingerprint[:32]}.arrow"
    train_rows = table.with_suffix(".train.safetensors")
    table.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(table.with_suffix(".lock")):  # of two studies one encodes
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
    audit = look(dataset, task, base.source, tokenizer)
    on_audit(audit)
    described = {
        "table": table.name,
        "train_rows": train_rows.name,
        "task": {"options": task.options.model_dump(mode="json"), "state": task.state()},
        "base": {**asdict(base), "path": str(base.path)},
        "validation": store_validation(dataset.validation, cache_dir),
        "data_fingerprint": dataset.fingerprint,
        "split_fingerprint": dataset.split_fingerprint,
        "audit": audit.as_dict() | {"truncated": cut},
    }
    content = json.dumps(described, ensure_ascii=False)
    path = cache_dir / f"{files.hash_text([content])[:32]}.json"
    files.write(path, content.encode())
    return open_material(path)


def open_material(path: Path) -> Material:
    """What `gather` described; the base is found or fetched anew where its folder is not on this
    machine."""
    try:
        described = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(
            f"{path}: is not there; the storage path of a study must be one that every node sees"
        ) from None
    held = described["base"]
    base = Base(**{**held, "path": Path(held["path"])})
    if not sources.weight_files(base.path):
        base = sources.resolve(base.source, base.revision)
        if base.weight_hash != held["weight_hash"]:
            raise ArtifactError(
                f"{base.source}: its weights here are {base.weight_hash[:12]}, the study's are "
                f"{held['weight_hash'][:12]}"
            )
    return Material(
        task=restore(**described["task"]),
        base=base,
        prepared=Prepared.open(path.with_name(described["table"])),
        validation=load_validation(described["validation"], path.parent),
        data_fingerprint=described["data_fingerprint"],
        split_fingerprint=described["split_fingerprint"],
        audit=described["audit"],
        train_rows=path.with_name(described["train_rows"]) if "train_rows" in described else None,
        path=path,
    )


def look(dataset: Dataset, task: Task, source: str, tokenizer: Any) -> Audit:
    """The audit with token counts of one base model's tokenizer."""
    lengths = {source: _lengths(dataset, task, tokenizer)}
    return dataset.audit(lengths, task.options.max_length, metrics.constant_f1)


def _lengths(dataset: Dataset, task: Task, tokenizer: Any) -> Sequence[int]:
    """Tokens of each text, or with a task that answers conversations, of the whole conversation."""
    chatting = task if isinstance(task, Chatting) else None
    kept = None
    if dataset.folder:
        key = [
            dataset.fingerprint,
            *_identity(tokenizer),
            *([chatting.options.model_dump_json()] if chatting else []),
        ]
        kept = dataset.folder / f"lengths-{files.hash_text(key)[:32]}.npy"
        if kept.exists():
            return np.load(kept).tolist()

    def count(some: Sequence[Example]) -> Iterable[int]:
        if chatting:
            return chatting.count_tokens(some, tokenizer)
        texts = [example.text for example in some]
        counted = tokenizer(
            texts,
            split_special_tokens=True,
            verbose=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return map(len, counted["input_ids"])

    lengths = dataset.count("counting tokens", count)
    if kept:
        content = io.BytesIO()
        np.save(content, np.array(lengths))
        files.write(kept, content.getvalue())
    return lengths


def _identity(tokenizer: Any) -> list[str]:
    return [
        tokenizer.backend_tokenizer.to_str(),
        str(tokenizer.model_max_length),
        checkpoint.versions()["tokenizers"],
    ]


def _prepare(dataset: Dataset, task: Task, tokenizer: Any, fingerprint: str, table: Path) -> None:
    """Encode every row, some thousands at a time; what an interrupted study encoded of many rows is
    there already."""
    pieces = table.with_suffix(".pieces")
    pieces.mkdir(exist_ok=True)
    sides: dict[Split, Sequence[Example]] = {
        "train": dataset.train,
        "validation": dataset.validation,
        "test": dataset.unlabelled_test(),
    }
    made = []
    with dataset.stage("encoding", sum(map(len, sides.values()))) as progress:
        for number, (split, members) in enumerate(sides.items()):
            for start in range(0, len(members), _PIECE):
                made.append(pieces / f"{number}-{start:012}.arrow")
                some = list(members[start : start + _PIECE])
                if not made[-1].exists():
                    half = made[-1].with_suffix(f".{os.getpid()}")
                    Prepared.of(encode(split, some, task, tokenizer), fingerprint).save(half)
                    half.replace(made[-1])
                progress.add(len(some))
    half = table.with_suffix(f".{os.getpid()}")
    Prepared.join(made, fingerprint, half)
    half.replace(table)
    shutil.rmtree(pieces, ignore_errors=True)


def encode(
    split: Split, members: Sequence[Example], task: Task, tokenizer: Any
) -> Iterator[tuple[Encoded, Split, Mapping[str, str]]]:
    """Rows of one split, each with its example's metadata."""
    metadata = {example.id: example.metadata for example in members}
    for start in range(0, len(members), _BATCH):
        for row in task.encode(members[start : start + _BATCH], tokenizer):
            yield row, split, metadata[row.row_id]


def store_validation(
    validation: Sequence[Example], folder: Path
) -> list[dict[str, Any]] | dict[str, str]:
    """Return the rows as JSON; of many, the name of a file beside it, which every trial maps."""
    if len(validation) <= _PIECE:
        return [asdict(example) for example in validation]
    digest = files.hash_text(json.dumps(asdict(example), sort_keys=True) for example in validation)
    path = folder / f"{digest[:32]}.rows.arrow"
    if not path.exists():
        examples.write(validation, path)
    return {"table": path.name}


def load_validation(
    described: list[dict[str, Any]] | dict[str, str], folder: Path
) -> Sequence[Example]:
    if isinstance(described, dict):
        return Examples.open(folder / described["table"])
    return tuple(map(Example.from_dict, described))


def _check_sides(prepared: Prepared, dataset: Dataset) -> None:
    """Rows that train must be training rows of this split: the last stop before a leak."""
    wrong = [
        row_id for row_id in prepared.split("train").ids if dataset.splits.get(row_id) != "train"
    ]
    if wrong:
        raise DataError(
            f"{len(wrong)} row(s) that are not training rows would train, {wrong[0]!r} first"
        )
