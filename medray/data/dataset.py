"""A data set as a study uses it: read, checked and split. One function, `open_test`, gives the
labels of test rows."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from heapq import merge
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medray.config.trial import DataConfig
from medray.data import corrections, duplicates, minhash, reading
from medray.data import examples as example_rows
from medray.data.audit import Audit, ConstantF1, audit
from medray.data.duplicates import Duplicates
from medray.data.examples import Examples
from medray.data.formats.base.protocol import FormatOptions
from medray.data.meter import Meter, stage
from medray.data.reading import ExampleSet
from medray.data.split import assign, limit_rows
from medray.storage import files
from medray.types import SPLITS, Example, Split

Bring = Callable[[int], Sequence[Example]]
RowCounts = npt.NDArray[np.int32]
log = logging.getLogger(__name__)
_BATCH = 1024  # rows in memory at a time


@dataclass(frozen=True)
class TestSet:
    """Test rows with their labels."""

    __test__ = False  # pytest must not collect it

    examples: Sequence[Example]
    num_openings: int  # of this split's test labels so far, with this one


class Dataset:
    """The rows of each split. `train` and `validation` have labels; only `open_test` gives those
    of test rows."""

    def __init__(
        self,
        source: ExampleSet,
        sides: Sequence[Split | None],
        duplicates: Duplicates,
        config: DataConfig,
        num_corrected: int = 0,
        bring: Bring | None = None,
    ) -> None:
        outlines = example_rows.outlines(source.examples)
        places = {side: _rows_on(side, outlines, sides, config) for side in SPLITS}
        by_side: dict[Split, Sequence[Example]] = {
            side: example_rows.take(source.examples, places[side]) for side in SPLITS
        }
        task_rows = bring(len(by_side["train"])) if bring else []
        self.task_row_ids = frozenset(example.id for example in task_rows)
        self.train, self.validation, self._test = (
            example_rows.followed_by(
                by_side[side], [example for example in task_rows if example.split == side]
            )
            for side in SPLITS
        )
        self._examples = example_rows.followed_by(source.examples, task_rows)
        for place, example in enumerate(task_rows, start=len(source.examples)):
            places[_side(example)].append(place)
        # The rows of each side in all examples.
        self._places = {side: np.array(rows, dtype=np.int64) for side, rows in places.items()}
        self._duplicates, self._num_corrected, self._format = (
            duplicates,
            num_corrected,
            config.format,
        )
        self._num_empty, self._num_unlabelled = len(source.empty_ids), len(source.unlabelled_ids)
        self.folder = source.folder  # of the cache, if the rows are kept on disk
        duplicate_ids = [
            example.id for example, side in zip(outlines, sides, strict=True) if side is None
        ]
        self.set_aside = dict.fromkeys(source.empty_ids, "empty text") | dict.fromkeys(
            source.unlabelled_ids, "no label"
        )
        self.set_aside |= dict.fromkeys(
            duplicate_ids, "duplicate of a given test or validation row"
        )
        self.splits: dict[str, Split] = {
            e.id: side for e, side in zip(outlines, sides, strict=True) if side
        }
        self.splits |= {example.id: _side(example) for example in task_rows}
        self.fingerprint = _fingerprint(source, outlines, task_rows, is_as_read=not num_corrected)
        self.split_fingerprint = files.hash_text(
            part for row in sorted(self.splits.items()) for part in row
        )
        self._label_sets: dict[tuple[str, ...], Example] = {}
        for example in chain(outlines, task_rows):
            self._label_sets.setdefault(
                example.labels, Example(id="", text="", labels=example.labels, where=example.where)
            )

    def label_sets(self) -> list[Example]:
        """Return each combination of labels once, with its first place. A task may learn this from
        every split."""
        return list(self._label_sets.values())

    def audit(
        self, lengths: Mapping[str, npt.ArrayLike], max_length: int, constant_f1: ConstantF1
    ) -> Audit:
        """Audit all rows; `lengths` are token counts from `count`, per base model."""
        with self.stage("audit", len(self._examples)) as progress:
            return audit(
                self._examples,
                self._duplicates,
                self.splits,
                num_empty=self._num_empty,
                num_unlabelled=self._num_unlabelled,
                num_corrected=self._num_corrected,
                lengths=lengths,
                max_length=max_length,
                constant_f1=constant_f1,
                terms=self._terms(),
                progress=progress,
            )

    def stage(self, what: str, total: int) -> AbstractContextManager[Meter]:
        """Log the progress of a stage if the rows are kept on disk."""
        return _stage(self.folder, what, total)

    def _terms(self) -> set[str]:
        if (
            not isinstance(self._format, FormatOptions)
            or type(self._format).terms is FormatOptions.terms
        ):
            return set()
        return {term for example in self._examples for term in self._format.terms(example)}

    def count(
        self,
        what: str,
        count: Callable[[Sequence[Example]], Iterable[int]],
        sides: Mapping[Split, RowCounts] | None = None,
    ) -> RowCounts:
        """Return a number per row, test rows included. `count` sees their labels too; the caller
        gets the numbers only. It is not called for rows whose number is in `sides`; a number below
        0 there stands for none."""
        numbers = np.full(len(self._examples), -1, dtype=np.int32)
        for side, own in (sides or {}).items():
            if len(own) == len(self._places[side]):
                numbers[self._places[side]] = own
        rest = np.flatnonzero(numbers < 0)
        if not len(rest):
            return numbers
        with self.stage(what, len(rest)) as progress:
            for start in range(0, len(rest), _BATCH):
                places = rest[start : start + _BATCH]
                numbers[places] = list(count(list(example_rows.take(self._examples, places))))
                progress.add(len(places))
        return numbers

    def unlabelled_test(self) -> Sequence[Example]:
        return example_rows.without_answers(self._test)

    def open_test(self, log_dir: Path, caller: str) -> TestSet:
        """Return test rows with labels. Each call adds a line to a log, and warns if the labels
        were opened before."""
        path = log_dir / f"{self.split_fingerprint[:16]}.jsonl"
        before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if before:
            callers = ", ".join(sorted(set(map(_caller, before))))
            log.warning(
                "the test labels of this split were opened %d time(s) before, by %s; a choice "
                "based on them is no longer a test",
                len(before),
                callers,
            )
        entry = {
            "time": datetime.now(UTC).isoformat(),
            "caller": caller,
            "split": self.split_fingerprint,
            "rows": len(self._test),
        }
        log_dir.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        return TestSet(self._test, len(before) + 1)


def _rows_on(
    side: Split, outlines: Sequence[Example], sides: Sequence[Split | None], config: DataConfig
) -> list[int]:
    """Return the positions of a side's rows, at most as many as the configuration allows."""
    option, limit = (
        ("data.limit", config.limit)
        if side == "train"
        else ("data.evaluation_rows", config.evaluation_rows)
    )
    rows = [row for row, row_side in enumerate(sides) if row_side == side]
    if limit is None:
        return rows
    own = [outlines[row] for row in rows]
    return [rows[at] for at in limit_rows(own, limit, config.split.seed, option, side)]


def _side(example: Example) -> Split:
    assert example.split in SPLITS, f"{example.id}: a row that a task brings names its side"
    return next(side for side in SPLITS if side == example.split)


def _identity(example: Example) -> list[Any]:
    """Return the fields of a row that count for the fingerprint. Rare fields are added only if the
    row has them, so that the fingerprints of older data sets stay valid."""
    fields: list[Any] = [example.id, example.text, sorted(example.labels)]
    if example.mentions or example.turns or example.response:
        fields += [*map(asdict, example.mentions), *map(asdict, example.turns), example.response]
    if example.questions:
        fields += [*map(asdict, example.questions), example.answers]
    return fields


def _caller(line: str) -> str:
    try:
        return str(json.loads(line)["caller"])
    except (ValueError, KeyError, TypeError):
        # A line that was cut off must neither hide an opening nor prevent this one.
        return "an unreadable entry"


def _fingerprint(
    source: ExampleSet,
    outlines: Sequence[Example],
    task_rows: Sequence[Example],
    *,
    is_as_read: bool,
) -> str:
    """Return the hash of all rows in sorted order. Ids are unique, so sorting the ids sorts the
    rows, and each text is read once."""
    if not isinstance(source.examples, Examples):
        return files.hash_text(
            sorted(json.dumps(_identity(example)) for example in (*source.examples, *task_rows))
        )
    assert source.folder is not None
    path = source.folder / "fingerprint"
    if is_as_read and not task_rows and path.exists():
        return path.read_text(encoding="utf-8")
    names = [json.dumps(example.id) for example in outlines]
    in_order = source.examples.take(sorted(range(len(names)), key=names.__getitem__))

    def rows() -> Iterator[str]:
        with stage("fingerprint", len(names)) as progress:
            for example in in_order:
                yield json.dumps(_identity(example))
                progress.add(1)

    fingerprint = files.hash_text(
        merge(rows(), sorted(json.dumps(_identity(example)) for example in task_rows))
    )
    if is_as_read and not task_rows:
        files.write(path, fingerprint.encode())
    return fingerprint


def load(config: DataConfig, bring: Bring | None = None) -> Dataset:
    """Read, split and correct a data set. `bring` returns a task's own rows for a number of
    training rows; each of them names its split."""
    source = reading.load(config.format)
    groups = _duplicates(source, config.near_duplicate)
    with _stage(source.folder, "split", len(source.examples)) as progress:
        sides = assign(
            example_rows.outlines(source.examples, config.split.group),
            config.split,
            groups.clusters,
        )
        progress.count = len(sides)
    if config.corrections is None:
        return Dataset(source, sides, groups, config, bring=bring)
    # The split balances labels, so a correction before it would move rows to other sides.
    correction = corrections.apply(
        source.examples, Path(config.corrections), getattr(config.format, "labels", None) or ()
    )
    return Dataset(
        replace(source, examples=correction.examples),
        sides,
        groups,
        config,
        correction.num_changed,
        bring,
    )


def _duplicates(source: ExampleSet, threshold: float) -> Duplicates:
    if not isinstance(source.examples, Examples):
        return duplicates.find(example_rows.texts(source.examples), threshold)
    num_rows = len(source.examples)
    with stage("near-duplicates, signing", num_rows) as progress:
        signatures = minhash.sign_table(
            source.examples.path, num_rows, minhash.band_width(threshold), progress
        )
    with stage("near-duplicates, comparing", num_rows) as progress:
        return duplicates.find(source.examples.texts(), threshold, signatures, progress)


def _stage(folder: Path | None, what: str, total: int) -> AbstractContextManager[Meter]:
    return stage(what, total) if folder else nullcontext(Meter.idle(total))
