"""Which side each row is on. Pure, and decided by hashes of row ids, so file order and machine change nothing.

One algorithm serves all kinds: groups of rows that must stay together (duplicates, equal group values) are dealt out,
those with the rarest labels first, each to the side that still lacks most of its labels.
"""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from medray.config import SplitConfig
from medray.data.base import Example, Split
from medray.errors import DataError, allowed

log = logging.getLogger(__name__)
_GIVEN: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "development": "validation",
    "test": "test",
}
Group = list[int]  # positions of rows that stay together


def assign(examples: Sequence[Example], config: SplitConfig, clusters: Sequence[int]) -> list[Split | None]:
    """A side for every row; None sets a row aside, because a duplicate of it stands on a given test or validation side."""
    groups = _groups(examples, clusters, config.group)
    if config.kind == "given":
        sides = _given(examples, clusters, config)
    elif config.kind == "kfold":
        if len(groups) < config.folds:
            raise DataError(f"{config.folds} folds need as many groups of rows that stay together; there are {len(groups)}")
        folds = _deal(examples, groups, {str(fold): 1 / config.folds for fold in range(config.folds)}, config.seed)
        rest = [group for group in groups if folds[group[0]] != str(config.fold)]
        inner = _deal(examples, rest, {"train": 1 - config.validation, "validation": config.validation}, config.seed)
        sides = [_side(inner.get(row, "test")) for row in range(len(examples))]
    else:
        shares = {"train": 1 - config.validation - config.test, "validation": config.validation, "test": config.test}
        dealt = _deal(examples, groups, shares, config.seed)
        sides = [_side(dealt[row]) for row in range(len(examples))]
    _check_enough(examples, sides)
    return sides


def limit_rows(examples: Sequence[Example], limit: int, seed: int) -> list[Example]:
    """At most `limit` examples in their order, labels in proportion; a smaller limit keeps a part of a larger one's rows."""
    if limit >= len(examples):
        return list(examples)
    queues: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row in sorted(range(len(examples)), key=lambda row: _hash(seed, "limit", examples[row].id)):
        queues[examples[row].labels].append(row)
    # The k-th of a label's n rows stands at (k + 1/2) / n of the way: a prefix of this order holds every label in proportion.
    placed = [((k + 0.5) / len(queue), labels, row) for labels, queue in queues.items() for k, row in enumerate(queue)]
    kept = {row for _, _, row in sorted(placed)[:limit]}
    return [example for row, example in enumerate(examples) if row in kept]


def _groups(examples: Sequence[Example], clusters: Sequence[int], column: str | None) -> list[Group]:
    """Rows joined by a duplicate cluster or by an equal value of the group column."""
    parent = list(range(len(examples)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first_with: dict[tuple[str, object], int] = {}
    for row, example in enumerate(examples):
        keys: list[tuple[str, object]] = [("cluster", clusters[row])]
        if column is not None:
            if column not in example.metadata:
                raise DataError(
                    f"{example.where or example.id}: has no metadata {column!r} (data.split.group); {allowed(column, example.metadata)}"
                )
            keys.append(("group", example.metadata[column]))
        for key in keys:
            parent[root(row)] = root(first_with.setdefault(key, row))
    members: dict[int, Group] = defaultdict(list)
    for row in range(len(examples)):
        members[root(row)].append(row)
    return list(members.values())


def _deal(examples: Sequence[Example], groups: Sequence[Group], shares: Mapping[str, float], seed: int) -> dict[int, str]:
    """Iterative stratification over groups: row -> side."""
    counts = Counter(label for group in groups for row in group for label in _labels(examples[row]))
    num_rows = sum(map(len, groups))
    lacking = {side: {label: share * count for label, count in counts.items()} for side, share in shares.items()}
    lacking_rows = {side: share * num_rows for side, share in shares.items()}

    def order(group: Group) -> tuple[int, int, str]:
        rarest = min(counts[label] for row in group for label in _labels(examples[row]))
        return (-len(group), rarest, min(_hash(seed, "split", examples[row].id) for row in group))

    dealt: dict[int, str] = {}
    for group in sorted(groups, key=order):
        labels = Counter(label for row in group for label in _labels(examples[row]))
        rarest = min(labels, key=lambda label: (counts[label], label))

        def need(side: str, rarest: str = rarest) -> tuple[float, float, str]:
            return (lacking[side][rarest], lacking_rows[side], side)

        side = max(shares, key=need)
        for label, count in labels.items():
            lacking[side][label] -= count
        lacking_rows[side] -= len(group)
        dealt |= dict.fromkeys(group, side)
    return dealt


def _given(examples: Sequence[Example], clusters: Sequence[int], config: SplitConfig) -> list[Split | None]:
    sides: list[Split | None] = []
    for example in examples:
        if example.split is None or example.split.strip().lower() not in _GIVEN:
            raise DataError(f"{example.where or example.id}: split {example.split!r} is not known; {allowed(example.split, _GIVEN)}")
        sides.append(_GIVEN[example.split.strip().lower()])
    for protected in ("test", "validation"):
        taken = {clusters[row] for row, side in enumerate(sides) if side == protected}
        others = ("train", "validation") if protected == "test" else ("train",)
        for row, side in enumerate(sides):
            if side in others and clusters[row] in taken:
                sides[row] = None
    num_aside = sides.count(None)
    if num_aside:
        log.warning("%d given row(s) are duplicates of test or validation rows and are set aside", num_aside)
    if "validation" not in sides:
        rows = [row for row, side in enumerate(sides) if side == "train"]
        chosen = [examples[row] for row in rows]
        groups = _groups(chosen, [clusters[row] for row in rows], None)
        dealt = _deal(chosen, groups, {"train": 1 - config.validation, "validation": config.validation}, config.seed)
        for position, row in enumerate(rows):
            sides[row] = _side(dealt[position])
        log.warning("no validation rows are given: %d of the training rows are taken for it", sides.count("validation"))
    return sides


def _check_enough(examples: Sequence[Example], sides: Sequence[Split | None]) -> None:
    counts = Counter(sides)
    for side in ("train", "validation", "test"):
        if not counts[side]:
            found = ", ".join(f"{name} {counts[name]}" for name in ("train", "validation", "test"))
            raise DataError(f"{len(examples)} rows are fewer than the splits need: {found}")
    on_side = {(label, side) for example, side in zip(examples, sides, strict=True) for label in example.labels}
    labels = sorted({label for label, _ in on_side})
    untrained = [label for label in labels if (label, "train") not in on_side]
    if untrained:
        raise DataError(f"label {untrained[0]!r} has too few rows for the splits: none of them is a training row")
    for side in ("validation", "test"):
        unseen = [label for label in labels if (label, side) not in on_side]
        if unseen:
            log.warning("%s holds no row of %d label(s): %s", side, len(unseen), ", ".join(unseen[:10]))


def _labels(example: Example) -> tuple[str, ...]:
    return example.labels or ("",)  # rows without a label are dealt out like a class of their own


def _hash(seed: int, purpose: str, row_id: str) -> str:
    return hashlib.sha256(f"{seed}\x00{purpose}\x00{row_id}".encode("utf-8", "surrogatepass")).hexdigest()


def _side(name: str) -> Split:
    return _GIVEN[name]
