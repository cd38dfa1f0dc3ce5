"""Plugins by folder: `find("tasks", "classification")` imports medray/tasks/classification.py."""

import importlib
import pkgutil
from types import ModuleType

from medray.errors import ConfigError, suggest


def names(seam: str) -> list[str]:
    package = importlib.import_module(f"medray.{seam}")
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in modules if name != "base" and not name.startswith("_"))


def find(seam: str, name: str) -> ModuleType:
    choices = names(seam)
    if name not in choices:
        raise ConfigError(f"{seam}: {name!r} is not known; {suggest(name, choices)}")
    return importlib.import_module(f"medray.{seam}.{name}")
