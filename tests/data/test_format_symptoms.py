from collections import Counter
from pathlib import Path

import pytest

from medray import plugins
from medray.config.load import plugin_options
from medray.errors import ConfigError, DataError
from medray.types import Example

TABLE = """Disease,Symptom_1,Symptom_2,Symptom_3,Weight
Fungal infection,itching, skin_rash, dischromic _patches,1
Fungal infection , skin_rash,itching,dischromic _patches ,2
 Allergy, chills,,chills,3
Allergy,,watering_from_eyes,,4
,,,,
"""


def read(path: Path, **settings: object) -> list[Example]:
    module = plugins.find("data.formats", "symptom_table")
    return list(module.read(module.Options(name="symptom_table", path=str(path), **settings)))


def file_of(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text)
    return path


@pytest.mark.document(
    "002",
    "columns of symptoms become one text, duplicates go",
    where="`medray/data/formats/symptom_table.py`",
)
def test_symptoms_become_a_sentence_and_repeated_rows_are_read_once(tmp_path: Path) -> None:
    rows = read(file_of(tmp_path, TABLE))
    assert [(row.labels, row.text) for row in rows] == [
        (("Fungal infection",), "Patient presents with: itching; skin rash; dischromic patches"),
        (("Allergy",), "Patient presents with: chills"),
        (("Allergy",), "Patient presents with: watering from eyes"),
    ]
    assert [row.id for row in rows] == ["1", "3", "4"]
    assert rows[2].where.endswith("table.csv:5")


def test_the_sentence_is_what_the_template_says(tmp_path: Path) -> None:
    rows = read(file_of(tmp_path, TABLE), template="{symptoms}?", separator=", ")
    assert rows[0].text == "itching, skin rash, dischromic patches?"
    for wrong in (
        "no place",
        "{symptoms} {disease}",
        "{symptoms} {symptoms}",
        "{symptoms!r}",
        "{}",
    ):
        with pytest.raises(ConfigError, match="template"):
            plugin_options("data.formats", f"name=symptom_table,path=a.csv,template='{wrong}'")


def test_a_table_with_a_blank_header_is_read_by_position(tmp_path: Path) -> None:
    body = TABLE.splitlines()[1:3]
    (row,) = read(file_of(tmp_path, "\n".join([",,,", *(line.rsplit(",", 1)[0] for line in body)])))
    assert row.text == "Patient presents with: itching; skin rash; dischromic patches"


def test_wrong_tables_are_reported_with_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"table\.csv:1: data\.format\.label names 'Disease'; allowed: Symptom_1, disease",
    ):
        read(file_of(tmp_path, "disease,Symptom_1\na,b\n"))
    with pytest.raises(DataError, match="no column begins with 'Symptom'"):
        read(file_of(tmp_path, "Disease,Sign_1\na,b\n"))
    with pytest.raises(DataError, match=r"table\.csv:3: has 1 values"):
        read(file_of(tmp_path, "Disease,Symptom_1\na,b\nc\n"))
    with pytest.raises(DataError, match=r"table\.csv:2: the label is empty"):
        read(file_of(tmp_path, "Disease,Symptom_1\n,b\n"))
    with pytest.raises(DataError, match=r"label 'c' is not one of the labels"):
        read(file_of(tmp_path, "Disease,Symptom_1\nc,b\n"), labels=("a", "b"))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    module = plugins.find("data.formats", "symptom_table")
    rows = read(file_of(tmp_path, TABLE))
    module.write(rows, module.Options(name="symptom_table", path=str(tmp_path / "again.csv")))
    assert [(row.labels, row.text) for row in read(tmp_path / "again.csv")] == [
        (row.labels, row.text) for row in rows
    ]
    with pytest.raises(DataError, match="needs exactly one label and the metadata 'symptoms'"):
        module.write(
            [Example("1", "a", ("b",))],
            module.Options(name="symptom_table", path=str(tmp_path / "no.csv")),
        )


@pytest.mark.real
def test_the_public_table_holds_243_different_pairs_of_41_diseases(real_data: Path) -> None:
    rows = read(real_data / "symptoms" / "dataset.csv")
    assert len(rows) == 243
    counts = Counter(row.labels[0] for row in rows)
    assert len(counts) == 41
    assert {"Diabetes", "Hypertension", "(vertigo) Paroymsal Positional Vertigo"} <= counts.keys()
    assert not any("_" in row.text for row in rows)
