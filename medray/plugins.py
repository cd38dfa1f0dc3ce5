"""Seams of medray: `find("tasks", "classification")` imports medray/tasks/classification.py. The
folder is the registry."""

import importlib
import pkgutil
from types import ModuleType

from medray.errors import ConfigError, allowed


def names(seam: str) -> list[str]:
    package = importlib.import_module(f"medray.{seam}")
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if name != "base" and not name.startswith("_"))


def find(seam: str, name: str) -> ModuleType:
    known = names(seam)
    if name not in known:
        raise ConfigError(f"{seam}: {name!r} is not known; {allowed(name, known)}")
    return importlib.import_module(f"medray.{seam}.{name}")
