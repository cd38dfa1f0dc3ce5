"""Splits a text into sentences, and joins the rest of them when some are left out."""

import re
from collections.abc import Collection
from dataclasses import dataclass

Span = tuple[int, int]
_CLOSERS = "\"'”’»)]」』）"
_GAP = re.compile(r"(?<=[。！？])[”’」』）]*\s*|\s+")
_ITEM = re.compile(r"(?:[-*•]|\d{1,2}[.)])\s")
_ABBREVIATION = re.compile(
    "approx|bspw|bzw|ca|cf|dra?|inkl|mrs?|ms|prof|sog|sra?|st|vgl|vs", re.IGNORECASE
)
# Words of their own elsewhere.
_BEFORE_NUMBER = re.compile("abb|abs|al|art|eq|figs?|max|min|nos?|nr|refs?|tab|vol", re.IGNORECASE)
_LETTERS = re.compile(r"(?:\w\.)+\w|[a-z]")


@dataclass(frozen=True, slots=True)
class Sentences:
    """A text as spans of sentences, which have only blanks between them."""

    text: str
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, text: str) -> "Sentences":
        spans: list[Span] = []
        start = place = len(text) - len(text.lstrip())  # of the sentence, and of its last word
        word_before = ""
        for gap in _GAP.finditer(text, start):
            word = text[place : gap.start()]
            if _is_break(text, gap, word, word_before if place > start else None):
                end = gap.end() - len(gap.group()) + len(gap.group().rstrip())
                if end > start:
                    spans.append((start, end))
                start = gap.end()
            word_before, place = word, gap.end()
        end = len(text.rstrip())
        return cls(text, (*spans, (start, end)) if end > start else tuple(spans))

    def is_question(self, number: int) -> bool:
        start, end = self.spans[number]
        return self.text[start:end].rstrip(_CLOSERS).endswith(("?", "？"))

    def without(self, numbers: Collection[int]) -> str:
        """Return the text without some sentences. Of several gaps, the widest one stays."""
        pieces: list[str] = []
        last = -1  # the sentence before, of those that stay
        for number, (start, end) in enumerate(self.spans):
            if number in numbers:
                continue
            if last >= 0:
                gaps = (self._gap(before) for before in range(last, number))
                pieces.append(max(gaps, key=lambda gap: (gap.count("\n"), len(gap))))
            pieces.append(self.text[start:end])
            last = number
        return "".join(pieces)

    def _gap(self, number: int) -> str:
        return self.text[self.spans[number][1] : self.spans[number + 1][0]]


def _is_break(text: str, gap: re.Match[str], word: str, word_before: str | None) -> bool:
    """Return whether a sentence ends at a gap after a word. `word_before` is that before it in the
    same sentence."""
    if text[gap.start() - 1 : gap.start()] in tuple("。！？"):
        return True
    num_lines = gap.group().count("\n")
    if num_lines > 1 or (num_lines and _ITEM.match(text, gap.end())):
        return True
    plain = word.rstrip(_CLOSERS)
    if not plain.endswith((".", "!", "?", "…")) or text[gap.end() : gap.end() + 1].islower():
        return False
    plain = plain.lstrip("([\"'“‘«")
    if not plain.endswith("."):
        return True
    after = text[gap.end() : gap.end() + 1]
    return not _is_short_form(
        plain.rstrip("."), word_before, before_number=after in tuple("0123456789([")
    )


def _is_short_form(word: str, word_before: str | None, *, before_number: bool) -> bool:
    """Return whether a stop belongs to a word: the number of a list, an abbreviation such as
    "e.g.", or the initial of a name."""
    if word_before is None and word.isdigit():
        return True
    if _ABBREVIATION.fullmatch(word) or (before_number and _BEFORE_NUMBER.fullmatch(word)):
        return True
    if _LETTERS.fullmatch(word):
        return True
    # A letter after a word in lower case is a name of its own, as in "hepatitis B."
    is_name = word_before is not None and word_before[:1].islower() and len(word_before) > 1
    return len(word) == 1 and word.isupper() and not is_name
