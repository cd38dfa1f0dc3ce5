"""A release as a Python object: texts in, named labels out."""

from collections.abc import Sequence
from dataclasses import dataclass

from medray.config.study import Precision
from medray.registry.loading import Loaded
from medray.registry.registry import Registry
from medray.types import Example, Prediction


@dataclass(frozen=True)
class Model:
    reference: str  # name@version, whatever alias it was asked for by
    loaded: Loaded

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """One answer a text, in order."""
        examples = [Example(id=str(number), text=text) for number, text in enumerate(texts)]
        return self.loaded.predict(examples)


def load(reference: str, *, storage_path: str, device: str = "cpu", precision: Precision | None = None) -> Model:
    release = Registry(storage_path).resolve(reference)
    return Model(release.reference, release.load(device=device, precision=precision))
