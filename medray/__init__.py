"""medray: fine-tune base models with LoRA on Ray, select them by F1, serve the winners."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medray.config.study import Precision
    from medray.evaluation.leaderboard import Leaderboard
    from medray.registry.prediction import Model

__version__ = "0.1.0"


def load(reference: str, *, storage_path: str = "runs", device: str = "cpu", precision: "Precision | None" = None) -> "Model":
    """A release by `name@version`, `name@alias` or name: `medray.load("cancer@best").predict(["…"])`.

    `precision` is fp32, bf16 or fp16; where not given, what it was trained in.
    """
    from medray.registry import prediction

    return prediction.load(reference, storage_path=storage_path, device=device, precision=precision)


def leaderboard(folder: str) -> "Leaderboard":
    """The ranking of a study that has ended: the study's folder means its latest run."""
    from pathlib import Path

    from medray.study import run

    return run.latest(Path(folder)).leaderboard()
