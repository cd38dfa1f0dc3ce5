"""The distance of a row's embedding from those of rows that did not train the model: a Gaussian
with few axes, and a limit.

Pure numpy. Two hundred rows cannot estimate a variance for each of hundreds of axes, so all axes
beyond the first ones share one variance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from medray.types import Floats, Floats32

LEAST_ROWS = 50  # fewer rows do not give a 99th percentile
_MOST_ROWS = 1000  # more rows do not improve the fit, and each worker contributes its own
_MOST_AXES = 16
_ROWS_PER_AXIS = 4
_FOLDS = 5
_WITHIN = 0.99  # the share of rows within the limit


@dataclass(frozen=True)
class Cloud:
    """A Gaussian of embeddings."""

    centre: Floats32
    axes: Floats32  # one row per axis
    variances: Floats32  # along these axes
    rest: float  # the variance along each other axis
    limit: float = 0.0  # 99 of 100 rows outside of the fit have a smaller distance

    @classmethod
    def fit(cls, rows: Sequence[npt.NDArray[Any]] | npt.NDArray[Any]) -> Self | None:
        """Fit to embeddings of rows that did not train the model, and set the limit by
        cross-validation. Return None if there are too few rows or a value is not finite."""
        if len(rows) < LEAST_ROWS or len(widths := {len(row) for row in rows}) > 1 or 0 in widths:
            return None
        sample = np.asarray(rows[:: -(-len(rows) // _MOST_ROWS)], dtype=np.float64)
        if not np.isfinite(sample).all():
            return None
        # Neighboring rows are left out together, since they may be windows of the same text.
        parts = np.array_split(np.arange(len(sample)), _FOLDS)
        left_out = [
            cls._of(np.delete(sample, part, axis=0)).distances(sample[part]) for part in parts
        ]
        whole = cls._of(sample)
        limit = float(np.quantile(np.concatenate(left_out), _WITHIN))
        return cls(whole.centre, whole.axes, whole.variances, whole.rest, limit)

    @classmethod
    def _of(cls, rows: Floats) -> Self:
        centre = rows.mean(axis=0)
        _, lengths, axes = np.linalg.svd(rows - centre, full_matrices=False)
        variances = np.maximum(lengths**2 / (len(rows) - 1), 1e-12)
        num = min(_MOST_AXES, len(rows) // _ROWS_PER_AXIS, rows.shape[1] - 1)
        rest = max(float(variances[num:].sum()) / (rows.shape[1] - num), 1e-12)
        return cls(_small(centre), _small(axes[:num]), _small(variances[:num]), rest)

    def distances(self, rows: npt.ArrayLike) -> Floats:
        """Return Mahalanobis distances, divided by the root of the number of axes: about 1 for a
        row like the others."""
        away = np.asarray(rows, dtype=np.float64) - self.centre
        along = away @ self.axes.T.astype(np.float64)
        beside = np.maximum((away**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
        squares = (along**2 / self.variances).sum(axis=1) + beside / self.rest
        distances: Floats = np.sqrt(squares / len(self.centre))
        return distances

    def arrays(self) -> dict[str, Floats32]:
        return {
            "centre": self.centre,
            "axes": self.axes,
            "variances": self.variances,
            "rest_and_limit": np.array([self.rest, self.limit], dtype=np.float32),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Floats32]) -> Self:
        rest, limit = arrays["rest_and_limit"].tolist()
        return cls(arrays["centre"], arrays["axes"], arrays["variances"], rest, limit)


def _small(values: Floats) -> Floats32:
    return np.ascontiguousarray(values, dtype=np.float32)
