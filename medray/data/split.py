"""Assigns each row to a side of the split. Hashes of row ids decide, so the order of the file and
the machine have no effect.

One algorithm serves all kinds of splits. It deals out groups of rows that must stay together
(duplicates, equal values of the group column), the largest and those with the rarest labels first.
Each group goes to the side that lacks most of the group's rarest label."""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from medray.config.trial import SplitConfig
from medray.data.duplicates import find_root
from medray.errors import DataError, suggest
from medray.types import Example, Split

log = logging.getLogger(__name__)
GIVEN_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "development": "validation",
    "test": "test",
}
RowGroup = list[int]  # positions of rows that must be on the same side


def assign(
    examples: Sequence[Example], config: SplitConfig, clusters: Sequence[int]
) -> list[Split | None]:
    """Return a side per row. None sets a row aside, because a given test or validation row is a
    duplicate of it."""
    groups = _groups(examples, clusters, config.group)
    if config.kind == "given":
        sides = _given_sides(examples, clusters, config)
    elif config.kind == "kfold":
        if len(groups) < config.folds:
            raise DataError(
                f"data.split.folds: {config.folds} folds need at least as many groups of rows that "
                f"stay together, and there are {len(groups)}; use fewer folds"
            )
        folds = _deal(
            examples,
            groups,
            {str(fold): 1 / config.folds for fold in range(config.folds)},
            config.seed,
        )
        fold = str(config.fold or 0)  # the search of pooled folds runs on the first one
        rest = [group for group in groups if folds[group[0]] != fold]
        inner = _deal(
            examples,
            rest,
            {"train": 1 - config.validation, "validation": config.validation},
            config.seed,
        )
        sides = [_side(inner.get(row, "test")) for row in range(len(examples))]
    else:
        shares = {
            "train": 1 - config.validation - config.test,
            "validation": config.validation,
            "test": config.test,
        }
        side_of = _deal(examples, groups, shares, config.seed)
        sides = [_side(side_of[row]) for row in range(len(examples))]
    _check_enough(examples, sides)
    return sides


def limit_rows(
    examples: Sequence[Example],
    limit: int,
    seed: int,
    option: str = "data.limit",
    side: Split = "train",
) -> list[int]:
    """Return positions of at most `limit` examples, with labels in proportion. A smaller limit
    keeps a subset of a larger one's rows."""
    if limit >= len(examples):
        return list(range(len(examples)))
    order = sorted(range(len(examples)), key=lambda row: _hash(seed, "limit", examples[row].id))
    first = _row_per_label(examples, order)
    if limit < len(first):
        raise DataError(
            f"{option}: {limit} is too small; a {side} row of every label needs {len(first)}"
        )
    queues: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row in order:
        queues[examples[row].labels].append(row)
    # The k-th of a label's n rows has the position (k + 1/2) / n, so any prefix of the order holds
    # the labels in proportion.
    positions = [
        ((k + 0.5) / len(queue), labels, row)
        for labels, queue in queues.items()
        for k, row in enumerate(queue)
    ]
    rows = set(list(dict.fromkeys([*first, *(row for _, _, row in sorted(positions))]))[:limit])
    return sorted(rows)


def _row_per_label(examples: Sequence[Example], order: Sequence[int]) -> list[int]:
    counts = Counter(label for example in examples for label in example.labels)
    rows: list[int] = []
    for label in sorted(counts, key=lambda label: (counts[label], label)):
        if not any(label in examples[row].labels for row in rows):
            rows.append(next(row for row in order if label in examples[row].labels))
    return rows


def _groups(
    examples: Sequence[Example], clusters: Sequence[int], column: str | None
) -> list[RowGroup]:
    """Group rows that share a duplicate cluster or a value of the group column."""
    members: dict[int, RowGroup] = defaultdict(list)
    if column is None:
        for row, cluster in enumerate(clusters):
            members[cluster].append(row)
        return list(members.values())
    parents = list(range(len(examples)))
    first_with: dict[tuple[str, object], int] = {}
    for row, example in enumerate(examples):
        if column not in example.metadata:
            raise DataError(
                f"{example.where or example.id}: has no metadata {column!r} (data.split.group); "
                f"{suggest(column, example.metadata)}"
            )
        for key in (("cluster", clusters[row]), ("group", example.metadata[column])):
            parents[find_root(parents, row)] = find_root(parents, first_with.setdefault(key, row))
    for row in range(len(examples)):
        members[find_root(parents, row)].append(row)
    return list(members.values())


def _deal(
    examples: Sequence[Example], groups: Sequence[RowGroup], shares: Mapping[str, float], seed: int
) -> dict[int, str]:
    """Deal groups out by iterative stratification; return the side per row."""
    # A million groups of one row have few combinations of labels.
    cache: dict[tuple[str, ...], Counter[str]] = {}
    labels_of = [_count(examples, group, cache) for group in groups]
    counts: Counter[str] = Counter()
    for group_labels in labels_of:
        counts.update(group_labels)
    num_rows = sum(map(len, groups))
    lacking = {
        side: {label: share * count for label, count in counts.items()}
        for side, share in shares.items()
    }
    lacking_rows = {side: share * num_rows for side, share in shares.items()}

    def order(number: int) -> tuple[int, int, bytes]:
        rarest = min(counts[label] for label in labels_of[number])
        return (
            -len(groups[number]),
            rarest,
            min(_hash(seed, "split", examples[row].id) for row in groups[number]),
        )

    def move(number: int, side: str, sign: int) -> None:
        lacking_rows[side] -= sign * len(groups[number])
        for label, count in labels_of[number].items():
            lacking[side][label] -= sign * count

    def is_last_to_train(number: int) -> bool:
        return any(
            shares["train"] * counts[label] - lacking["train"][label] < n + 0.5
            for label, n in labels_of[number].items()
        )

    side_of: dict[int, str] = {}
    train_labels: set[str] = set()
    numbers = sorted(range(len(groups)), key=order)
    for number in numbers:
        labels = labels_of[number]
        rarest = min(labels, key=lambda label: (counts[label], label))
        need = {side: (lacking[side][rarest], lacking_rows[side], side) for side in shares}
        # The first group of a label goes to training: without it the label could not be learned.
        side = (
            "train"
            if "train" in shares and labels.keys() - train_labels
            else max(shares, key=need.__getitem__)
        )
        train_labels |= labels.keys() if side == "train" else set()
        side_of[number] = side
        move(number, side, 1)

    # Rounding errors of many rare labels add up and distort the shares. So a group moves from a
    # side that has its share of each of the group's labels to one that lacks them, if this evens
    # out the shares.
    for number in reversed(numbers):
        here, there = side_of[number], max(shares, key=lambda side: (lacking_rows[side], side))
        helps = lacking_rows[there] - lacking_rows[here] > len(groups[number])
        fits = all(
            lacking[here][label] <= 0 <= lacking[there][label] for label in labels_of[number]
        )
        if helps and fits and not (here == "train" and is_last_to_train(number)):
            side_of[number] = there
            move(number, here, -1)
            move(number, there, 1)
    return {row: side for number, side in side_of.items() for row in groups[number]}


def _count(
    examples: Sequence[Example], group: RowGroup, cache: dict[tuple[str, ...], Counter[str]]
) -> Counter[str]:
    labels = tuple(label for row in group for label in _labels(examples[row]))
    if labels not in cache:
        cache[labels] = Counter(labels)
    return cache[labels]


def _given_sides(
    examples: Sequence[Example], clusters: Sequence[int], config: SplitConfig
) -> list[Split | None]:
    sides: list[Split | None] = []
    for example in examples:
        if example.split is None or example.split.strip().lower() not in GIVEN_NAMES:
            raise DataError(
                f"{example.where or example.id}: split {example.split!r:.60} is not known; "
                f"{suggest(example.split, GIVEN_NAMES)}"
            )
        sides.append(GIVEN_NAMES[example.split.strip().lower()])
    for side_to_keep in ("test", "validation"):
        own_clusters = {clusters[row] for row, side in enumerate(sides) if side == side_to_keep}
        others = ("train", "validation") if side_to_keep == "test" else ("train",)
        for row, side in enumerate(sides):
            if side in others and clusters[row] in own_clusters:
                sides[row] = None
    num_aside = sides.count(None)
    if num_aside:
        log.warning(
            "%d given row(s) are set aside as duplicates of test or validation rows", num_aside
        )
    if "validation" not in sides:
        rows = [row for row, side in enumerate(sides) if side == "train"]
        train_examples = [examples[row] for row in rows]
        groups = _groups(train_examples, [clusters[row] for row in rows], None)
        side_of = _deal(
            train_examples,
            groups,
            {"train": 1 - config.validation, "validation": config.validation},
            config.seed,
        )
        for position, row in enumerate(rows):
            sides[row] = _side(side_of[position])
        log.warning(
            "the data gives no validation rows: %d training rows are used as such",
            sides.count("validation"),
        )
    return sides


def _check_enough(examples: Sequence[Example], sides: Sequence[Split | None]) -> None:
    counts = Counter(sides)
    for side in ("train", "validation", "test"):
        if not counts[side]:
            row_counts = ", ".join(
                f"{name} {counts[name]}" for name in ("train", "validation", "test")
            )
            raise DataError(
                f"data.split: {len(examples)} rows are too few for the splits ({row_counts}); "
                "give more rows or other shares"
            )
    on_side = {
        (label, side)
        for example, side in zip(examples, sides, strict=True)
        for label in example.labels
    }
    labels = sorted({label for label, _ in on_side})
    missing = [label for label in labels if (label, "train") not in on_side]
    if missing:
        raise DataError(
            f"data.split: label {missing[0]!r} has no training row; give it more rows or leave "
            "it out"
        )
    for side in ("validation", "test"):
        unseen = [label for label in labels if (label, side) not in on_side]
        if unseen:
            log.warning(
                "%s has no row of %d label(s): %s", side, len(unseen), ", ".join(unseen[:10])
            )


def _labels(example: Example) -> tuple[str, ...]:
    return example.labels or ("",)  # rows without a label are dealt out as one more class


def _hash(seed: int, purpose: str, row_id: str) -> bytes:
    return hashlib.sha256(
        f"{seed}\x00{purpose}\x00{row_id}".encode("utf-8", "surrogatepass")
    ).digest()


def _side(name: str) -> Split:
    return GIVEN_NAMES[name]
