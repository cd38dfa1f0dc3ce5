"""A data set as a study uses it: read, checked, split, and its test labels behind one door."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medray import storage
from medray.data import corrections, duplicates
from medray.data.audit import Audit, audit
from medray.data.base import SPLITS, Example, Split, read
from medray.data.duplicates import Duplicates
from medray.data.formats.base import FormatOptions
from medray.data.split import assign, limit_rows
from medray.errors import DataError
from medray.sections import DataConfig

Bring = Callable[[int], Sequence[Example]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    examples: list[Example]
    num_openings: int  # this one included


class Dataset:
    """Rows by split. `train` and `validation` are open; test rows have no labels until `open_test`."""

    def __init__(
        self,
        examples: Sequence[Example],
        sides: Sequence[Split | None],
        found: Duplicates,
        empty: Sequence[str],
        config: DataConfig,
        num_corrected: int = 0,
        bring: Bring | None = None,
    ) -> None:
        by_side: dict[Split | None, list[Example]] = {side: [] for side in (*SPLITS, None)}
        for example, side in zip(examples, sides, strict=True):
            by_side[side].append(example)
        limit = len(examples) if config.limit is None else config.limit
        self.train = limit_rows(by_side["train"], limit, config.split.seed)
        most = len(examples) if config.evaluation_rows is None else config.evaluation_rows
        self.validation = limit_rows(by_side["validation"], most, config.split.seed)
        self._test = limit_rows(by_side["test"], most, config.split.seed)
        brought = bring(len(self.train)) if bring else []
        for held, side in ((self.train, "train"), (self.validation, "validation"), (self._test, "test")):
            held += [example for example in brought if example.split == side]
        examples, sides = [*examples, *brought], [*sides, *map(_side, brought)]
        self._examples, self._duplicates, self._num_empty, self._num_corrected = examples, found, len(empty), num_corrected
        self._format = config.format
        self.set_aside = dict.fromkeys(empty, "empty text") | {e.id: "duplicate of a given test or validation row" for e in by_side[None]}
        self.splits: dict[str, Split] = {e.id: side for e, side in zip(examples, sides, strict=True) if side}
        self.fingerprint = storage.hash_text(sorted(json.dumps(_identity(example)) for example in examples))
        self.split_fingerprint = storage.hash_text(part for row in sorted(self.splits.items()) for part in row)

    def label_sets(self) -> list[Example]:
        """Each combination of labels that occurs, once, with the place it was first seen: what a task may learn from every split."""
        seen: dict[tuple[str, ...], Example] = {}
        for example in self._examples:
            seen.setdefault(example.labels, Example(id="", text="", labels=example.labels, where=example.where))
        return list(seen.values())

    def audit(self, lengths: Mapping[str, Sequence[int]], max_length: int) -> Audit:
        """Figures about all rows; `lengths` are token counts in the order of `texts`, by base model."""
        return audit(
            self._examples,
            self._duplicates,
            self.splits,
            num_empty=self._num_empty,
            num_corrected=self._num_corrected,
            lengths=lengths,
            max_length=max_length,
            terms=self._terms(),
        )

    def _terms(self) -> set[str]:
        if not isinstance(self._format, FormatOptions):
            return set()
        return {term for example in self._examples for term in self._format.terms(example)}

    def texts(self) -> list[str]:
        return [example.text for example in self._examples]

    def unlabelled_test(self) -> list[Example]:
        return [example.unlabelled() for example in self._test]

    def open_test(self, log_dir: Path, caller: str) -> Opened:
        """The one way to test labels: says who asked, and warns when they were looked at before."""
        path = log_dir / f"{self.split_fingerprint[:16]}.jsonl"
        before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if before:
            callers = ", ".join(sorted(set(map(_caller, before))))
            log.warning(
                "the test labels of this split were opened %d time(s) before, by %s: what is chosen by them is no longer a test",
                len(before),
                callers,
            )
        entry = {"time": datetime.now(UTC).isoformat(), "caller": caller, "split": self.split_fingerprint, "rows": len(self._test)}
        log_dir.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        return Opened(list(self._test), len(before) + 1)


def _side(example: Example) -> Split:
    assert example.split in SPLITS, f"{example.id}: a row that a task brings names its side"
    return next(side for side in SPLITS if side == example.split)


def _identity(example: Example) -> list[Any]:
    """What a row is. What most rows do not have is told only where it is there, so that their fingerprints stay as they were."""
    held: list[Any] = [example.id, example.text, sorted(example.labels)]
    if example.mentions or example.turns or example.response:
        held += [*map(asdict, example.mentions), *map(asdict, example.turns), example.response]
    return held


def _caller(line: str) -> str:
    try:
        return str(json.loads(line)["caller"])
    except (ValueError, KeyError, TypeError):
        return "an entry that cannot be read"  # half a line must not hide the opening, nor stop this one


def load(config: DataConfig, bring: Bring | None = None) -> Dataset:
    """`bring` gives rows of a task's own for a number of training rows; they are no part of the split, each names its side."""
    examples, empty = _read(config)
    if not examples:
        raise DataError("the data has no row with a text")
    found = duplicates.find([example.text for example in examples], config.near_duplicate)
    sides = assign(examples, config.split, found.clusters)
    if config.corrections is None:
        return Dataset(examples, sides, found, empty, config, bring=bring)
    # After the split, which balances labels: a correction must not deal the rows anew.
    corrected = corrections.apply(examples, Path(config.corrections), getattr(config.format, "labels", None) or ())
    return Dataset(corrected.examples, sides, found, empty, config, corrected.num_changed, bring)


def _read(config: DataConfig) -> tuple[list[Example], list[str]]:
    examples: list[Example] = []
    seen_at: dict[str, str] = {}
    empty: list[str] = []
    for example in read(config.format):
        if example.id in seen_at:
            raise DataError(f"{example.where}: id {example.id!r} was used before, at {seen_at[example.id]}")
        seen_at[example.id] = example.where
        if example.text.strip():
            examples.append(example)
        else:
            empty.append(example.id)
    if empty:
        log.warning("%d row(s) have an empty text and are set aside", len(empty))
    return examples, empty
