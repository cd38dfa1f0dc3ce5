"""At which path a release is asked, by the task in its manifest."""

from medray import checkpoint
from medray.registry import Registry
from medray.serving.schemas import CHAT_PATH, ROUTES


def path_of(reference: str, storage_path: str) -> str:
    folder = Registry(storage_path).resolve(reference).folder()
    route = ROUTES.get(str(checkpoint.read(folder).task.options["name"]))
    return route.paths[0] if route else CHAT_PATH
