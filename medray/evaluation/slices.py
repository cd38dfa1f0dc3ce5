"""Slices of rows: by length, and by the columns of a data set other than text and label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medray.types import Example

LENGTH, LABEL = "length", "label"
MISSING = "(none)"
MOST_VALUES = 20  # a column with more values holds texts or ids, unless it holds numbers


@dataclass(frozen=True)
class Slicer:
    """Columns and cut points, chosen on one set of rows and applied to others."""

    categories: tuple[str, ...]  # columns in which each value is a slice
    cuts: Mapping[str, tuple[float, float]]  # columns of numbers: the upper ends of two thirds

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "Slicer":
        categories, cuts = [], {LENGTH: _thirds([_num_words(example) for example in examples])}
        for column in sorted({column for example in examples for column in example.metadata}):
            values = {
                example.metadata[column] for example in examples if column in example.metadata
            }
            if len(values) + any(column not in example.metadata for example in examples) < 2:
                continue
            if len(values) <= MOST_VALUES:
                categories.append(column)
            elif None not in (numbers := [_number(value) for value in values]):
                cuts[_free(column)] = _thirds([number for number in numbers if number is not None])
        return cls(tuple(categories), cuts)

    def columns(self, examples: Sequence[Example]) -> dict[str, list[str]]:
        """Return the slice of each row, by column."""
        columns = {}
        for name, cuts in self.cuts.items():
            column = name.removeprefix("metadata.")
            values = [
                _num_words(row) if name == LENGTH else _number(row.metadata.get(column))
                for row in examples
            ]
            columns[name] = [
                _third(value, cuts, " words" if name == LENGTH else "") for value in values
            ]
        return columns | {
            _free(column): [row.metadata.get(column, MISSING) for row in examples]
            for column in self.categories
        }


def _free(column: str) -> str:
    return f"metadata.{column}" if column in (LENGTH, LABEL) else column


def _num_words(example: Example) -> int:
    return len(example.text.split())


def _number(value: str | None) -> float | None:
    try:
        return float(value) if value is not None else None
    except ValueError:
        return None


def _thirds(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(np.array(values, dtype=np.float64), [1 / 3, 2 / 3], method="lower")
    return float(low), float(high)


def _third(value: float | None, cuts: tuple[float, float], unit: str) -> str:
    low, high = cuts
    if value is None:
        return MISSING
    if value <= low:
        return f"at most {low:g}{unit}"
    return f"over {low:g}, at most {high:g}{unit}" if value <= high else f"over {high:g}{unit}"
