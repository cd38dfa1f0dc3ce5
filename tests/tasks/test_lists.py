"""Lists that models write: read, mended, looked up in the text. No model."""

import json

import pytest

from medray.tasks.extraction.json_list import Item, ground, read, write
from medray.types import Mention

DISEASE = ("Disease",)


def names(text: str) -> tuple[list[str], str]:
    result = read(text)
    return [item.text for item in result.items], result.outcome


@pytest.mark.parametrize(
    ("text", "places", "outcome"),
    [
        ("[]", [], "valid"),
        (' ["asthma"] \n', ["asthma"], "valid"),
        ('["asthma", "lung cancer"]', ["asthma", "lung cancer"], "valid"),
        ('["Sj\\u00f6gren"]', ["Sjögren"], "valid"),
        ('[{"text": "asthma", "kind": "Disease"}]', ["asthma"], "valid"),
        ("[3, null]", ["3", "null"], "valid"),  # which no text holds as a name
        ('The diseases are: ["asthma"].', ["asthma"], "repaired"),
        ('```json\n["asthma", "COPD"]\n```', ["asthma", "COPD"], "repaired"),
        ('{"diseases": ["asthma"]}', ["asthma"], "repaired"),
        ('{"diseases": []}', [], "repaired"),
        ('As in [1], ["asthma"]', ["asthma"], "repaired"),
        ('["asthma", "COPD",]', ["asthma", "COPD"], "repaired"),
        ('["asthma", "COPD"', ["asthma", "COPD"], "repaired"),
        ('["asthma", "COPD", "lung ca', ["asthma", "COPD"], "repaired"),  # half a name is none
        ('["asthma", ', ["asthma"], "repaired"),
        ("['asthma', 'COPD']", ["asthma", "COPD"], "repaired"),
        (
            "['Crohn's disease', 'Graves' disease']",
            ["Crohn's disease", "Graves' disease"],
            "repaired",
        ),
        ("[“asthma”, “COPD”]", ["asthma", "COPD"], "repaired"),
        ('["asthma" "COPD"]', ["asthma", "COPD"], "repaired"),
        ("[asthma, lung cancer]", ["asthma", "lung cancer"], "repaired"),
        ("[{'text': 'asthma', 'kind': 'Disease'}, {'text': 'COPD'", ["asthma"], "repaired"),
        ('["say \\"asthma\\"", \'x\']', ['say "asthma"', "x"], "repaired"),
        ("[ ,]", [], "repaired"),
        ("", [], "invalid"),
        ("The abstract names asthma.", [], "invalid"),
        ('["lung ca', [], "invalid"),
        ("[the abstract names no disease", [], "invalid"),
        ("- asthma\n- COPD", [], "invalid"),
        ("[" * 5000, [], "invalid"),
        ('["' + "\\" * 3000, [], "invalid"),
    ],
)
def test_a_list_is_read_mended_or_counted_as_invalid(
    text: str, places: list[str], outcome: str
) -> None:
    assert names(text) == (places, outcome)


def test_kinds_are_read_under_their_usual_names() -> None:
    result = read(
        '[{"entity": "asthma", "type": "disease"}, {"Mention": "aspirin", "label": "Chemical"}, '
        '{"x": "COPD"}]'
    )
    assert result.items == (Item("asthma", "disease"), Item("aspirin", "Chemical"), Item("COPD"))


def spans(text: str, names: list[str], **options: bool) -> tuple[list[tuple[int, int]], int]:
    result = ground(text, [Item(name) for name in names], DISEASE, **options)
    assert all(text[mention.start : mention.end] == mention.text for mention in result.mentions)
    return [(mention.start, mention.end) for mention in result.mentions], result.num_dropped


@pytest.mark.parametrize(
    ("text", "names", "places", "num_dropped"),
    [
        ("Asthma is common.", ["asthma"], [(0, 6)], 0),
        ("it is ASTHMA", ["asthma"], [(6, 12)], 0),
        ("non-small-cell lung cancer", ["non small cell lung cancer"], [(0, 26)], 0),
        ("non small cell lung cancer", ["Non-Small-Cell Lung Cancer"], [(0, 26)], 0),
        ("pre-eclampsia", ["preeclampsia"], [(0, 13)], 0),
        ("preeclampsia", ["pre-eclampsia"], [(0, 12)], 0),
        ("lung\n  cancer", ["lung cancer"], [(0, 13)], 0),
        ("type‑2 diabetes", ["type-2 diabetes"], [(0, 15)], 0),  # another hyphen
        ("asthma", [" asthma "], [(0, 6)], 0),
        ("cancerous", ["cancer"], [], 1),  # words matter
        ("MIs", ["MI"], [], 1),
        ("asthma", ["COPD"], [], 1),
        ("asthma", [""], [], 1),
        ("asthma", ["-"], [], 1),
        ("a.b (x+y)", ["(x+y"], [(4, 8)], 0),  # nothing in a name is a pattern
        ("asthma and asthma", ["asthma", "asthma"], [(0, 6), (11, 17)], 0),
        ("asthma and asthma", ["asthma"], [(0, 6)], 0),
        (
            "Asthma and asthma",
            ["asthma"],
            [(11, 17)],
            0,
        ),  # of several places the one in its own letters
        ("asthma", ["asthma", "asthma"], [(0, 6)], 1),
        (
            "lung cancer, cancer",
            ["cancer", "lung cancer"],
            [(0, 11), (13, 19)],
            0,
        ),  # the longer name chooses first
        ("lung cancer", ["cancer", "lung cancer"], [(0, 11)], 1),
        (
            "COPD and asthma",
            ["asthma", "COPD"],
            [(0, 4), (9, 15)],
            0,
        ),  # in the order of the text
    ],
)
def test_what_is_listed_is_looked_up_and_what_the_text_lacks_is_dropped(
    text: str, names: list[str], places: list, num_dropped: int
) -> None:
    assert spans(text, names) == (places, num_dropped)


def test_a_name_may_stand_for_all_of_its_places() -> None:
    assert spans("asthma, Asthma and COPD", ["asthma"], every=True) == ([(0, 6), (8, 14)], 0)
    assert spans("asthma, Asthma", ["asthma", "asthma"], every=True) == ([(0, 6), (8, 14)], 0)
    assert spans("lung cancer, cancer", ["cancer", "lung cancer"], every=True) == (
        [(0, 11), (13, 19)],
        0,
    )
    assert spans("asthma", ["COPD"], every=True) == ([], 1)


def test_of_several_kinds_an_item_must_say_which() -> None:
    items = [Item("asthma", "DISEASE"), Item("aspirin", "Drug"), Item("COPD")]
    result = ground("asthma aspirin COPD", items, ("Chemical", "Disease"))
    assert [(mention.text, mention.kind) for mention in result.mentions] == [("asthma", "Disease")]
    assert result.num_dropped == 2


@pytest.mark.parametrize("kinds", [DISEASE, ("Chemical", "Disease")])
def test_what_is_written_is_read_and_found_again(kinds: tuple[str, ...]) -> None:
    text = 'Asthma, Crohn\'s disease and asthma; "lupus" é.'
    places = [(0, 6), (8, 23), (28, 34), (37, 42)]
    mentions = tuple(Mention(start, end, text[start:end], "Disease") for start, end in places)
    answer = write(mentions, kinds)
    assert len(json.loads(answer)) == 4
    assert read(answer).outcome == "valid"
    assert ground(text, read(answer).items, kinds).mentions == mentions
    assert write((), kinds) == "[]"
