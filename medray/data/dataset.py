"""A data set as a study uses it: read, checked, split, and its test labels behind one door."""

import json
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from heapq import merge
from itertools import chain
from pathlib import Path
from typing import Any

from medray.config.study import DataConfig
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
log = logging.getLogger(__name__)
_BATCH = 1024  # rows that are in memory at a time


@dataclass(frozen=True)
class TestSet:
    examples: Sequence[Example]
    num_openings: int  # this one included


class Dataset:
    """Rows by split. `train` and `validation` are open; test rows have no labels until
    `open_test`."""

    def __init__(
        self,
        held: ExampleSet,
        sides: Sequence[Split | None],
        found: Duplicates,
        config: DataConfig,
        num_corrected: int = 0,
        bring: Bring | None = None,
    ) -> None:
        outlines = example_rows.outlines(held.examples)
        by_side: dict[Split, Sequence[Example]] = {}
        for side in SPLITS:
            asked, most = (
                ("data.limit", config.limit)
                if side == "train"
                else ("data.evaluation_rows", config.evaluation_rows)
            )
            rows = [row for row, given in enumerate(sides) if given == side]
            if most is not None:
                rows = [
                    rows[at]
                    for at in limit_rows(
                        [outlines[row] for row in rows], most, config.split.seed, asked, side
                    )
                ]
            by_side[side] = example_rows.take(held.examples, rows)
        brought = bring(len(by_side["train"])) if bring else []
        self.task_row_ids = frozenset(example.id for example in brought)
        self.train, self.validation, self._test = (
            example_rows.followed_by(
                by_side[side], [example for example in brought if example.split == side]
            )
            for side in SPLITS
        )
        self._examples = example_rows.followed_by(held.examples, brought)
        self._duplicates, self._num_corrected, self._format = found, num_corrected, config.format
        self._num_empty, self._num_unlabelled = len(held.empty), len(held.unlabelled)
        self.folder = held.folder  # of what can be made again, where there is much of it
        twice = [example.id for example, side in zip(outlines, sides, strict=True) if side is None]
        self.set_aside = dict.fromkeys(held.empty, "empty text") | dict.fromkeys(
            held.unlabelled, "no label"
        )
        self.set_aside |= dict.fromkeys(twice, "duplicate of a given test or validation row")
        self.splits: dict[str, Split] = {
            e.id: side for e, side in zip(outlines, sides, strict=True) if side
        }
        self.splits |= {example.id: _side(example) for example in brought}
        self.fingerprint = _fingerprint(held, outlines, brought, is_as_read=not num_corrected)
        self.split_fingerprint = files.hash_text(
            part for row in sorted(self.splits.items()) for part in row
        )
        self._label_sets: dict[tuple[str, ...], Example] = {}
        for example in chain(outlines, brought):
            self._label_sets.setdefault(
                example.labels, Example(id="", text="", labels=example.labels, where=example.where)
            )

    def label_sets(self) -> list[Example]:
        """Each combination of labels that occurs, once, with the place it was first seen: what a
        task may learn from every split."""
        return list(self._label_sets.values())

    def audit(
        self, lengths: Mapping[str, Sequence[int]], max_length: int, constant_f1: ConstantF1
    ) -> Audit:
        """Figures about all rows; `lengths` are token counts as `count` gives them, by base
        model."""
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
        """Told of where there are many rows."""
        return _stage(self.folder, what, total)

    def _terms(self) -> set[str]:
        if (
            not isinstance(self._format, FormatOptions)
            or type(self._format).terms is FormatOptions.terms
        ):
            return set()
        return {term for example in self._examples for term in self._format.terms(example)}

    def count(
        self, what: str, count: Callable[[Sequence[Example]], Iterable[int]]
    ) -> Sequence[int]:
        """A number for each row, test rows and their answers included; nothing else of them is
        handed out."""
        numbers = array("i")
        with self.stage(what, len(self._examples)) as progress:
            for start in range(0, len(self._examples), _BATCH):
                some = list(self._examples[start : start + _BATCH])
                numbers.extend(count(some))
                progress.add(len(some))
        return numbers

    def unlabelled_test(self) -> Sequence[Example]:
        return example_rows.without_answers(self._test)

    def open_test(self, log_dir: Path, caller: str) -> TestSet:
        """The one way to test labels: says who asked, and warns when they were looked at before."""
        path = log_dir / f"{self.split_fingerprint[:16]}.jsonl"
        before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if before:
            callers = ", ".join(sorted(set(map(_caller, before))))
            log.warning(
                "the test labels of this split were opened %d time(s) before, by %s: what is "
                "chosen by them is no longer a test",
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


def _side(example: Example) -> Split:
    assert example.split in SPLITS, f"{example.id}: a row that a task brings names its side"
    return next(side for side in SPLITS if side == example.split)


def _identity(example: Example) -> list[Any]:
    """What a row is. What most rows do not have is told only where it is there, so that their
    fingerprints stay as they were."""
    held: list[Any] = [example.id, example.text, sorted(example.labels)]
    if example.mentions or example.turns or example.response:
        held += [*map(asdict, example.mentions), *map(asdict, example.turns), example.response]
    return held


def _caller(line: str) -> str:
    try:
        return str(json.loads(line)["caller"])
    except (ValueError, KeyError, TypeError):
        # half a line must not hide the opening, nor stop this one
        return "an entry that cannot be read"


def _fingerprint(
    held: ExampleSet, outlines: Sequence[Example], brought: Sequence[Example], *, is_as_read: bool
) -> str:
    """Of what every row is, in the order of that. Ids differ, so the order of ids is the order of
    rows, and a text is read once."""
    if not isinstance(held.examples, Examples):
        return files.hash_text(
            sorted(json.dumps(_identity(example)) for example in (*held.examples, *brought))
        )
    assert held.folder is not None
    known = held.folder / "fingerprint"
    if is_as_read and not brought and known.exists():
        return known.read_text(encoding="utf-8")
    names = [json.dumps(example.id) for example in outlines]
    in_order = held.examples.take(sorted(range(len(names)), key=names.__getitem__))

    def rows() -> Iterator[str]:
        with stage("fingerprint", len(names)) as progress:
            for example in in_order:
                yield json.dumps(_identity(example))
                progress.add(1)

    found = files.hash_text(
        merge(rows(), sorted(json.dumps(_identity(example)) for example in brought))
    )
    if is_as_read and not brought:
        files.write(known, found.encode())
    return found


def load(config: DataConfig, bring: Bring | None = None) -> Dataset:
    """`bring` gives rows of a task's own for a number of training rows; they are no part of the
    split, each names its side."""
    held = reading.load(config.format)
    found = _duplicates(held, config.near_duplicate)
    with _stage(held.folder, "split", len(held.examples)) as progress:
        sides = assign(
            example_rows.outlines(held.examples, config.split.group), config.split, found.clusters
        )
        progress.done = len(sides)
    if config.corrections is None:
        return Dataset(held, sides, found, config, bring=bring)
    # After the split, which balances labels: a correction must not deal the rows anew.
    corrected = corrections.apply(
        held.examples, Path(config.corrections), getattr(config.format, "labels", None) or ()
    )
    return Dataset(
        replace(held, examples=corrected.examples),
        sides,
        found,
        config,
        corrected.num_changed,
        bring,
    )


def _duplicates(held: ExampleSet, threshold: float) -> Duplicates:
    if not isinstance(held.examples, Examples):
        return duplicates.find(example_rows.texts(held.examples), threshold)
    num_rows = len(held.examples)
    with stage("near-duplicates, signing", num_rows) as progress:
        signed = minhash.sign_table(
            held.examples.path, num_rows, minhash.band_width(threshold), progress
        )
    with stage("near-duplicates, comparing", num_rows) as progress:
        return duplicates.find(held.examples.texts(), threshold, signed, progress)


def _stage(folder: Path | None, what: str, total: int) -> AbstractContextManager[Meter]:
    return stage(what, total) if folder else nullcontext(Meter.idle(total))
