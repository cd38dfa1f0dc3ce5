import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from medray import plugins
from medray.config.load import plugin_options
from medray.config.trial import SplitConfig
from medray.data.split import assign
from medray.errors import ConfigError, DataError
from medray.types import Example

CONCLUSION = "Aspirin therefore prevents strokes."


def record(number: int, answer: str) -> dict[str, Any]:
    return {
        "QUESTION": f"Does drug {number} help?",
        "CONTEXTS": [f"Background  {number}.", "Results."],
        "LABELS": ["BACKGROUND", "RESULTS"],
        "YEAR": "2001",
        "LONG_ANSWER": CONCLUSION,
        "final_decision": answer,
    }


ANSWERS = {
    "11": "yes",
    "12": "no",
    "13": "maybe",
    "14": "yes",
    "15": "no",
    "16": "yes",
    "17": "yes",
    "18": "no",
}


def official(folder: Path) -> Path:
    path = folder / "ori_pqal.json"
    path.write_text(
        json.dumps({pmid: record(int(pmid), answer) for pmid, answer in ANSWERS.items()})
    )
    return path


def hub_rows() -> list[dict[str, Any]]:
    return [
        {
            "pubid": int(pmid),
            "question": f"Does drug {pmid} help?",
            "context": {
                "contexts": [f"Background  {pmid}.", "Results."],
                "labels": ["BACKGROUND", "RESULTS"],
                "meshes": ["Drug"],
            },
            "long_answer": CONCLUSION,
            "final_decision": answer,
        }
        for pmid, answer in ANSWERS.items()
    ]


def read(path: Path, **settings: object) -> list[Example]:
    module = plugins.find("data.formats", "pubmedqa")
    return list(module.read(module.Options(name="pubmedqa", path=str(path), **settings)))


@pytest.mark.document("004", "PubMedQA, labelled", where="`medray/data/formats/pubmedqa.py`")
def test_the_official_json_and_the_hubs_layouts_are_the_same_examples(tmp_path: Path) -> None:
    rows = read(official(tmp_path))
    assert rows[0].text == "Background 11.\nResults.\n\nQuestion: Does drug 11 help?"
    assert [(row.id, row.labels[0]) for row in rows] == list(ANSWERS.items())
    table, jsonl = tmp_path / "train-00000-of-00001.parquet", tmp_path / "pqa_labeled.jsonl"
    pa.parquet.write_table(pa.Table.from_pylist(hub_rows()), str(table))
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in hub_rows()))
    for other in (table, jsonl):
        assert [(row.id, row.text, row.labels) for row in read(other)] == [
            (row.id, row.text, row.labels) for row in rows
        ]


@pytest.mark.document("004", "yes and no are the answers", where="`data.format.labels`")
def test_the_question_may_stand_alone_and_labels_may_be_left_out(tmp_path: Path) -> None:
    rows = read(official(tmp_path), template="Question: {question}", labels=("yes", "no"))
    assert [row.text for row in rows][:2] == [
        "Question: Does drug 11 help?",
        "Question: Does drug 12 help?",
    ]
    assert Counter(row.labels[0] for row in rows) == {"yes": 4, "no": 3}
    with pytest.raises(ValidationError, match="allowed: maybe, no, yes"):
        read(official(tmp_path), labels=("yes", "perhaps"))


@pytest.mark.parametrize("name", ["LONG_ANSWER", "long_answer", "longAnswer", "Long Answer"])
def test_the_conclusion_is_refused_by_name_in_every_format(name: str) -> None:
    settings = [
        f"name=pubmedqa,path=a.json,template='{{question}} {{{name}}}'",
        f"name=jsonl,path=a.jsonl,template='{{question}} {{{name}}}'",
        f"name=jsonl,path=a.jsonl,text=[question, {name}]",
        f"name=delimited,path=a.csv,text=[{name}]",
    ]
    for text in settings:
        with pytest.raises(ConfigError, match="states the answer; no text or prompt may hold it"):
            plugin_options("data.formats", text)


def test_the_conclusion_is_in_no_part_of_an_example(tmp_path: Path) -> None:
    jsonl = tmp_path / "rows.jsonl"
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in hub_rows()))
    for path in (official(tmp_path), jsonl):
        rows = read(path)
        assert len(rows) == len(ANSWERS)
        assert CONCLUSION not in repr(rows)


def test_the_official_split_goes_by_the_ids_of_the_ground_truth(tmp_path: Path) -> None:
    truth = tmp_path / "test_ground_truth.json"
    truth.write_text(json.dumps({pmid: ANSWERS[pmid] for pmid in ("14", "15", "16")}))
    rows = read(official(tmp_path), ground_truth=str(truth))
    assert {row.id for row in rows if row.split == "test"} == {"14", "15", "16"}
    sides = assign(rows, SplitConfig(kind="given", validation=0.3), range(len(rows)))
    assert [
        side for row, side in zip(rows, sides, strict=True) if row.id in ("14", "15", "16")
    ] == ["test"] * 3
    truth.write_text(json.dumps({"13": "yes"}))
    with pytest.raises(DataError, match="13: the answer is 'maybe', and 'yes' in"):
        read(official(tmp_path), ground_truth=str(truth))
    truth.write_text(json.dumps({"99": "yes"}))
    with pytest.raises(DataError, match="lacks 1 of the 1 ids"):
        read(official(tmp_path), ground_truth=str(truth))


def test_broken_records_are_named(tmp_path: Path) -> None:
    path = tmp_path / "ori_pqal.json"
    for content, sentence in [
        ({"QUESTION": 5, "CONTEXTS": [], "final_decision": "yes"}, "11: 'question' must be text"),
        (
            {"QUESTION": "a", "CONTEXTS": "b", "final_decision": "yes"},
            "11: CONTEXTS must be a list of texts",
        ),
        (
            {"QUESTION": "a", "CONTEXTS": [], "final_decision": "perhaps"},
            "11: label 'perhaps' is not one of the labels",
        ),
        ([], "11: must be an object"),
    ]:
        path.write_text(json.dumps({"11": content}))
        with pytest.raises(DataError, match=sentence):
            read(path)
    path.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read(path)
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.json")


def test_other_examples_are_written_in_the_official_layout(tmp_path: Path) -> None:
    module = plugins.find("data.formats", "pubmedqa")
    settings = module.Options(
        name="pubmedqa", path=str(tmp_path / "again.json"), template="{question}"
    )
    module.write([Example("7", "Is it so?", ("no",))], settings)
    assert [(row.id, row.text, row.labels) for row in module.read(settings)] == [
        ("7", "Is it so?", ("no",))
    ]
    with pytest.raises(DataError, match="requires one of yes, no, maybe per row"):
        module.write(
            [Example("7", "a", ("cancer",))],
            module.Options(name="pubmedqa", path=str(tmp_path / "no.json")),
        )


@pytest.mark.real
def test_the_real_rows_are_read_without_their_conclusions(real_data: Path) -> None:
    path = real_data / "pubmedqa" / "ori_pqal.json"
    rows = read(path)
    assert Counter(row.labels[0] for row in rows) == {"yes": 276, "no": 169, "maybe": 55}
    conclusions = {
        pmid: record["LONG_ANSWER"] for pmid, record in json.loads(path.read_text()).items()
    }
    assert not any(conclusions[row.id] in row.text for row in rows)


def test_the_conclusion_is_the_answer_with_explain_and_never_a_text(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ori_pqal.json"
    path.write_text(
        json.dumps(
            {
                str(number): record(number, answer)
                for number, answer in enumerate(("yes", "no", "maybe"))
            }
        )
    )
    options = {"name": "pubmedqa", "path": str(path)}
    plain, with_reasons = (
        list(plugins.find("data.formats", "pubmedqa").read(plugin_options("data.formats", text)))
        for text in (
            ",".join(f"{key}={value}" for key, value in (options | more).items())
            for more in ({}, {"explain": "true"})
        )
    )
    assert [row.response for row in plain] == ["", "", ""]
    assert [row.response for row in with_reasons] == [
        f"{CONCLUSION}\n\nDecision: {answer}" for answer in ("yes", "no", "maybe")
    ]
    assert [row.labels for row in with_reasons] == [("yes",), ("no",), ("maybe",)]
    for row in (*plain, *with_reasons):
        assert "Aspirin" not in row.text
        assert "Aspirin" not in str(row.metadata)
        assert "Aspirin" not in str(row.turns)
    path.write_text(json.dumps({"7": {**record(7, "yes"), "LONG_ANSWER": " "}}))
    with pytest.raises(DataError, match="7: has no LONG_ANSWER, which explain true requires"):
        list(
            plugins.find("data.formats", "pubmedqa").read(
                plugin_options("data.formats", f"name=pubmedqa,path={path},explain=true")
            )
        )
