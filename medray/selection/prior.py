"""What few rows say, tempered by what the model says itself: the one prior of every fit on validation rows."""

import numpy as np
import numpy.typing as npt

PRIOR_ROWS = 50  # jobs/bench/calibration.py compares it with others


def mix(truth: npt.ArrayLike, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Truth as if `PRIOR_ROWS` more rows had been seen, whose labels are as the model's probabilities have them."""
    num_rows = len(probabilities)
    found: npt.NDArray[np.float64] = (num_rows * np.asarray(truth, dtype=np.float64) + PRIOR_ROWS * probabilities) / (num_rows + PRIOR_ROWS)
    return found
