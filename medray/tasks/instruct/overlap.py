"""Overlap of an answer's words with those of the right answer: token F1 and ROUGE-L. Pure."""

import re
from collections import Counter
from collections.abc import Sequence

from medray.evaluation.metrics import f1

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def token_f1(answer: Sequence[str], right: Sequence[str]) -> float:
    """Return the F1 of the words in common, regardless of their order."""
    return float(
        f1(sum((Counter(answer) & Counter(right)).values()), len(right), len(answer), empty=1.0)
    )


def rouge_l(answer: Sequence[str], right: Sequence[str]) -> float:
    """Return the F1 of the longest common subsequence of words."""
    longest = [0] * (len(right) + 1)
    for word in answer:
        diagonal = 0
        for at, other in enumerate(right, start=1):
            diagonal, longest[at] = (
                longest[at],
                diagonal + 1 if word == other else max(longest[at], longest[at - 1]),
            )
    return float(f1(longest[-1], len(right), len(answer), empty=1.0))
