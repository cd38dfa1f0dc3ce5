"""Writes mentions as a JSON list, reads and repairs lists that a model wrote, and finds their items
in the text. Pure."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medray.types import Mention

_TEXT_KEYS = ("text", "mention", "name", "disease", "entity")
_KIND_KEYS = ("kind", "type", "label")
_CLOSING = {'"': '"', "'": "'", "“": "”", "‘": "’"}
_MOST_STARTS = 20  # the number of opening brackets to try
_HYPHENS = r"\-\u2010-\u2015"


@dataclass(frozen=True, slots=True)
class Item:
    text: str
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class JsonList:
    items: tuple[Item, ...]
    outcome: Literal["valid", "repaired", "invalid"]


@dataclass(frozen=True, slots=True)
class Grounding:
    mentions: tuple[Mention, ...]  # in the order of the text
    # Items that the text does not contain, or not often enough, or of an unknown kind.
    num_dropped: int


def write(mentions: Sequence[Mention], kinds: Sequence[str]) -> str:
    """Write the mentions in the order of the text. Kinds are left out if there is only one."""
    if len(kinds) == 1:
        return json.dumps([mention.text for mention in mentions], ensure_ascii=False)
    return json.dumps(
        [{"text": mention.text, "kind": mention.kind} for mention in mentions], ensure_ascii=False
    )


def read(text: str) -> JsonList:
    """Read a generated list. Strict JSON is valid. A list within other text, with other quotes, an
    extra comma or no end is repaired. Everything else is invalid."""
    try:
        whole = json.loads(text)
        if isinstance(whole, list):
            return JsonList(tuple(map(_item, whole)), "valid")
    except (ValueError, RecursionError):
        pass
    starts = [match.start() for match in re.finditer(r"\[", text)][:_MOST_STARTS]
    for start in starts:
        try:
            values, _ = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if all(isinstance(value, str | dict) for value in values):
            return JsonList(tuple(map(_item, values)), "repaired")
    for start in starts[:1]:
        loose = list(_loose(text, start + 1))
        if loose:
            return JsonList(tuple(item for item in loose if item), "repaired")
    return JsonList((), "invalid")


def ground(
    text: str, items: Sequence[Item], kinds: Sequence[str], *, every: bool = False
) -> Grounding:
    """Find the spans that the items name, regardless of case and hyphens.

    A repeated item takes the next place of its name; with `every`, an item takes all places. Longer
    names choose first, so a name inside a longer mention is not a mention of its own."""
    mentions: list[Mention] = []
    num_dropped = 0
    for item in sorted(items, key=lambda item: -len(item.text)):
        kind, all_places = _kind(item, kinds), _places(text, item.text)
        free = [
            (start, end)
            for start, end in all_places
            if all(end <= other.start or other.end <= start for other in mentions)
        ]
        if kind is None or not (free or (every and all_places)):
            num_dropped += 1
            continue
        same = [place for place in free if text[slice(*place)] == item.text]
        for start, end in free if every else (same or free)[:1]:
            mentions.append(Mention(start, end, text[start:end], kind))
    return Grounding(tuple(sorted(mentions, key=lambda mention: mention.start)), num_dropped)


def _item(raw: Any) -> Item:
    if not isinstance(raw, dict):
        return Item(raw if isinstance(raw, str) else json.dumps(raw))
    values = {str(key).lower(): value for key, value in raw.items() if isinstance(value, str)}
    kind = next((values[key] for key in _KIND_KEYS if key in values), None)
    others = [value for key, value in values.items() if key not in _KIND_KEYS]
    return Item(
        next((values[key] for key in _TEXT_KEYS if key in values), others[0] if others else ""),
        kind,
    )


def _loose(text: str, at: int) -> Iterator[Item | None]:
    """Yield complete items after an opening bracket, and None at the closing bracket."""
    while at < len(text):
        mark = text[at]
        if mark == "]":
            yield None
            return
        if mark in _CLOSING:
            value, end = _string(text, at)
            if end is None:
                return  # an incomplete name is not an item
            yield Item(value)
            at = end
        elif mark == "{":
            end = text.find("}", at)
            if end < 0:
                return
            yield _item(_pairs(text[at + 1 : end]))
            at = end + 1
        elif mark.isspace() or mark == ",":
            at += 1
        else:
            match = re.compile(r"([^,\[\]{}\n]+)(?=[,\]])").match(text, at)
            if match is None:
                return
            yield Item(match.group(1).strip())
            at = match.end()


def _pairs(text: str) -> dict[str, str]:
    """Return the names and values of an object, with any kind of quotes."""
    strings, at = [], 0
    while at < len(text):
        if text[at] in _CLOSING:
            value, end = _string(text, at)
            if end is None:
                break
            strings.append(value)
            at = end
        else:
            at += 1
    return dict(zip(strings[::2], strings[1::2], strict=False))


def _string(text: str, at: int) -> tuple[str, int | None]:
    """Return the text in quotes and the position after it. The text ends at a quote after which the
    list continues, since names may contain apostrophes."""
    closing = re.escape(_CLOSING[text[at]])
    match = re.compile(
        rf"((?:\\.|[^\\])*?){closing}(?=\s*(?:[,\]}}:]|$)|\s+[\"“])", re.DOTALL
    ).match(text, at + 1)
    if match is None:
        return "", None
    return re.sub(r"\\(.)", r"\1", match.group(1)), match.end()


def _kind(item: Item, kinds: Sequence[str]) -> str | None:
    """Return the item's kind, regardless of case. If there is only one kind, return that."""
    if len(kinds) == 1:
        return kinds[0]
    return next(
        (kind for kind in kinds if item.kind and kind.lower() == item.kind.strip().lower()), None
    )


def _places(text: str, name: str) -> list[tuple[int, int]]:
    parts = [part for part in re.split(rf"[\s{_HYPHENS}]+", name.strip()) if part]
    if not parts:
        return []
    letters = (rf"[{_HYPHENS}]?".join(map(re.escape, part)) for part in parts)
    pattern = r"(?<!\w)" + rf"[\s{_HYPHENS}]*".join(letters) + r"(?!\w)"
    return [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]
