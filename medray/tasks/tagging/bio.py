"""Mentions as a tag a word and back: B- on the first word of a mention, I- on those after it, O
outside. Pure.

A word is a run of letters and digits, or a single other character; its sub-words speak as one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from medray.types import Floats, Mention

OUTSIDE = "O"


@dataclass(frozen=True, slots=True)
class Word:
    start: int  # in characters
    end: int
    tokens: tuple[int, ...]  # positions


def tags_of(kinds: Sequence[str]) -> tuple[str, ...]:
    return (OUTSIDE, *(f"{mark}-{kind}" for kind in kinds for mark in "BI"))


def words(text: str, offsets: Sequence[tuple[int, int]]) -> list[Word]:
    """Tokens that lie in one word, together. Blanks at a token's ends are not its own; a token of
    blanks alone is in no word."""
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
    """The tag of each word. Of mentions that overlap the longest is taken: a word has one tag."""
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
    """What the likeliest tags say, and how sure the least sure word of each mention is that it is
    of its kind.

    An I- that continues nothing of its kind begins a mention.
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
    """Whether a token at `start` is in the word that ended at `end`: they share a character, or
    letters and digits touch."""
    return start < end or (start == end and text[end - 1].isalnum() and text[start].isalnum())


def _apart(mentions: Sequence[Mention]) -> list[Mention]:
    disjoint: list[Mention] = []
    for mention in sorted(
        mentions, key=lambda mention: (mention.start - mention.end, mention.start)
    ):
        if all(mention.end <= other.start or other.end <= mention.start for other in disjoint):
            disjoint.append(mention)
    return disjoint
