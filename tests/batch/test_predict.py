"""A release predicts a whole dataset: each id once, bad rows set aside, predictions as from
`medray.load`, and a resume of an interrupted run."""

import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.batches import STUDIES, answers_of, predict, predict_here, write_rows

import medray
from medray.batch import rows, single
from medray.batch.driver import BatchRequest, ReadTask, prepare
from medray.batch.pieces import Piece
from medray.batch.pool import Pool
from medray.batch.predictor import UNANSWERABLE, Predictor, Work, predict_rows
from medray.batch.rows import InputRow
from medray.errors import ArtifactError, DataError
from medray.runtime.cluster import Cluster, Node
from medray.types import Example, Prediction


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test fail if Ray is started or the pool is imported."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("medray.runtime.cluster.start_cluster", None)
    monkeypatch.setitem(sys.modules, "medray.batch.pool", None)


def test_only_the_rows_that_cannot_be_answered_are_set_aside(runs: Path) -> None:
    release = medray.load("cancer", storage_path=str(runs))

    def predict(examples: Sequence[Example]) -> list[Prediction]:
        if any("poison" in example.text for example in examples):
            raise DataError("there is no token in the text")
        return release.predict(examples)

    rows_in = [
        InputRow(f"r{number}", "poison" if number in (2, 7) else f"tumour {number}", f"f:{number}")
        for number in range(9)
    ]
    result = predict_rows(predict, rows_in)
    assert [(row.id, row.fault) for row in result.unanswerable] == [
        ("r2", UNANSWERABLE),
        ("r7", UNANSWERABLE),
    ]
    assert [row.id for row in result.rows] == ["r0", "r1", "r3", "r4", "r5", "r6", "r8"]
    expectation = release.predict([Example(row.id, row.text) for row in result.rows])
    assert [row.labels for row in result.predictions] == [row.labels for row in expectation]


@pytest.mark.parametrize("name", STUDIES)
def test_a_release_of_every_task_writes_what_the_loaded_release_says(
    runs: Path, tmp_path: Path, name: str
) -> None:
    inputs = write_rows(tmp_path / "rows.parquet", 12)
    plan = prepare(
        BatchRequest(
            name, str(tmp_path / "rows.parquet"), str(tmp_path / "out"), str(runs), precision="fp32"
        )
    )
    work = Work(plan.record(64), plan.request.storage_path, plan.request.output, 1)
    piece = Piece(
        0,
        0,
        tuple(
            InputRow(row["id"], row["text"], f"rows.parquet:{number}")
            for number, row in enumerate(inputs, 1)
        ),
    )
    Predictor(work, "cpu").answer(piece)
    result = pq.read_table(tmp_path / "out" / "part-00000-000000.parquet").to_pylist()
    for row, expectation in zip(
        result,
        medray.load(name, storage_path=str(runs)).predict([row["text"] for row in inputs]),
        strict=True,
    ):
        if "labels" in row:
            assert (row["labels"], row["abstained"]) == (
                list(expectation.labels),
                expectation.abstained,
            )
            assert row["confidence"] == pytest.approx(expectation.confidence, abs=1e-3)
            assert list(row["probabilities"].values()) == pytest.approx(
                expectation.probabilities, abs=1e-3
            )
        else:
            assert (row["text"], row["mentions"]) == (
                expectation.text,
                [asdict(mention) for mention in expectation.mentions],
            )
    assert ("labels" in result[0]) == (name in ("cancer", "triage"))
    if name == "answers":
        assert any(row["text"] for row in result)
    if name in ("tags", "mentions"):
        assert {"text", "mentions"} < result[0].keys()


def test_what_was_finished_is_read_over_and_what_was_half_done_is_done_again(
    runs: Path, tmp_path: Path
) -> None:
    """The readers' pieces given to a worker, one after another, and the run cut off between two
    writes."""
    inputs = write_rows(tmp_path / "rows.parquet", 300)
    request = BatchRequest(
        "cancer",
        str(tmp_path / "rows.parquet"),
        str(tmp_path / "out.jsonl"),
        str(runs),
        resume=True,
        precision="fp32",
    )
    plan = prepare(request)
    work = Work(plan.record(64), plan.request.storage_path, plan.request.output, 1)
    output = work.open_output()
    output.begin(work.record, resume=False)
    predictor = Predictor(work, "cpu")

    def read(skip: tuple[int, ...]) -> list[Piece]:
        return list(ReadTask(plan.source.shards[0], (), skip).pieces(plan.columns, work.record))

    every = read(())
    assert [piece.number for piece in every] == [0, 1, 2, 3, 4]
    for piece in every[:2]:
        predictor.answer(piece)
    predictor.answer(every[3])
    (
        tmp_path / "out.jsonl" / "_done" / "00000-000003.64.0.0"
    ).unlink()  # its answers were written, and then the power failed
    answers = (tmp_path / "out.jsonl" / "part-00000-000003.jsonl").read_bytes()
    assert [note.number for note in output.notes()] == [0, 1]
    with pytest.raises(ArtifactError, match="300 rows were read, but 128 have predictions"):
        output.finish(work.record, 300)
    left = read((0, 1))
    assert [piece.number for piece in left] == [2, 3, 4]
    for piece in left:
        predictor.answer(piece)
    assert (tmp_path / "out.jsonl" / "part-00000-000003.jsonl").read_bytes() == answers
    assert output.finish(work.record, 300).answered == 300
    ids = [
        json.loads(line)["id"]
        for path in (tmp_path / "out.jsonl").glob("part-*")
        for line in path.read_text().splitlines()
    ]
    assert sorted(ids) == sorted(row["id"] for row in inputs)


def test_a_pool_fills_the_cluster_and_no_more() -> None:
    two, large, gpus = Node(2, 0), Node(64, 0), Node(16, 4)
    assert Pool.of(Cluster((two,), None, False), None, None) == Pool(2, 1, 0.0)
    assert Pool.of(Cluster((two, two), None, False), 3, None) == Pool(3, 1, 0.0)
    assert Pool.of(Cluster((large, two), None, False), None, None) == Pool(8, 8, 0.0)
    assert Pool.of(Cluster((gpus, gpus), None, False), None, None) == Pool(8, 1, 1.0)
    with pytest.raises(ValueError, match="--cpus 4: no node has so many CPUs; give at most 2"):
        Pool.of(Cluster((two,), None, False), None, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-bad", "2"], "--max-bad 2.0: is not a share of the rows"),
        (["--text-column", "body"], "--text-column 'body' is not a column; allowed: id, text"),
        (["--output", "taken"], "exists already; choose another"),
        (["--input", "none.csv"], "does not exist; name a file or folder"),
        (["--encoding", "utf-99"], "--encoding 'utf-99': is not known; allowed: utf-8, utf-16"),
        (["--delimiter", "x"], "--delimiter 'x': is not known; allowed: , ; | tab"),
        (["--delimiter", "tab"], "--encoding and --delimiter do not apply: parquet"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence_before_ray_starts(
    runs: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.parquet", 3)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    monkeypatch.setattr("medray.runtime.cluster.start_cluster", None)
    assert predict(runs, "cancer", tmp_path / "rows.parquet", tmp_path / "out", *options) == 1
    assert message in capsys.readouterr().err


def test_few_rows_are_answered_in_one_process_cut_off_and_gone_on_with(
    runs: Path,
    tmp_path: Path,
    no_ray: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = write_rows(tmp_path / "rows.parquet", 100)
    output, answer = tmp_path / "out.jsonl", Predictor.answer

    def cut_off(predictor: Predictor, piece: Piece) -> Any:
        if piece.number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return answer(predictor, piece)

    before = signal.getsignal(signal.SIGTERM)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Predictor, "answer", cut_off)
            assert predict_here(runs, "cancer", tmp_path / "rows.parquet", output) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    output_text = capsys.readouterr()
    assert "`medray predict --resume` continues" in output_text.err
    assert (
        "cancer@1 predicts 100 rows in this process (as for up to 2,000 rows; --actors N uses Ray)"
    ) in output_text.out
    assert re.search(r"first rows after \d+ s: 16 of 100\n", output_text.out)
    assert not (output / "_summary.json").exists()
    first = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert len(first) == 2
    assert predict_here(runs, "cancer", tmp_path / "rows.parquet", output, "--resume") == 0
    assert "32 of 100 rows are predicted already" in capsys.readouterr().out
    assert {name: (output / name).stat().st_mtime_ns for name in first} == first
    result = answers_of(output)
    assert result.keys() == {row["id"] for row in inputs}
    for row, expectation in zip(
        inputs,
        medray.load("cancer", storage_path=str(runs)).predict([row["text"] for row in inputs]),
        strict=True,
    ):
        assert list(result[row["id"]]["probabilities"].values()) == pytest.approx(
            expectation.probabilities, abs=1e-3
        )
    assert predict_here(runs, "cancer", tmp_path / "rows.parquet", output) == 1
    assert "exists already" in capsys.readouterr().err


def test_in_one_process_auto_is_the_arithmetic_of_the_training_and_too_many_bad_rows_stop_the_run(
    runs: Path, tmp_path: Path, no_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text(
        "id,text\n"
        + "".join(f"r{number},{'fever' if number % 2 else ''}\n" for number in range(40))
    )
    options = ["--precision", "auto", "--text-column", "text"]
    assert predict_here(runs, "cancer", tmp_path / "rows.csv", tmp_path / "out", *options) == 1
    assert (
        "20 of 40 rows cannot be predicted, more than --max-bad 0.1, so the run did not start"
        in capsys.readouterr().err
    )
    assert (
        predict_here(
            runs, "cancer", tmp_path / "rows.csv", tmp_path / "out", *options, "--max-bad", "0.6"
        )
        == 0
    )
    summary = json.loads((tmp_path / "out" / "_summary.json").read_text())
    assert (
        summary["precision"],
        summary["run"]["precision"],
        summary["answered"],
        summary["reasons"],
    ) == (
        "fp32",
        "auto",
        20,
        {"empty": 20},
    )


def test_an_output_with_answers_of_a_part_that_the_input_lacks_is_refused(
    runs: Path, tmp_path: Path, no_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text("id,text\nr1,fever\n")
    request = (runs, "cancer", tmp_path / "rows.csv", tmp_path / "out", "--text-column", "text")
    assert predict_here(*request) == 0
    (tmp_path / "out" / "_summary.json").unlink()
    (tmp_path / "out" / "_done" / "00099-000000.1.0.0").touch()
    assert predict_here(*request, "--resume") == 1
    assert (
        "out: has predictions of part 99, which the input does not have; choose another --output"
        in capsys.readouterr().err
    )


def test_more_rows_than_a_process_answers_go_to_ray_unread(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single, "MOST_ROWS", 50)
    for num_rows, is_small in ((50, True), (51, False)):
        write_rows(tmp_path / f"{num_rows}.parquet", num_rows)
        plan = prepare(
            BatchRequest(
                "cancer",
                str(tmp_path / f"{num_rows}.parquet"),
                str(tmp_path / f"out-{num_rows}"),
                str(runs),
            )
        )
        assert (single.count(plan) is not None) == is_small
    (tmp_path / "many.jsonl").write_text(
        "".join(f'{{"id": "r{number}", "text": "fever"}}\n' for number in range(10**5))
    )
    plan = prepare(
        BatchRequest("cancer", str(tmp_path / "many.jsonl"), str(tmp_path / "out"), str(runs))
    )
    read = 0

    def counting(*arguments: Any) -> Any:
        nonlocal read
        for row in rows.read(*arguments):
            read += 1
            yield row

    monkeypatch.setattr(
        "medray.batch.pieces.rows", SimpleNamespace(read=counting, check_columns=rows.check_columns)
    )
    assert single.count(plan) is None
    assert read == 51


def test_a_precision_that_the_first_worker_chose_and_another_lacks_is_an_error_with_a_remedy(
    runs: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path / "rows.parquet", 10)
    request = BatchRequest(
        "cancer",
        str(tmp_path / "rows.parquet"),
        str(tmp_path / "out.jsonl"),
        str(runs),
        resume=True,
    )
    plan = prepare(request)
    work = Work(plan.record(64), plan.request.storage_path, plan.request.output, 1)
    work.open_output().begin(work.record, resume=False)
    assert work.open_output().agree("precision", "int8") == "int8"
    failure = Predictor(work, "cpu").failure
    assert re.search(
        r"its first part is in int8, which this machine cannot compute: .* int8 is not supported.* "
        r"or start another output with --precision",
        str(failure),
    )
