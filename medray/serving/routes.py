"""At which path a release is asked, by the task in its manifest."""

from medray import checkpoint
from medray.registry import Registry
from medray.serving.schemas import ROUTES


def path_of(reference: str, storage_path: str) -> str:
    folder = Registry(storage_path).resolve(reference).folder()
    return ROUTES[str(checkpoint.read(folder).task.options["name"])].paths[0]
