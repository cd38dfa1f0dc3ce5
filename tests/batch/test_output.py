import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from medray.batch.output import BatchOutput, Record, encode, tabulate
from medray.batch.rows import InputRow
from medray.errors import ArtifactError, ConfigError
from medray.storage.store import open_store
from medray.tasks import classification, decisions
from medray.tasks.base.protocol import Task
from medray.types import Mention, Prediction, QuestionAnswer

RECORD = Record(
    medray="1",
    release="cancer",
    version=3,
    content_id="c" * 64,
    input="rows.jsonl",
    fingerprint="f",
    text_columns=("text",),
    id_column="id",
    most_characters=1000,
    token_budget=256,
    precision="auto",
    form="parquet",
    piece_rows=64,
)
META = {"release": "cancer", "version": "3"}


def task(*, multi_label: bool = False) -> Task:
    return classification.Task(
        classification.Options(name="classification", multi_label=multi_label), ("cancer", "other")
    )


ANSWERS = [
    Prediction("0", ("cancer",), (0.9, 0.1), 0.9, False),
    Prediction("1", ("other",), (0.4, 0.6), 0.6, True),
]


def test_parts_hold_what_a_prediction_holds_and_who_made_it(tmp_path: Path) -> None:
    table = tabulate(task(), ["a", "b"], ANSWERS, META)
    (tmp_path / "part.parquet").write_bytes(encode(table, "parquet"))
    table = pq.read_table(tmp_path / "part.parquet")
    assert table.schema.metadata[b"release"] == b"cancer"
    assert table.to_pylist()[1] == {
        "id": "b",
        "label": "other",
        "labels": ["other"],
        "confidence": 0.6,
        "abstained": True,
        "probabilities": {"cancer": 0.4, "other": 0.6},
    }
    assert [
        json.loads(line) for line in encode(table, "jsonl").decode().splitlines()
    ] == table.to_pylist()
    row = next(csv.DictReader(io.StringIO(encode(table, "csv").decode())))
    assert (row["id"], row["label"], json.loads(row["probabilities"])) == (
        "a",
        "cancer",
        {"cancer": 0.9, "other": 0.1},
    )


def test_a_row_of_several_labels_or_none_has_no_single_one() -> None:
    answers = [
        Prediction("0", ("cancer", "other"), (0.9, 0.8), 0.8),
        Prediction("1", (), (0.1, 0.2), 0.8),
    ]
    table = tabulate(task(multi_label=True), ["a", "b"], answers, META)
    assert "label" not in table.column_names
    assert table["labels"].to_pylist() == [["cancer", "other"], []]


def test_a_task_without_labels_answers_with_texts_and_mentions() -> None:
    class Speaking:
        labels = ()

    prediction = Prediction("0", (), (), text="yes", mentions=(Mention(0, 6, "tumour", "disease"),))
    table = tabulate(Speaking(), ["a"], [prediction], META)  # type: ignore[arg-type]
    assert table.to_pylist() == [
        {
            "id": "a",
            "text": "yes",
            "mentions": [{"start": 0, "end": 6, "text": "tumour", "kind": "disease"}],
        }
    ]


def test_a_piece_that_is_written_twice_is_there_once_and_counted_once(tmp_path: Path) -> None:
    output = BatchOutput(open_store(str(tmp_path / "out")), "parquet")
    output.begin(RECORD, resume=False)
    table, aside = (
        tabulate(task(), ["a", "b"], ANSWERS, META),
        [InputRow("c", "", "rows.jsonl:3", True, "empty", "the text is empty")],
    )
    for _ in range(2):
        output.write(0, 7, table, aside, 1)
    summary = output.finish(RECORD, 3)
    assert (summary.answered, summary.set_aside, summary.made_ids, summary.parts) == (2, 1, 1, 1)
    assert summary.reasons == {"empty": 1}
    assert output.summary() == summary
    assert (
        pq.read_table(tmp_path / "out").num_rows == 2
    )  # a reader of the folder sees answers alone


def test_an_output_that_does_not_add_up_is_never_called_whole(tmp_path: Path) -> None:
    output = BatchOutput(open_store(str(tmp_path / "out")), "parquet")
    output.begin(RECORD, resume=False)
    output.write(0, 0, tabulate(task(), ["a", "b"], ANSWERS, META), [], 0)
    with pytest.raises(
        ArtifactError, match="3 rows were read, but 2 have predictions and 0 are set aside"
    ):
        output.finish(RECORD, 3)
    assert output.summary() is None


def test_an_output_is_begun_once_and_gone_on_with_only_as_it_was_begun(tmp_path: Path) -> None:
    output = BatchOutput(open_store(str(tmp_path / "out")), "parquet")
    output.begin(RECORD, resume=True)  # where there is nothing yet, it starts
    with pytest.raises(ConfigError, match="exists already; choose another"):
        output.begin(RECORD, resume=False)
    assert output.begin(RECORD.model_copy(update={"piece_rows": 128}), resume=True).piece_rows == 64
    with pytest.raises(ConfigError, match="was started with version 3 and cannot continue with 4"):
        output.begin(RECORD.model_copy(update={"version": 4}), resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not an output of medray"):
        BatchOutput(open_store(str(tmp_path / "mine")), "parquet").begin(RECORD, resume=True)


def test_answers_to_questions_have_a_column_with_their_probabilities() -> None:
    answer = QuestionAnswer("urgent", "predicate", ("true", "false"), (0.7, 0.3), 0.7, True)
    prediction = Prediction("0", (), (), answers=(answer,))
    asking = decisions.Task(decisions.Options(name="decisions"))
    (row,) = tabulate(asking, ["a"], [prediction], META).to_pylist()
    assert row == {
        "id": "a",
        "answers": [
            {
                "name": "urgent",
                "value": "true",
                "confidence": 0.7,
                "abstained": True,
                "probabilities": [
                    {"value": "true", "probability": 0.7},
                    {"value": "false", "probability": 0.3},
                ],
            }
        ],
    }
