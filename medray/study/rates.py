"""Learning rates to try for a base model: the best guess first, then its neighbors on a log scale.

The rank of the adapter stays as it is: with a fixed alpha, the best rate hardly depends on it
(Schulman et al. 2025, "LoRA Without Regret"; arXiv 2602.06204)."""

import itertools
from collections.abc import Iterator

# The best guess by kind and by weights in the layers, without embeddings, up to the number.
# Encoders: the scripts of LoRA (arXiv 2106.09685) train RoBERTa base with 5e-4 and large ones with
# 2e-4 to 4e-4, at this scale of alpha / r = 2; MiniLM takes 1e-3 in our own studies.
_ENCODERS = ((50e6, 1e-3), (200e6, 5e-4), (float("inf"), 3e-4))
# Decoders: tinker-cookbook's rule of 2025 is 5e-4 * (2000 / width)^0.781 for Llama, and its sweep
# of 2026 takes 1e-3 up to 3B and 3e-4 for 8B and 70B at 128 rows per step. QLoRA (arXiv 2305.14314)
# takes 2e-4 for 7B and 13B. SmolLM2 takes 1e-3 in our own studies.
_DECODERS = ((300e6, 1e-3), (4e9, 5e-4), (float("inf"), 3e-4))
_LOWEST, _HIGHEST = -2, 1  # the last rates of whole steps, each twice or half the one before


def best_guess(num_weights: float, *, is_encoder: bool) -> float:
    rows = _ENCODERS if is_encoder else _DECODERS
    return next(rate for most, rate in rows if num_weights <= most)


def rate_of(first: float, number: int) -> float:
    """Return the rate of a draw: the first one, then those 1/2, 2 and 1/4 times as high, then the
    middles between them, and so on. It does not depend on the number of draws."""
    step = next(itertools.islice(_steps(), number, None))
    return float(f"{first * 2.0**step:.3g}")


def _steps() -> Iterator[float]:
    yield from sorted(range(_LOWEST, _HIGHEST + 1), key=_distance)
    for level in itertools.count(1):
        width = 2.0**-level
        count = int((_HIGHEST - _LOWEST) / width)
        yield from sorted((_LOWEST + width * at for at in range(1, count, 2)), key=_distance)


def _distance(step: float) -> tuple[float, float]:
    """Sort by the distance to the guess. The lower of two equally far ones is first: a rate that is
    too high learns nothing."""
    return abs(step), step
