"""Parts of a model replaced in place, and put back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn import Linear, Module

from medray.models.build import Built

Held = list[tuple[Module, str, Any]]  # what was there before: where, under which name, and what


def replace_linears(built: Built, make: Callable[[Linear], Module]) -> Held:
    """Those of its layers, which LoRA adapts; not those of its head."""
    layers = built.model.get_submodule(built.family.layers_path)
    held: Held = []
    for name, linear in [(name, module) for name, module in layers.named_modules() if isinstance(module, Linear)]:
        above, _, last = name.rpartition(".")
        parent = layers.get_submodule(above)
        held.append((parent, last, linear))
        setattr(parent, last, make(linear))
    return held


@contextmanager
def put_back_after(held: Held) -> Iterator[None]:
    try:
        yield
    finally:
        for parent, name, part in held:
            setattr(parent, name, part)
