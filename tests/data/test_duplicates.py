import random

import pytest

from medray.data import duplicates


def text(draw: random.Random, num_words: int = 80) -> list[str]:
    return [f"w{draw.randrange(400)}" for _ in range(num_words)]


def test_texts_that_differ_in_case_blanks_or_unicode_form_are_the_same() -> None:
    result = duplicates.find(["The cell.", "  the\n CELL. ", "the ﬁeld", "The field", "other"], 0.8)
    assert result.exact == [[0, 1], [2, 3]]
    assert result.near == []
    assert result.clusters == [0, 0, 2, 2, 4]


def test_a_text_with_a_changed_word_is_a_near_duplicate_and_one_with_many_is_not() -> None:
    words = text(random.Random(0))
    one, many = list(words), list(words)
    one[40] = "changed"
    for place in range(0, 80, 8):
        many[place] = "changed"
    result = duplicates.find([" ".join(w) for w in (words, one, many)], 0.8)
    assert result.near == [[0, 1]]
    assert result.clusters == [0, 0, 2]


def test_near_duplicates_are_those_whose_overlap_reaches_the_threshold() -> None:
    """The result equals a comparison of every pair."""
    draw = random.Random(1)
    texts = []
    for _ in range(40):
        words = text(draw)
        texts.append(words)
        copy = list(words)
        for place in draw.sample(range(80), draw.randrange(0, 6)):
            copy[place] = "changed"
        texts.append(copy)

    def shingles(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[at : at + 5]) for at in range(len(words) - 4)}

    sets = [shingles(words) for words in texts]
    expectation = {
        (2 * n, 2 * n + 1)
        for n in range(40)
        if len(sets[2 * n] & sets[2 * n + 1]) / len(sets[2 * n] | sets[2 * n + 1]) >= 0.7
    }
    result = duplicates.find([" ".join(words) for words in texts], 0.7)
    same = {tuple(rows) for rows in result.near} | {tuple(rows) for rows in result.exact}
    assert 5 < len(expectation) < 40
    assert same == expectation


def test_short_and_empty_texts_are_compared_by_what_they_have() -> None:
    result = duplicates.find(["", " ", "one", "one two", "one two"], 0.8)
    assert result.exact == [[0, 1], [3, 4]]
    assert result.near == []


def test_a_low_threshold_finds_what_overlaps_little() -> None:
    draw = random.Random(4)
    texts = []
    for _ in range(30):
        words = text(draw, 60)
        texts += [
            " ".join(words),
            " ".join([*words[:36], *text(draw, 24)]),
        ]  # 32 of 80 shingles: 0.4
    assert duplicates.find(texts, 0.35).near == [[2 * n, 2 * n + 1] for n in range(30)]
    assert duplicates.find(texts, 0.6).near == []


def test_many_variants_of_one_text_are_one_group_without_comparing_every_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = text(random.Random(5))
    texts = [" ".join([*words[:-1], f"end{n}"]) for n in range(400)]
    pairs = []
    overlap = duplicates.jaccard
    monkeypatch.setattr(duplicates, "jaccard", lambda *pair: pairs.append(1) or overlap(*pair))
    assert duplicates.find(texts, 0.8).near == [list(range(400))]
    assert len(pairs) < 1000
