"""Sentences of a text: where they end, and what stays when some are left out."""

import pytest

from medray.text.sentences import Sentences


def parts(text: str) -> list[str]:
    return [text[start:end] for start, end in Sentences.of(text).spans]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        (
            "It fell by 3.5 mg (p < 0.05). Then it rose.",
            ["It fell by 3.5 mg (p < 0.05).", "Then it rose."],
        ),
        (
            "See Fig. 2 and Smith et al. 2019, i.e. here. Done.",
            ["See Fig. 2 and Smith et al. 2019, i.e. here.", "Done."],
        ),
        (
            "Dr. J. Smith saw hepatitis B. We treated it.",
            ["Dr. J. Smith saw hepatitis B.", "We treated it."],
        ),
        ('He said "no." She left.', ['He said "no."', "She left."]),
        ("Is it safe?\n\nYes it is", ["Is it safe?", "Yes it is"]),
        ("a line\nthat goes on. next", ["a line\nthat goes on. next"]),
        ("Take:\n- water\n- rest", ["Take:", "- water", "- rest"]),
        ("1. Wash it. 2. Dry it.", ["1. Wash it.", "2. Dry it."]),
        ("In 2019. The end", ["In 2019.", "The end"]),
        ("头痛三天。没有发烧！要看医生吗？", ["头痛三天。", "没有发烧！", "要看医生吗？"]),
        (
            "Die Dosis beträgt ca. 5 mg, z. B. abends. Danach nicht.",
            ["Die Dosis beträgt ca. 5 mg, z. B. abends.", "Danach nicht."],
        ),
        ("  \n ", []),
        ("", []),
    ],
)
def test_a_text_is_split_at_the_ends_of_its_sentences(text: str, sentences: list[str]) -> None:
    assert parts(text) == sentences


def test_what_is_left_out_leaves_the_widest_gap() -> None:
    sentences = Sentences.of("Is it so? Aa.  Bb went.\n\nCc came. ")
    assert [sentences.is_question(number) for number in range(len(sentences.spans))] == [
        True,
        False,
        False,
        False,
    ]
    assert sentences.without(()) == "Is it so? Aa.  Bb went.\n\nCc came."
    assert sentences.without({1}) == "Is it so?  Bb went.\n\nCc came."
    assert sentences.without({2}) == "Is it so? Aa.\n\nCc came."
    assert sentences.without({0, 1, 2}) == "Cc came."
    assert sentences.without({0, 1, 2, 3}) == ""


def test_a_long_text_without_an_end_is_split_in_no_time() -> None:
    for piece in ("a ", ". ", "\n", " \n", "A. ", "1. ", "!", '."'):
        text = piece * (200_000 // len(piece))
        assert Sentences.of(text).without(()) is not None
