"""At which path releases are asked, by the task in their manifests."""

from collections.abc import Iterable

from medray.errors import ArtifactError
from medray.registry.registry import Registry
from medray.serving.schemas import CHAT_PATH, ROUTES
from medray.storage import checkpoint


def first_path(references: Iterable[str], storage_path: str) -> str | None:
    """That of the first release that is there."""
    for reference in references:
        try:
            folder = Registry(storage_path).resolve(reference).folder()
        except ArtifactError:
            continue
        route = ROUTES.get(str(checkpoint.read(folder).task.options["name"]))
        return route.paths[0] if route else CHAT_PATH
    return None
