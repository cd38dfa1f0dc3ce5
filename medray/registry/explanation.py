"""An explanation of a predicted label: how much each word of the text speaks for it."""

import re
from collections.abc import Sequence

import numpy as np

from medray.client.answers import Explanation, WordShare
from medray.engines.attribution import LEAST_POINTS, PassCaller, run_now, token_shares
from medray.engines.transformers import TransformersEngine
from medray.errors import ConfigError, suggest
from medray.tasks.base.protocol import Explainable, Task
from medray.text.windows import TokenWindows
from medray.types import Floats, Prediction

_WORD = re.compile(r"\S+")


class LabelError(ConfigError):
    """A label is none of the task's. The message repeats nothing of it."""


class LongTextError(ConfigError):
    """A text has too many tokens for an explanation within a budget."""


def explain(
    task: Task,
    engine: TransformersEngine,
    prediction: Prediction,
    text: str,
    label: str | None,
    *,
    most_tokens: int | None = None,
    run: PassCaller = run_now,
) -> Explanation:
    """Explain the predicted label, or another one: its output minus the mean of the others.

    The readings of the text have at most `most_tokens` tokens together. `run` calls each pass of
    the model."""
    if not isinstance(task, Explainable):
        raise ConfigError(
            f"explain: {task.options.name} has no head that reads rows; use a classification"
        )
    label = _label_of(task, prediction) if label is None else label
    if label not in task.labels:
        raise LabelError(f"label: none of the release's; {suggest(label, task.labels)}")
    head = task.head()
    others = 0.0 if head is None or head.multi_label else -1 / max(1, len(task.labels) - 1)
    weights = [1.0 if name == label else others for name in task.labels]
    windows = task.token_windows(text, engine.tokenizer)
    most_points = _most_points(windows, most_tokens)
    tokens, is_read = np.zeros(len(windows.offsets)), np.zeros(len(windows.offsets), bool)
    total = 0.0
    for row, places in zip(windows.windows, windows.places, strict=True):
        is_text = [place >= 0 for place in places]
        shares, difference = token_shares(
            engine, row, is_text, weights, most_points=most_points, run=run
        )
        inside = np.array(places)
        np.add.at(tokens, inside[inside >= 0], shares[inside >= 0] / len(windows.windows))
        is_read[inside[inside >= 0]] = True
        total += difference / len(windows.windows)
    error = abs(tokens.sum() - total) / (np.abs(tokens).sum() or 1.0)
    words = _words(text, [windows.offsets[at] for at in np.flatnonzero(is_read)], tokens[is_read])
    return Explanation(text=text, label=label, words=words, total=total, error=float(error))


def _label_of(task: Task, prediction: Prediction) -> str:
    """Return the predicted label, or the most probable one where none is predicted."""
    if prediction.labels:
        return prediction.labels[0]
    return task.labels[int(np.argmax(prediction.probabilities))]


def _most_points(windows: TokenWindows, most_tokens: int | None) -> int | None:
    if most_tokens is None:
        return None
    num_tokens = sum(map(len, windows.windows))
    if num_tokens * LEAST_POINTS > most_tokens:
        raise LongTextError(
            f"the text has {num_tokens} tokens, and an explanation reads each {LEAST_POINTS} times "
            f"or more; send at most {most_tokens // LEAST_POINTS} tokens"
        )
    return most_tokens // num_tokens


def _words(text: str, offsets: Sequence[tuple[int, int]], tokens: Floats) -> tuple[WordShare, ...]:
    """Add the shares of tokens up to words, which end at blanks. Words that a cut text has lost are
    left out."""
    spans = [match.span() for match in _WORD.finditer(text)]
    shares: dict[int, float] = {}
    at = 0
    for (start, end), share in zip(offsets, tokens, strict=True):
        middle = (start + end) / 2
        while at + 1 < len(spans) and middle >= spans[at][1]:
            at += 1
        shares[at] = shares.get(at, 0.0) + float(share)
    return tuple(
        WordShare(start=start, end=end, text=text[start:end], share=shares[number])
        for number, (start, end) in enumerate(spans)
        if number in shares
    )
