"""Annotated texts in JSON lines and in PubTator's layout, with checked offsets."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from medray import cli, plugins
from medray.config.load import plugin_options
from medray.data.columns import Hints
from medray.data.first_study import first_study
from medray.data.guess import sketch
from medray.errors import ConfigError, DataError
from medray.types import Example, Mention

TEXT = "Asthma and Crohn's disease in asthma."
MENTIONS = (
    Mention(0, 6, "Asthma", "Disease"),
    Mention(11, 26, "Crohn's disease", "Disease"),
    Mention(30, 36, "asthma", "Disease"),
)
PUBTATOR = """227508|t|Naloxone reverses hypertension.
227508|a|No asthma | here.
227508\t0\t8\tNaloxone\tChemical\tD009270
227508\t18\t30\thypertension\tDisease\tD006973
227508\t35\t41\tasthma\tSpecificDisease\tD001249
227508\tCID\tD003000\tD006973

9|t|A title alone
9|a|
"""


def options(name: str, path: Path, **settings: Any) -> Any:
    return plugins.find("data.formats", name).Options(name=name, path=str(path), **settings)


def read(name: str, path: Path, **settings: Any) -> list[Example]:
    return list(plugins.find("data.formats", name).read(options(name, path, **settings)))


def write(name: str, path: Path, examples: list[Example], **settings: Any) -> None:
    plugins.find("data.formats", name).write(examples, options(name, path, **settings))


def line(text: str = TEXT, mentions: Any = (), **fields: Any) -> str:
    return json.dumps({"text": text, "mentions": list(mentions), **fields}) + "\n"


def test_spans_are_read_in_the_order_of_the_text_with_kind_and_text_left_out_or_given(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.jsonl"
    mentions = [
        {"start": 30, "end": 36},
        {"start": 0, "end": 6, "kind": "Disease", "text": "Asthma"},
        {"start": 11, "end": 26},
    ]
    path.write_text(
        line(mentions=[*mentions, mentions[0]], id="a", journal="Lung")
        + "\n"
        + line("Nothing.", id="b")
    )
    first, second = read("spans", path, id="id")
    assert (first.id, first.text, first.mentions, first.labels) == (
        "a",
        TEXT,
        MENTIONS,
        ("Disease",),
    )
    assert (dict(first.metadata), first.where) == ({"journal": "Lung"}, f"{path}:1")
    assert (second.mentions, second.labels, second.where) == ((), (), f"{path}:3")


def test_offsets_count_the_text_as_it_stands_blanks_and_wide_characters_included(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        line("  🫁 asthma ", [{"start": 4, "end": 10, "text": "asthma"}]), encoding="utf-8"
    )
    (example,) = read("spans", path)
    assert example.text == "  🫁 asthma "
    assert [mention.text for mention in example.mentions] == ["asthma"]


@pytest.mark.parametrize(
    ("mention", "message"),
    [
        (
            {"start": 0, "end": 99},
            r"rows\.jsonl:1: a mention from 0 to 99 is outside a text of 37 characters",
        ),
        ({"start": 6, "end": 6}, "is outside"),
        ({"start": -1, "end": 6}, "is outside"),
        ({"start": 0, "end": 5, "text": "Asthma"}, "the text of the mention from 0 to 5 differs"),
        ({"start": 0, "end": 7}, "begins or ends with a blank"),
        ({"start": "0", "end": 6}, "start must be a whole number, found str"),
        ({"start": True, "end": 6}, "start must be a whole number"),
        ({"start": 0}, "has no end"),
        (
            {"start": 0, "end": 6, "lable": "x"},
            r"has the field 'lable'; allowed: end, kind, start, text",
        ),
        ({"start": 0, "end": 6, "kind": 3}, "must be text"),
        ("asthma", "must be an object with start and end, found str"),
    ],
)
def test_a_mention_that_cannot_be_right_is_named_with_its_line(
    tmp_path: Path, mention: Any, message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line(mentions=[mention]))
    with pytest.raises(DataError, match=message):
        read("spans", path)
    (sentence,) = plugins.find("data.formats", "spans").check(options("spans", path))
    assert f"{path}:1" in sentence


def test_rows_without_the_fields_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "a", "mention": []}) + "\n")
    with pytest.raises(
        DataError, match=r"data\.format\.mentions names 'mentions'; .*did you mean 'mention'"
    ):
        read("spans", path)
    path.write_text(json.dumps({"text": "a", "mentions": None}) + "\n")
    with pytest.raises(DataError, match="must be a list of mentions, found NoneType"):
        read("spans", path)


def test_pubtator_counts_over_title_blank_and_abstract_and_passes_over_relations(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.txt"
    path.write_text(PUBTATOR)
    first, second = read("pubtator", path)
    assert first.text == "Naloxone reverses hypertension. No asthma | here."
    assert [(mention.text, mention.kind) for mention in first.mentions] == [
        ("Naloxone", "Chemical"),
        ("hypertension", "Disease"),
        ("asthma", "SpecificDisease"),
    ]
    assert first.labels == ("Chemical", "Disease", "SpecificDisease")
    assert (second.text, second.mentions, second.where) == ("A title alone", (), f"{path}:8")


def test_kinds_are_chosen_and_called_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text(PUBTATOR)
    first, _ = read(
        "pubtator", path, kinds=("Disease", "SpecificDisease"), kind="Disease", labels=("Disease",)
    )
    assert [(mention.text, mention.kind) for mention in first.mentions] == [
        ("hypertension", "Disease"),
        ("asthma", "Disease"),
    ]
    with pytest.raises(DataError, match=r"rows\.txt:1: label 'Chemical' is not one of the labels"):
        read("pubtator", path, labels=("Disease",))
    with pytest.raises(ConfigError, match="what is kept must be among the labels"):
        plugin_options("data.formats", "name=pubtator,path=x,kinds=[Chemical],labels=[Disease]")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1|t|a\n", r"rows\.txt:1: document '1' has no abstract line"),
        (
            "1|t|a\n2|a|b\n",
            r"rows\.txt:2: the abstract below the title of '1' is of another document",
        ),
        ("1|a|a\n1|a|b\n", r"rows\.txt:1: expected the title as `id\|t\|…`"),
        ("1|t|a\n1|a|b\n1\t0\t1\ta\n", r"rows\.txt:3: has 4 fields between tabs"),
        ("1|t|a\n1|a|b\n1\tx\t1\ta\tD\n", r"rows\.txt:3: start and end must be whole numbers"),
        (
            "1|t|a\n1|a|b\n2\t0\t1\ta\tD\n",
            r"rows\.txt:3: this annotation among those of '1' is of another document",
        ),
        ("1|t|a\n1|a|b\n1\t0\t9\ta\tD\n", r"rows\.txt:3: a mention from 0 to 9 is outside"),
        (
            "1|t|a\n1|a|b\n1\t0\t1\tb\tD\n",
            r"rows\.txt:3: the text of the mention from 0 to 1 differs",
        ),
    ],
)
def test_a_broken_document_is_named_with_its_line(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "rows.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read("pubtator", path)


def test_what_is_written_is_read_back_and_formats_convert_into_each_other(tmp_path: Path) -> None:
    some = [Example("a", TEXT, ("Disease",), mentions=MENTIONS), Example("b", "Nothing here.")]
    write("spans", tmp_path / "one.jsonl", some)
    write("pubtator", tmp_path / "two.txt", read("spans", tmp_path / "one.jsonl", id="id"))
    example = read("pubtator", tmp_path / "two.txt")
    assert [(row.id, row.text, row.labels, row.mentions) for row in example] == [
        (row.id, row.text, row.labels, row.mentions) for row in some
    ]
    with pytest.raises(DataError, match="exists already"):
        write("pubtator", tmp_path / "two.txt", some)
    examples = [Example("a", TEXT, ("Disease",), "test", {"journal": "Lung"}, mentions=MENTIONS)]
    write("spans", tmp_path / "three.jsonl", examples)
    (again,) = read("spans", tmp_path / "three.jsonl", id="id", split="split")
    assert (again.split, dict(again.metadata), again.mentions) == (
        "test",
        {"journal": "Lung"},
        MENTIONS,
    )


def test_what_a_format_cannot_hold_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="has line breaks"):
        write("pubtator", tmp_path / "a", [Example("a", "one\ntwo")])
    with pytest.raises(DataError, match="holds a bar, a tab"):
        write("pubtator", tmp_path / "a", [Example("a|b", "one")])
    for name in ("spans", "pubtator"):
        with pytest.raises(
            DataError, match=r"has the labels cancer, and this format holds only mentions"
        ):
            write(name, tmp_path / "a", [Example("a", "one", ("cancer",))])
    path = tmp_path / "rows.txt"
    path.write_text(PUBTATOR)
    assert (
        cli.main(
            [
                "data",
                "convert",
                f"name=pubtator,path={path}",
                f"name=jsonl,path={tmp_path / 'out.jsonl'}",
            ]
        )
        != 0
    )
    assert "has mentions, which jsonl does not hold" in capsys.readouterr().err
    assert (
        cli.main(
            [
                "data",
                "convert",
                f"name=pubtator,path={path}",
                f"name=spans,path={tmp_path / 'out.jsonl'}",
            ]
        )
        == 0
    )
    assert len(read("spans", tmp_path / "out.jsonl", id="id")[0].mentions) == 3


@pytest.mark.parametrize("field", ["mentions", "spans"])
def test_annotated_texts_are_recognised_and_get_a_first_study_of_tagging(
    tmp_path: Path, field: str
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {
            "id": f"r{number}",
            "note": "n",
            "abstract": f"asthma {number}",
            field: [{"start": 0, "end": 6}],
        }
        for number in range(9)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    example = sketch(str(path), Hints())
    options_of_file = {"name": "spans", "path": str(path), "text": "abstract", "id": "id"}
    assert example.options.model_dump(exclude_unset=True) == (
        options_of_file if field == "mentions" else options_of_file | {"mentions": field}
    )
    assert "kinds of mentions: 'Disease' (9 rows)" in example.render()
    first = yaml.safe_load(first_study(example, "study.yaml", None))
    assert first["task"]["name"] == "tagging"
    with pytest.raises(ConfigError, match="its rows have mentions"):
        first_study(example, "study.yaml", "cancer")
    with pytest.raises(ConfigError, match="--text-column does not apply"):
        sketch(str(path), Hints(text=("note",)))


def test_a_pubtator_file_is_recognised_by_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text(PUBTATOR)
    example = sketch(str(path), Hints())
    assert example.options.model_dump(exclude_unset=True) == {"name": "pubtator", "path": str(path)}
    assert example.labels.keys() == {"Chemical", "Disease", "SpecificDisease"}


def test_mentions_outside_every_text_are_reported_with_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line("short", [{"start": 0, "end": 99}]))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: a mention from 0 to 99"):
        sketch(str(path), Hints())
