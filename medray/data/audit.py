"""The audit of a data set before training: label balance, lengths, duplicates, and conflicts with
the accuracy ceiling that they set."""

import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medray.data.duplicates import Duplicates
from medray.data.meter import Meter
from medray.data.split import GIVEN_NAMES
from medray.text import language
from medray.types import Example, Question, Split

_LANGUAGE_ROWS = 2000  # size of the sample whose languages are guessed
_MOST_QUESTIONS = 50  # with other names
_NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d{1,15})?")
# Returns the macro F1 of one answer for all rows, from rows per label, the answer and their number.
ConstantF1 = Callable[[Mapping[str, int], tuple[str, ...], int], float]


@dataclass(frozen=True)
class TokenCounts:
    """Token counts of the texts for one tokenizer, with special tokens and before truncation."""

    mean: float
    median: float
    p95: float
    longest: int
    max_length: int
    num_over: int  # texts longer than max_length

    @classmethod
    def of(cls, lengths: npt.ArrayLike, max_length: int) -> "TokenCounts":
        values = np.array(lengths)
        return cls(
            round(float(values.mean()), 1),
            float(np.median(values)),
            float(np.percentile(values, 95)),
            int(values.max()),
            max_length,
            int((values > max_length).sum()),
        )


@dataclass(frozen=True)
class WordCounts:
    """Word counts of the texts, which do not depend on a tokenizer. Serving compares the length of
    a request's text with them."""

    p1: int
    p99: int

    @classmethod
    def of(cls, num_words: Sequence[int]) -> "WordCounts":
        low, high = np.percentile(num_words, (1, 99))
        return cls(int(low), math.ceil(high))


@dataclass(frozen=True, repr=False)
class Audit:
    """What the data of a study are like."""

    num_rows: int
    num_empty: int  # rows without a text, which are set aside
    labels: dict[str, int]
    splits: dict[str, int]
    tokens: dict[str, TokenCounts]  # per base model
    exact_groups: int
    exact_rows: int
    near_groups: int
    near_rows: int
    given_across: int  # groups of duplicates that are on two sides of the data's own split
    conflicting_texts: int  # texts that occur with different labels
    conflicting_rows: int
    accuracy_ceiling: float  # reached if each repeated text gets its most frequent label
    majority_label: str
    majority_accuracy: float
    majority_f1_macro: float
    num_corrected: int = 0  # labels replaced by data.corrections
    num_mentions: int = 0  # of annotated rows, whose labels are the kinds of their mentions
    terms: tuple[str, ...] = ()  # the vocabulary that the texts are made of, if there is one
    words: WordCounts | None = None
    languages: dict[str, int] = field(default_factory=dict)  # rows of a sample per language
    num_unlabelled: int = 0  # rows that drop_unlabelled leaves out
    # The number of right answers per option of each question, or per kind of many questions.
    questions: dict[str, dict[str, int]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __repr__(self) -> str:
        return self.render()

    def render(self) -> str:
        lines = [
            f"{self.num_rows} rows"
            + (f", {self.num_empty} with an empty text set aside" if self.num_empty else "")
            + (f", {self.num_unlabelled} without a label left out" if self.num_unlabelled else "")
            + (f", {self.num_corrected} with corrected labels" if self.num_corrected else ""),
            *(self._labels() if self.labels and not self.questions else []),
            *(f"question {name}: {_shares(counts)}" for name, counts in self.questions.items()),
            "splits: " + ", ".join(f"{side} {count}" for side, count in self.splits.items()),
            (
                f"duplicates: {self.exact_groups} texts occur {self.exact_rows} times, "
                f"{self.near_groups} groups of near duplicates hold {self.near_rows} rows"
            )
            + (
                f"; {self.given_across} groups are on two sides of the given split"
                if self.given_across
                else "; no group is on two sides of the split"
            ),
            *(self._ceilings() if self._has_classes else []),
        ]
        for source, tokens in self.tokens.items():
            lines.append(
                f"tokens ({source}): mean {tokens.mean:.0f}, median {tokens.median:.0f}, p95 "
                f"{tokens.p95:.0f}, longest {tokens.longest};"
                f" {tokens.num_over} texts ({tokens.num_over / self.num_rows:.1%}) are longer than "
                f"{tokens.max_length}"
            )
        return "\n".join(lines)

    @property
    def _has_classes(self) -> bool:
        return bool(self.labels) and not self.num_mentions and not self.questions

    def _labels(self) -> list[str]:
        what = (
            f"{self.num_mentions} mentions, rows with each kind: "
            if self.num_mentions
            else "labels: "
        )
        alike = "; ".join(" and ".join(map(repr, labels)) for labels in alike_labels(self.labels))
        return [
            what
            + ", ".join(
                f"{label} {count} ({count / self.num_rows:.1%})"
                for label, count in self.labels.items()
            ),
            *([f"labels that differ in spelling alone: {alike}"] if alike else []),
        ]

    def _ceilings(self) -> list[str]:
        share = self.conflicting_rows / self.num_rows
        return [
            (
                f"conflicts: {self.conflicting_texts} texts have different labels, "
                f"{self.conflicting_rows} rows ({share:.1%}); no classifier gets more than "
                f"{self.accuracy_ceiling:.1%} of the rows right"
            ),
            (
                f"always answering {self.majority_label!r}: accuracy {self.majority_accuracy:.3f}, "
                f"f1_macro {self.majority_f1_macro:.3f}"
            ),
        ]


def alike_labels(labels: Iterable[str]) -> list[list[str]]:
    """Group labels that differ only in case or blanks, or are the same number. Each group is most
    likely one class in several spellings."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        plain = " ".join(label.casefold().split())
        groups.setdefault(str(float(plain)) if _NUMBER.fullmatch(plain) else plain, []).append(
            label
        )
    return [sorted(group) for group in groups.values() if len(group) > 1]


@dataclass
class _Tally:
    """Counts over rows, of which none is kept."""

    labels: Counter[str] = field(default_factory=Counter)
    sets: Counter[tuple[str, ...]] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    num_words: "array[int]" = field(default_factory=lambda: array("l"))
    num_mentions: int = 0
    questions: dict[str, Counter[str]] = field(default_factory=dict)
    kinds: dict[str, Counter[str]] = field(default_factory=dict)  # of questions

    def add(self, example: Example, *, with_language: bool) -> None:
        self.labels.update(example.labels)
        self.sets[_labels(example)] += 1
        self.num_words.append(len(example.text.split()))
        self.num_mentions += len(example.mentions)
        for question, shares in zip(example.questions, example.answers, strict=False):
            if shares:
                self._add_answer(question, shares)
        if with_language:
            self.languages[language.guess(example.text)] += 1

    def _add_answer(self, question: Question, shares: Sequence[float]) -> None:
        self.kinds.setdefault(question.kind, Counter())["answers"] += 1
        if len(self.questions) <= _MOST_QUESTIONS:
            counts = self.questions.setdefault(
                question.name, Counter(dict.fromkeys(question.values, 0))
            )
            counts[question.values[shares.index(max(shares))]] += 1

    def answers(self) -> dict[str, dict[str, int]]:
        """Return the counts per question, or per kind if there are too many questions."""
        groups = self.questions if len(self.questions) <= _MOST_QUESTIONS else self.kinds
        return {name: dict(counts) for name, counts in groups.items()}


def audit(
    examples: Sequence[Example],
    duplicates: Duplicates,
    splits: Mapping[str, Split],
    *,
    num_empty: int = 0,
    num_unlabelled: int = 0,
    num_corrected: int = 0,
    lengths: Mapping[str, npt.ArrayLike] | None = None,
    max_length: int = 512,
    constant_f1: ConstantF1,
    terms: Iterable[str] = (),
    progress: Meter | None = None,
) -> Audit:
    """Audit a data set in one pass. `lengths` are token counts of all examples per base model; a
    combination of several labels counts as one label."""
    groups, alike = duplicates.exact, _clusters(duplicates)
    in_several = {row for rows in (*groups, *alike) for row in rows}
    outlines: dict[int, Example] = {}  # duplicates, without their texts
    tally, step = _Tally(), math.ceil(len(examples) / _LANGUAGE_ROWS)
    for row, example in enumerate(examples):  # one pass: millions of rows may be on disk
        tally.add(example, with_language=row % step == 0)
        if row in in_several:
            outlines[row] = replace(example, text="", metadata={})
        if progress:
            progress.add(1)
    conflicting = [rows for rows in groups if len({_labels(outlines[row]) for row in rows}) > 1]
    num_wrong = sum(
        len(rows) - max(Counter(_labels(outlines[row]) for row in rows).values())
        for rows in conflicting
    )
    majority, most = max(tally.sets.items(), key=lambda item: (item[1], _label_name(item[0])))
    share = most / len(examples)
    sides = Counter(splits.values())
    return Audit(
        num_rows=len(examples),
        num_empty=num_empty,
        num_unlabelled=num_unlabelled,
        labels=dict(sorted(tally.labels.items())),
        splits={side: sides[side] for side in ("train", "validation", "test")},
        tokens={
            source: TokenCounts.of(counts, max_length) for source, counts in (lengths or {}).items()
        },
        exact_groups=len(groups),
        exact_rows=sum(map(len, groups)),
        near_groups=len(duplicates.near),
        near_rows=sum(map(len, duplicates.near)),
        given_across=sum(
            len({_given_side(outlines[row]) for row in rows} - {None}) > 1 for rows in alike
        ),
        conflicting_texts=len(conflicting),
        conflicting_rows=sum(map(len, conflicting)),
        accuracy_ceiling=1 - num_wrong / len(examples),
        majority_label=_label_name(majority),
        majority_accuracy=share,
        majority_f1_macro=constant_f1(tally.labels, majority, len(examples)),
        num_corrected=num_corrected,
        num_mentions=tally.num_mentions,
        terms=tuple(sorted(set(terms))),
        words=WordCounts.of(tally.num_words),
        languages=dict(tally.languages),
        questions=tally.answers(),
    )


def _shares(counts: Mapping[str, int]) -> str:
    num = sum(counts.values())
    return ", ".join(f"{value} {count} ({count / num:.1%})" for value, count in counts.items())


def _given_side(example: Example) -> str | None:
    name = example.split and example.split.strip().lower()
    return GIVEN_NAMES.get(name, name) if name else None


def _labels(example: Example) -> tuple[str, ...]:
    return tuple(sorted(example.labels))


def _label_name(labels: tuple[str, ...]) -> str:
    return " + ".join(labels) or "no label"


def _clusters(duplicates: Duplicates) -> list[list[int]]:
    """Return the clusters of more than one row."""
    sizes = np.bincount(np.array(duplicates.clusters, dtype=np.int64))
    rows: dict[int, list[int]] = {}
    for row, cluster in enumerate(duplicates.clusters):
        if sizes[cluster] > 1:
            rows.setdefault(cluster, []).append(row)
    return list(rows.values())
