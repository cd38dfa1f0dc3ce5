"""Converts mentions to one tag per word and back: B- on the first word of a mention, I- on the
following words, O outside. Pure.

A word is a run of letters and digits, or one other character. Its tokens share one tag.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from medray.types import Floats, Mention

OUTSIDE = "O"


@dataclass(frozen=True, slots=True)
class Word:
    start: int  # in characters
    end: int
    tokens: tuple[int, ...]  # positions of its tokens


def tags_of(kinds: Sequence[str]) -> tuple[str, ...]:
    return (OUTSIDE, *(f"{mark}-{kind}" for kind in kinds for mark in "BI"))


def words(text: str, offsets: Sequence[tuple[int, int]]) -> list[Word]:
    """Group tokens by word. Blanks at a token's ends are ignored; a token of blanks belongs to no
    word."""
    entries: list[Word] = []
    for position, (start, end) in enumerate(offsets):
        token = text[start:end]
        start, end = (
            start + len(token) - len(token.lstrip()),
            end - (len(token) - len(token.rstrip())),
        )
        if start >= end:
            continue
        if entries and _continues(text, entries[-1].end, start):
            last = entries.pop()
            entries.append(Word(last.start, max(last.end, end), (*last.tokens, position)))
        else:
            entries.append(Word(start, end, (position,)))
    return entries


def tag(text_words: Sequence[Word], mentions: Sequence[Mention], tags: Sequence[str]) -> list[int]:
    """Return the tag of each word. Of overlapping mentions, the longest sets the tags."""
    places = {name: number for number, name in enumerate(tags)}
    numbers = [places[OUTSIDE]] * len(text_words)
    for mention in _apart(mentions):
        inside = [
            number
            for number, word in enumerate(text_words)
            if word.start < mention.end and mention.start < word.end
        ]
        for number in inside:
            numbers[number] = places[f"{'B' if number == inside[0] else 'I'}-{mention.kind}"]
    return numbers


def mentions_of(
    text: str, text_words: Sequence[Word], probabilities: Floats, tags: Sequence[str]
) -> tuple[Mention, ...]:
    """Return the mentions of the most probable tags. A mention's confidence is the lowest
    probability of its kind among its words.

    An I- that does not continue a mention of its kind begins one.
    """
    groups: list[tuple[str, list[int]]] = []
    before = ""
    for number, place in enumerate(probabilities.argmax(axis=1)):
        mark, _, kind = tags[place].partition("-")
        if mark == "B" or (mark == "I" and kind != before):
            groups.append((kind, [number]))
        elif mark == "I":
            groups[-1][1].append(number)
        before = kind
    mentions = []
    for kind, numbers in groups:
        both = [tags.index(f"{mark}-{kind}") for mark in "BI"]
        sure = float(probabilities[numbers][:, both].sum(axis=1).min())
        start, end = text_words[numbers[0]].start, text_words[numbers[-1]].end
        mentions.append(Mention(start, end, text[start:end], kind, min(sure, 1.0)))
    return tuple(mentions)


def _continues(text: str, end: int, start: int) -> bool:
    """Return whether a token at `start` continues the word that ends at `end`: they share a
    character, or letters and digits touch."""
    return start < end or (start == end and text[end - 1].isalnum() and text[start].isalnum())


def _apart(mentions: Sequence[Mention]) -> list[Mention]:
    disjoint: list[Mention] = []
    for mention in sorted(
        mentions, key=lambda mention: (mention.start - mention.end, mention.start)
    ):
        if all(mention.end <= other.start or other.end <= mention.start for other in disjoint):
            disjoint.append(mention)
    return disjoint
