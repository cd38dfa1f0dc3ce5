"""medray: fine-tune base models with LoRA on Ray, select them by F1, serve the winners."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from medray.client import Client as Client
    from medray.client.asynchronous import AsyncClient as AsyncClient
    from medray.config.trial import Precision
    from medray.evaluation.leaderboard import Leaderboard
    from medray.python.classifier import Classifier as Classifier
    from medray.python.result import Result as Result
    from medray.python.server import serve as serve
    from medray.python.studies import Study as Study
    from medray.python.studies import fit as fit
    from medray.registry.loading import LoadedRelease

__version__ = "0.1.0"
# Each name is imported at its first use, so that a client needs no torch.
_PLACES = {
    "AsyncClient": "medray.client.asynchronous",
    "Classifier": "medray.python.classifier",
    "Client": "medray.client",
    "Result": "medray.python.result",
    "Study": "medray.python.studies",
    "fit": "medray.python.studies",
    "serve": "medray.python.server",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        from medray.errors import nearest

        hint = nearest(name, [*_PLACES, "load", "leaderboard"])
        raise AttributeError(f"module 'medray' has no attribute {name!r}{hint}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})


def load(
    reference: str,
    *,
    storage_path: "str | Path" = "runs",
    device: str = "auto",
    precision: "Precision | None" = None,
) -> "LoadedRelease":
    """Load a release by `name@version`, `name@alias` or name.

    `device` is cpu, cuda or auto, a GPU where there is one. `precision` is fp32, bf16 or fp16; the
    default is the release's training precision.

    >>> release = medray.load("cancer@best")
    >>> release.task.labels
    ('cancer', 'other')
    >>> len(release.predict(["The patient was well."]))
    1
    >>> release.predict_proba(["The patient was well."]).shape
    (1, 2)
    """
    from medray.models.precision import device_of
    from medray.registry.registry import Registry
    from medray.storage.files import check_place

    release = Registry(check_place(storage_path, "storage_path")).resolve(reference)
    return release.load(device=device_of(device), precision=precision)


def leaderboard(folder: "str | Path") -> "Leaderboard":
    """Return the ranking of the latest run in a study's folder. `medray.Result.of` returns all of
    the run, with the ranking as a DataFrame."""
    from pathlib import Path

    from medray.storage.files import check_place
    from medray.study import run

    return run.latest(Path(check_place(folder, "leaderboard"))).leaderboard()
