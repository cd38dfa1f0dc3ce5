"""Identifiers of persons in a text, masked by patterns: e-mail, telephone, record numbers, dates
with a day, names behind a title or key.

Patterns find what is written as such things usually are. A name alone, an address, a nickname, a
rare disease with a town are not found. Their time grows with the length of the text and no faster:
repetitions of unbounded length are possessive (`*+`), and never nested."""

import re
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from typing import Literal

Kind = Literal["email", "phone", "record", "date", "name"]
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?"
    r"|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\.?"
)
_DAY, _MONTH_NUMBER, _YEAR = r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0?[1-9]|1[0-2])", r"(?:19|20)\d\d"
_NAME = r"(?!(?:Mr|Mrs|Ms|Dr|Prof)\b)(?:[A-Z]\.|[A-ZÀ-ÖØ-Þ][\w'’-]{1,30})"
_PARTICLE = r"(?:(?:van|von|de|der|den|del|della|di|la|le|el|al|bin)[ \t]++)"
_FULL_NAME = rf"{_PARTICLE}{{0,2}}{_NAME}(?:[ \t]++{_PARTICLE}{{0,2}}{_NAME}){{0,3}}"
_NUMBER_KEY = (
    r"(?:MRN|medical record (?:number|no)|patient (?:id|identifier|number|no)|hospital "
    r"(?:id|number|no)|chart (?:number|no)|case (?:number|no)"
    r"|NHS(?: number| no)?|SSN|social security(?: number| no)?|insurance (?:number|no|id)|policy "
    r"(?:number|no)|accession (?:number|no)|specimen (?:id|number|no))"
)
# The group named `it` is what is masked; what stands first is preferred where two overlap.
_SOURCES: tuple[tuple[Kind, str], ...] = (
    (
        "email",
        r"(?<![\w.+-])(?P<it>[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}"
        r"(?:\.[A-Za-z0-9-]{1,63}){1,5})",
    ),
    (
        "record",
        rf"(?i)\b{_NUMBER_KEY}\b\.?[ \t]*+(?:[:#=]|is)?[ \t]*+#?"
        r"(?P<it>[A-Z]{0,4}[-/]?\d(?:[ /-]?\d){2,19}[A-Z]?)(?!\w)",
    ),
    ("record", r"(?<![\d-])(?P<it>\d{3}-\d{2}-\d{4})(?![\d-])"),
    (
        "date",
        rf"(?<![\d./-])(?P<it>{_YEAR}(?P<s>[-/.]){_MONTH_NUMBER}(?P=s){_DAY})"
        r"(?![\d/-]|\.\d)",
    ),
    (
        "date",
        rf"(?<![\d./-])(?P<it>{_DAY}(?P<s>[-/.]){_MONTH_NUMBER}(?P=s)(?:{_YEAR}))"
        r"(?![\d/-]|\.\d)",
    ),
    (
        "date",
        rf"(?<![\d./-])(?P<it>{_MONTH_NUMBER}(?P<s>[-/.]){_DAY}(?P=s)(?:{_YEAR}))"
        r"(?![\d/-]|\.\d)",
    ),
    (
        "date",
        rf"(?<![\d./-])(?P<it>{_MONTH_NUMBER}/{_DAY}/\d\d|{_DAY}/{_MONTH_NUMBER}/\d\d)"
        r"(?![\d/-]|\.\d)",
    ),
    ("date", rf"(?<!\w)(?P<it>{_DAY}(?:st|nd|rd|th)?(?: of)? {_MONTH},? {_YEAR})(?!\d)"),
    ("date", rf"(?<!\w)(?P<it>{_MONTH} {_DAY}(?:st|nd|rd|th)?,? {_YEAR})(?!\d)"),
    ("phone", r"(?<![\w+])(?P<it>\+\d(?:[ .-]?\(?\d\)?){2,26})(?!\w)"),
    ("phone", r"(?<!\w)(?P<it>\(\d{3,5}\)[ -]?\d{3,4}[ .-]?\d{3,4})(?!\w)"),
    ("phone", r"(?<![\w.-])(?P<it>\d{3}([.-])\d{3}\2\d{4})(?![\w-])"),
    (
        "phone",
        r"(?i)\b(?:tel|phone|telephone|mobile|cell|fax|call)\b\.?[ \t]*+(?:no\.?|number)?"
        r"[ \t]*+[:=]?[ \t]*+(?P<it>\d(?:[ .()/-]{0,2}\d){5,14})(?!\w)",
    ),
    (
        "name",
        r"\b(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Professor|Doctor|Sir|Herr|Frau|Mme|Señora?)\b"
        rf"\.?[ \t]++(?:(?:Dr|Prof)\.?[ \t]++)?(?P<it>{_FULL_NAME})",
    ),
    (
        "name",
        r"(?i:\b(?:patient(?:'s)?(?: name)?|(?:first |last |full |sur)?name|contact"
        rf"|next of kin)[ \t]*+[:=][ \t]*+)(?P<it>{_FULL_NAME})",
    ),
)
_PATTERNS = tuple((kind, re.compile(pattern)) for kind, pattern in _SOURCES)


@dataclass(frozen=True)
class MaskedText:
    text: str
    counts: dict[Kind, int]
    places: tuple[
        tuple[int, int, int], ...
    ] = ()  # of each mask: its start and end here, and where it ended in the original
    starts: tuple[int, ...] = ()  # where they began in the original

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Places of the original text; a part of a mask is the whole of what it covers."""
        return self._place(start, after=False), self._place(end, after=True)

    def _place(self, at: int, *, after: bool) -> int:
        number = (
            bisect_right(self.places, at if not after else at - 1, key=lambda place: place[0]) - 1
        )
        if number < 0:
            return at
        _, end, original_end = self.places[number]
        if at < end or (after and at == end):
            return original_end if after else self.starts[number]
        return original_end + at - end


def mask(text: str) -> MaskedText:
    parts: list[str] = []
    places: list[tuple[int, int, int]] = []
    starts: list[int] = []
    counts: Counter[Kind] = Counter()
    at = length = 0
    for start, end, kind in _spans(text):
        word = f"[{kind.upper()}]"
        parts += [text[at:start], word]
        length += start - at
        places.append((length, length + len(word), end))
        starts.append(start)
        length += len(word)
        counts[kind] += 1
        at = end
    return MaskedText("".join([*parts, text[at:]]), dict(counts), tuple(places), tuple(starts))


def _spans(text: str) -> list[tuple[int, int, Kind]]:
    """Spans that do not overlap, in order."""
    taken, spans = bytearray(len(text)), []
    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(text):
            start, end = match.span("it")
            if taken.find(1, start, end) < 0:
                taken[start:end] = b"\1" * (end - start)
                spans.append((start, end, kind))
    return sorted(spans)
