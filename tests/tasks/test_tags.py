"""Tags and words, without a model: what is tagged is found again, whatever the sub-words."""

import re

import numpy as np
import pytest

from medray.tasks.tagging.bio import Word, mentions_of, tag, tags_of, words
from medray.types import Mention

TAGS = tags_of(["Chemical", "Disease"])
TEXT = "Non-small-cell lung cancer (NSCLC), asthma; Crohn's disease"


def spans(text: str, length: int = 99) -> list[tuple[int, int]]:
    """Letters and digits in pieces of at most `length`, every other character alone."""
    mentions = []
    for match in re.finditer(r"\w+|[^\w\s]", text):
        mentions += [
            (at, min(at + length, match.end())) for at in range(match.start(), match.end(), length)
        ]
    return mentions


def mention(part: str, kind: str = "Disease", text: str = TEXT) -> Mention:
    start = text.index(part)
    return Mention(start, start + len(part), part, kind)


def sure(places: list[int]) -> np.ndarray:
    return np.eye(len(TAGS))[places]


def bare(mentions: tuple[Mention, ...]) -> list[tuple[int, int, str, str]]:
    return [(mention.start, mention.end, mention.text, mention.kind) for mention in mentions]


def test_tags_name_beginning_and_inside_of_each_kind() -> None:
    assert TAGS == ("O", "B-Chemical", "I-Chemical", "B-Disease", "I-Disease")


@pytest.mark.parametrize("length", [1, 2, 3, 99])
def test_what_is_tagged_is_found_again_whatever_the_sub_words(length: int) -> None:
    text_words = words(TEXT, spans(TEXT, length))
    assert [TEXT[word.start : word.end] for word in text_words] == re.findall(r"\w+|[^\w\s]", TEXT)
    mentions = [
        mention("Non-small-cell lung cancer"),
        mention("NSCLC"),
        mention("asthma", "Chemical"),
        mention("Crohn's disease"),
    ]
    predictions = mentions_of(TEXT, text_words, sure(tag(text_words, mentions, TAGS)), TAGS)
    assert bare(predictions) == bare(tuple(mentions))
    assert {prediction.confidence for prediction in predictions} == {1.0}


def test_neighbours_of_one_kind_stay_two_mentions() -> None:
    text = "asthma COPD"
    text_words = words(text, spans(text))
    mentions = (mention("asthma", text=text), mention("COPD", text=text))
    assert bare(mentions_of(text, text_words, sure(tag(text_words, mentions, TAGS)), TAGS)) == bare(
        mentions
    )


def test_blanks_are_no_part_of_a_word_and_tokens_of_one_character_are_one_word() -> None:
    text = " renal  é failure"
    offsets = [
        (0, 6),
        (6, 8),
        (8, 9),
        (8, 9),
        (9, 17),
    ]  # as byte-level tokenizers have it: blanks in front, two tokens for one character
    assert words(text, offsets) == [Word(1, 6, (0,)), Word(8, 9, (2, 3)), Word(10, 17, (4,))]


def test_a_mention_from_inside_a_word_takes_the_word_and_the_longest_of_an_overlap_counts() -> None:
    text = "postasthma lung cancer"
    text_words = words(text, spans(text))
    tags = tag(
        text_words,
        [
            mention("asthma", text=text),
            mention("cancer", text=text),
            mention("lung cancer", text=text),
        ],
        TAGS,
    )
    assert [TAGS[place] for place in tags] == ["B-Disease", "B-Disease", "I-Disease"]


@pytest.mark.parametrize(
    ("tag_names", "names"),
    [
        (["I-Disease", "O", "O"], ["one"]),
        (["O", "I-Disease", "I-Disease"], ["two three"]),
        (["B-Chemical", "I-Disease", "I-Disease"], ["one", "two three"]),
        (["B-Disease", "I-Disease", "B-Disease"], ["one two", "three"]),
        (["I-Disease", "I-Chemical", "O"], ["one", "two"]),
        (["O", "O", "O"], []),
        (["B-Disease", "O", "I-Disease"], ["one", "three"]),
    ],
)
def test_an_inside_that_continues_nothing_begins_a_mention(
    tag_names: list[str], names: list[str]
) -> None:
    text = "one two three"
    mentions = mentions_of(
        text, words(text, spans(text)), sure([TAGS.index(name) for name in tag_names]), TAGS
    )
    assert [mention.text for mention in mentions] == names


def test_a_mention_is_as_sure_as_its_least_sure_word_is_of_the_kind() -> None:
    text = "lung cancer"
    rows = np.array([[0.1, 0.0, 0.0, 0.6, 0.3], [0.3, 0.0, 0.1, 0.1, 0.5]])
    (entry,) = mentions_of(text, words(text, spans(text)), rows, TAGS)
    assert entry.confidence == pytest.approx(0.6)
    assert (entry.text, entry.kind) == ("lung cancer", "Disease")


def test_a_text_without_words_has_no_mention() -> None:
    assert mentions_of("  ", words("  ", [(0, 2)]), np.zeros((0, len(TAGS))), TAGS) == ()
