"""Which side each row is on. Pure, and decided by hashes of row ids, so file order and machine
change nothing.

One algorithm serves all kinds: groups of rows that must stay together (duplicates, equal group
values) are dealt out, the largest and those with the rarest labels first, each to the side that
still lacks most of its rarest label."""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from medray.config.study import SplitConfig
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
RowGroup = list[int]  # positions of rows that stay together


def assign(
    examples: Sequence[Example], config: SplitConfig, clusters: Sequence[int]
) -> list[Split | None]:
    """A side for every row; None sets a row aside, because a duplicate of it stands on a given test
    or validation side."""
    groups = _groups(examples, clusters, config.group)
    if config.kind == "given":
        sides = _given(examples, clusters, config)
    elif config.kind == "kfold":
        if len(groups) < config.folds:
            raise DataError(
                f"{config.folds} folds need as many groups of rows that stay together; there are "
                f"{len(groups)}"
            )
        folds = _deal(
            examples,
            groups,
            {str(fold): 1 / config.folds for fold in range(config.folds)},
            config.seed,
        )
        fold = str(
            config.fold or 0
        )  # of pooled folds the first is the one that settings are searched on
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
        dealt = _deal(examples, groups, shares, config.seed)
        sides = [_side(dealt[row]) for row in range(len(examples))]
    _check_enough(examples, sides)
    return sides


def limit_rows(
    examples: Sequence[Example],
    limit: int,
    seed: int,
    asked: str = "data.limit",
    side: Split = "train",
) -> list[int]:
    """Positions of at most `limit` examples in their order, labels in proportion; a smaller limit
    keeps a part of a larger one's rows."""
    if limit >= len(examples):
        return list(range(len(examples)))
    order = sorted(range(len(examples)), key=lambda row: _hash(seed, "limit", examples[row].id))
    first = _a_row_of_each_label(examples, order)
    if limit < len(first):
        raise DataError(
            f"{asked} {limit} is too small: a {side} row of every label takes {len(first)}"
        )
    queues: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row in order:
        queues[examples[row].labels].append(row)
    # The k-th of a label's n rows stands at (k + 1/2) / n of the way: a prefix of this order holds
    # every label in proportion.
    placed = [
        ((k + 0.5) / len(queue), labels, row)
        for labels, queue in queues.items()
        for k, row in enumerate(queue)
    ]
    kept = set(list(dict.fromkeys([*first, *(row for _, _, row in sorted(placed))]))[:limit])
    return sorted(kept)


def _a_row_of_each_label(examples: Sequence[Example], order: Sequence[int]) -> list[int]:
    counts = Counter(label for example in examples for label in example.labels)
    chosen: list[int] = []
    for label in sorted(counts, key=lambda label: (counts[label], label)):
        if not any(label in examples[row].labels for row in chosen):
            chosen.append(next(row for row in order if label in examples[row].labels))
    return chosen


def _groups(
    examples: Sequence[Example], clusters: Sequence[int], column: str | None
) -> list[RowGroup]:
    """Rows joined by a duplicate cluster or by an equal value of the group column."""
    members: dict[int, RowGroup] = defaultdict(list)
    if column is None:
        for row, cluster in enumerate(clusters):
            members[cluster].append(row)
        return list(members.values())
    parent = list(range(len(examples)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first_with: dict[tuple[str, object], int] = {}
    for row, example in enumerate(examples):
        if column not in example.metadata:
            raise DataError(
                f"{example.where or example.id}: has no metadata {column!r} (data.split.group); "
                f"{suggest(column, example.metadata)}"
            )
        for key in (("cluster", clusters[row]), ("group", example.metadata[column])):
            parent[root(row)] = root(first_with.setdefault(key, row))
    for row in range(len(examples)):
        members[root(row)].append(row)
    return list(members.values())


def _deal(
    examples: Sequence[Example], groups: Sequence[RowGroup], shares: Mapping[str, float], seed: int
) -> dict[int, str]:
    """Iterative stratification over groups: row -> side."""
    known: dict[
        tuple[str, ...], Counter[str]
    ] = {}  # a million groups of one row have few sets of labels
    labels_of = [_count(examples, group, known) for group in groups]
    counts: Counter[str] = Counter()
    for held in labels_of:
        counts.update(held)
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

    dealt: dict[int, str] = {}
    trained: set[str] = set()
    ordered = sorted(range(len(groups)), key=order)
    for number in ordered:
        labels = labels_of[number]
        rarest = min(labels, key=lambda label: (counts[label], label))
        need = {side: (lacking[side][rarest], lacking_rows[side], side) for side in shares}
        # A label's first group trains: what no row teaches cannot be judged.
        side = (
            "train"
            if "train" in shares and labels.keys() - trained
            else max(shares, key=need.__getitem__)
        )
        trained |= labels.keys() if side == "train" else set()
        dealt[number] = side
        move(number, side, 1)

    # The roundings of many small labels add up to shares nobody asked for: groups change sides
    # where that evens them out, from a side that has its share of each of their labels to one that
    # has not.
    for number in reversed(ordered):
        here, there = dealt[number], max(shares, key=lambda side: (lacking_rows[side], side))
        helps = lacking_rows[there] - lacking_rows[here] > len(groups[number])
        fits = all(
            lacking[here][label] <= 0 <= lacking[there][label] for label in labels_of[number]
        )
        if helps and fits and not (here == "train" and is_last_to_train(number)):
            dealt[number] = there
            move(number, here, -1)
            move(number, there, 1)
    return {row: side for number, side in dealt.items() for row in groups[number]}


def _count(
    examples: Sequence[Example], group: RowGroup, known: dict[tuple[str, ...], Counter[str]]
) -> Counter[str]:
    labels = tuple(label for row in group for label in _labels(examples[row]))
    if labels not in known:
        known[labels] = Counter(labels)
    return known[labels]


def _given(
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
    for protected in ("test", "validation"):
        taken = {clusters[row] for row, side in enumerate(sides) if side == protected}
        others = ("train", "validation") if protected == "test" else ("train",)
        for row, side in enumerate(sides):
            if side in others and clusters[row] in taken:
                sides[row] = None
    num_aside = sides.count(None)
    if num_aside:
        log.warning(
            "%d given row(s) are duplicates of test or validation rows and are set aside", num_aside
        )
    if "validation" not in sides:
        rows = [row for row, side in enumerate(sides) if side == "train"]
        chosen = [examples[row] for row in rows]
        groups = _groups(chosen, [clusters[row] for row in rows], None)
        dealt = _deal(
            chosen,
            groups,
            {"train": 1 - config.validation, "validation": config.validation},
            config.seed,
        )
        for position, row in enumerate(rows):
            sides[row] = _side(dealt[position])
        log.warning(
            "no validation rows are given: %d of the training rows are taken for it",
            sides.count("validation"),
        )
    return sides


def _check_enough(examples: Sequence[Example], sides: Sequence[Split | None]) -> None:
    counts = Counter(sides)
    for side in ("train", "validation", "test"):
        if not counts[side]:
            found = ", ".join(f"{name} {counts[name]}" for name in ("train", "validation", "test"))
            raise DataError(f"{len(examples)} rows are fewer than the splits need: {found}")
    on_side = {
        (label, side)
        for example, side in zip(examples, sides, strict=True)
        for label in example.labels
    }
    labels = sorted({label for label, _ in on_side})
    untrained = [label for label in labels if (label, "train") not in on_side]
    if untrained:
        raise DataError(
            f"label {untrained[0]!r} has too few rows for the splits: none of them is a training "
            "row"
        )
    for side in ("validation", "test"):
        unseen = [label for label in labels if (label, side) not in on_side]
        if unseen:
            log.warning(
                "%s holds no row of %d label(s): %s", side, len(unseen), ", ".join(unseen[:10])
            )


def _labels(example: Example) -> tuple[str, ...]:
    return example.labels or ("",)  # rows without a label are dealt out like a class of their own


def _hash(seed: int, purpose: str, row_id: str) -> bytes:
    return hashlib.sha256(
        f"{seed}\x00{purpose}\x00{row_id}".encode("utf-8", "surrogatepass")
    ).digest()


def _side(name: str) -> Split:
    return GIVEN_NAMES[name]
