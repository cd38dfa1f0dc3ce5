"""medray: fine-tune base models with LoRA on Ray, select them by F1, serve the winners."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medray.config.trial import Precision
    from medray.evaluation.leaderboard import Leaderboard
    from medray.registry.loading import LoadedRelease

__version__ = "0.1.0"


def load(
    reference: str,
    *,
    storage_path: str = "runs",
    device: str = "cpu",
    precision: "Precision | None" = None,
) -> "LoadedRelease":
    """Load a release by `name@version`, `name@alias` or name:
    `medray.load("cancer@best").predict(["…"])`.

    `precision` is fp32, bf16 or fp16; the default is the release's training precision.
    """
    from medray.registry.registry import Registry

    return Registry(storage_path).resolve(reference).load(device=device, precision=precision)


def leaderboard(folder: str) -> "Leaderboard":
    """Return the ranking of the latest run in a study's folder."""
    from pathlib import Path

    from medray.study import run

    return run.latest(Path(folder)).leaderboard()
