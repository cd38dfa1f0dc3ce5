"""Whether a text is like those that a release was trained on, by what its checkpoint keeps: length in words, language, and embeddings.

Length and language say nothing about what a text is about: by them a cooking recipe of the usual length passes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from medray.data import language
from medray.selection.nearness import Cloud

_BEYOND = 1.5  # times the length that 99 of 100 texts keep below, or above: a text at the edge is still like them
_RARE = 0.01  # share of the texts in a language below which it counts as unknown to the release


@dataclass(frozen=True)
class Known:
    shortest: int  # words; 98 of 100 texts lie between the two
    longest: int
    languages: Mapping[str, float]

    @classmethod
    def of(cls, audit: Mapping[str, Any]) -> Self | None:
        """None where nothing was kept of the data: trained elsewhere, or before this was."""
        words, languages = audit.get("words"), audit.get("languages")
        if not words or not languages:
            return None
        total = sum(languages.values())
        return cls(words["p1"], words["p99"], {name: count / total for name, count in languages.items()})


def unlike(text: str, known: Known) -> tuple[str, ...]:
    """A sentence for each way in which it differs."""
    said = []
    count = len(text.split())
    if count > _BEYOND * known.longest:
        said.append(f"{count} words are more than the release was trained on: 99 of 100 texts had at most {known.longest}")
    if _BEYOND * count < known.shortest:
        said.append(f"{count} words are fewer than the release was trained on: 99 of 100 texts had at least {known.shortest}")
    found = language.guess(text)
    if found != language.UNKNOWN and known.languages.get(found, 0.0) < _RARE:
        usual = sorted(name for name, share in known.languages.items() if name != language.UNKNOWN and share >= _RARE)
        said.append(f"it reads like language {found!r}, the training texts like " + (", ".join(map(repr, usual)) or "no running text"))
    return tuple(said)


def far(distance: float, cloud: Cloud) -> tuple[str, ...]:
    """The same of how the model reads it."""
    if distance <= cloud.limit:
        return ()
    return (
        f"the model reads it as unlike its data: at distance {distance:.2f}, where 99 of 100 validation texts lie within {cloud.limit:.2f}",
    )
