"""Masks identifiers of persons in a text: e-mail addresses, telephone and record numbers, dates
with a day, and names after a title or key.

The patterns find identifiers in their usual forms. They miss a name alone, a postal address, a
nickname, or a rare disease with a town. Their time is linear in the length of the text: unbounded
repetitions are possessive (`*+`) and never nested."""

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
# The group named `it` is masked. Where two patterns overlap, the earlier one in this list wins.
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
    """A text with masks, and the places of the masks in it and in the original."""

    text: str
    counts: dict[Kind, int]
    # Per mask: its start and end in this text, and its end in the original.
    places: tuple[tuple[int, int, int], ...] = ()
    starts: tuple[int, ...] = ()  # per mask, its start in the original

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Return the span in the original text; a part of a mask counts as the whole mask."""
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
    """Return the spans to mask, in order and without overlaps."""
    flags, spans = bytearray(len(text)), []
    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(text):
            start, end = match.span("it")
            if flags.find(1, start, end) < 0:
                flags[start:end] = b"\1" * (end - start)
                spans.append((start, end, kind))
    return sorted(spans)
