"""How much of a right answer's words another one has: token F1 and ROUGE-L. Pure."""

import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def token_f1(said: Sequence[str], right: Sequence[str]) -> float:
    """Words in common, each as often as it stands in both, whatever their order."""
    return _f1(sum((Counter(said) & Counter(right)).values()), len(said), len(right))


def rouge_l(said: Sequence[str], right: Sequence[str]) -> float:
    """F1 of the longest common subsequence."""
    longest = [0] * (len(right) + 1)
    for word in said:
        diagonal = 0
        for at, other in enumerate(right, start=1):
            diagonal, longest[at] = longest[at], diagonal + 1 if word == other else max(longest[at], longest[at - 1])
    return _f1(longest[-1], len(said), len(right))


def _f1(shared: int, num_said: int, num_right: int) -> float:
    return 2 * shared / (num_said + num_right) if num_said + num_right else 1.0
