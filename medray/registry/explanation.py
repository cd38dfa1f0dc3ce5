"""An explanation of a predicted label: how much each word of the text speaks for it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from medray.engines.attribution import token_shares
from medray.engines.transformers import TransformersEngine
from medray.errors import ConfigError, suggest
from medray.tasks.base.protocol import Explainable, Task
from medray.text.windows import TokenWindows
from medray.types import Floats, Prediction

_WORD = re.compile(r"\S+")
_FOR, _AGAINST = "0,122,90", "200,50,30"  # green and red


@dataclass(frozen=True)
class WordShare:
    """`text[start:end]`, and its share in the label's output: above zero it speaks for it."""

    start: int
    end: int
    text: str
    share: float


@dataclass(frozen=True, repr=False)
class Explanation:
    """The shares of a text's words in the output for a label.

    They add up to `total`, the output for the text minus that for a neutral one, but for the
    completeness error. `error` is its size as a share of all shares without their signs."""

    text: str
    label: str
    words: tuple[WordShare, ...]
    total: float
    error: float

    def strongest(self, number: int = 5) -> list[WordShare]:
        """Return the words that speak most for the label, the strongest first."""
        return sorted(self.words, key=lambda word: -word.share)[:number]

    def __repr__(self) -> str:
        words = ", ".join(f"{word.text} {word.share:+.2f}" for word in self.strongest())
        return f"{self.label}: {words} (completeness error {self.error:.1%})"

    def _repr_html_(self) -> str:
        most = max((abs(word.share) for word in self.words), default=0.0) or 1.0
        parts, at = [], 0
        for word in self.words:
            color, strength = _FOR if word.share > 0 else _AGAINST, abs(word.share) / most
            parts.append(escape(self.text[at : word.start]))
            parts.append(
                f'<mark title="{word.share:+.3f}" style="color:inherit;'
                f'background:rgba({color},{0.6 * strength:.2f})">{escape(word.text)}</mark>'
            )
            at = word.end
        note = f"{self.label}; green speaks for it, red against; error {self.error:.1%}"
        return (
            f"<p>{''.join(parts)}{escape(self.text[at:])}</p><p><small>{escape(note)}</small></p>"
        )


def explain(
    task: Task, engine: TransformersEngine, prediction: Prediction, text: str, label: str | None
) -> Explanation:
    """Explain the predicted label, or another one: its output minus the mean of the others."""
    if not isinstance(task, Explainable):
        raise ConfigError(
            f"explain: {task.options.name} has no head that reads rows; use a classification"
        )
    label = label or (prediction.labels[0] if prediction.labels else task.labels[0])
    if label not in task.labels:
        raise ConfigError(f"label {label!r}: {suggest(label, task.labels)}")
    head = task.head()
    others = 0.0 if head is None or head.multi_label else -1 / max(1, len(task.labels) - 1)
    weights = [1.0 if name == label else others for name in task.labels]
    windows = task.token_windows(text, engine.tokenizer)
    tokens = np.zeros(len(windows.offsets))
    total = 0.0
    for row, places in zip(windows.windows, windows.places, strict=True):
        shares, difference = token_shares(engine, row, [place >= 0 for place in places], weights)
        inside = np.array(places)
        np.add.at(tokens, inside[inside >= 0], shares[inside >= 0] / len(windows.windows))
        total += difference / len(windows.windows)
    error = abs(tokens.sum() - total) / (np.abs(tokens).sum() or 1.0)
    return Explanation(text, label, _words(text, windows, tokens), total, float(error))


def _words(text: str, windows: TokenWindows, tokens: Floats) -> tuple[WordShare, ...]:
    """Add the shares of tokens up to words, which end at blanks."""
    spans = [match.span() for match in _WORD.finditer(text)]
    shares = [0.0] * len(spans)
    at = 0
    for (start, end), share in zip(windows.offsets, tokens, strict=True):
        middle = (start + end) / 2
        while at + 1 < len(spans) and middle >= spans[at][1]:
            at += 1
        if spans:
            shares[at] += float(share)
    return tuple(_share(text, span, share) for span, share in zip(spans, shares, strict=True))


def _share(text: str, span: Sequence[int], share: float) -> WordShare:
    return WordShare(span[0], span[1], text[span[0] : span[1]], share)
