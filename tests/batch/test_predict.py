"""A release predicts a whole dataset: each id once, bad rows set aside, predictions as from
`medray.load`, and a resume after a kill."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import tiny

import medray
from medray import cli
from medray.batch import rows, single
from medray.batch.driver import BatchRequest, ReadTask, prepare
from medray.batch.pieces import Piece
from medray.batch.pool import Pool
from medray.batch.predictor import UNANSWERABLE, Predictor, Work, predict_rows
from medray.batch.rows import InputRow
from medray.errors import ArtifactError, DataError
from medray.registry.registry import Registry
from medray.runtime.cluster import Cluster, Node
from medray.types import Example, Prediction

STUDIES: dict[str, Callable[..., Any]] = {
    "cancer": tiny.study,
    "triage": tiny.choice_study,
    "answers": tiny.instruct_study,
    "tags": lambda place, *settings: tiny.mention_study(
        place, "{name: tagging, max_length: 64}", *settings
    ),
    "mentions": lambda place, *settings: tiny.mention_study(
        place, "{name: extraction, max_length: 100, max_answer: 40}", *settings, family="llama"
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage path with a release of each task."""
    folder = tmp_path_factory.mktemp("released")
    registry = Registry(str(folder / "runs"))
    for name, make in STUDIES.items():
        (place := folder / name).mkdir()
        registry.publish(tiny.trial(make(place, "train.epochs=1"), place).run().checkpoint, name)
    return folder / "runs"


def library(path: Path, num_rows: int) -> list[dict[str, str]]:
    rng = random.Random(7)
    inputs = [
        {"id": f"r{number}", "text": tiny.text(rng, rng.randint(3, 20))}
        for number in range(num_rows)
    ]
    pq.write_table(pa.Table.from_pylist(inputs), path)
    return inputs


def predict(runs: Path, reference: str, source: Path, output: Path, *options: str) -> int:
    """Predict on Ray, since the number of actors is given."""
    return predict_here(runs, reference, source, output, "--actors", "2", *options)


def predict_here(runs: Path, reference: str, source: Path, output: Path, *options: str) -> int:
    where = ["--input", str(source), "--output", str(output), "--storage-path", str(runs)]
    return cli.main(["predict", reference, *where, "--precision", "fp32", *options])


def answers_of(output: Path) -> dict[str, dict[str, Any]]:
    return {
        row["id"]: row
        for path in output.glob("part-*.jsonl")
        for row in map(json.loads, path.read_text().splitlines())
    }


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither started nor imported."""
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
    inputs = library(tmp_path / "rows.parquet", 12)
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
    inputs = library(tmp_path / "rows.parquet", 300)
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
    library(tmp_path / "rows.parquet", 3)
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
    inputs = library(tmp_path / "rows.parquet", 100)
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
        library(tmp_path / f"{num_rows}.parquet", num_rows)
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


@pytest.mark.ray
def test_ray_and_one_process_write_the_same_of_the_same_rows(
    runs: Path, tmp_path: Path, cluster: Cluster
) -> None:
    library(tmp_path / "rows.parquet", 100)
    for name, answer in (("ray", predict), ("here", predict_here)):
        assert answer(runs, "cancer", tmp_path / "rows.parquet", tmp_path / f"{name}.jsonl") == 0
    by_ray, here = answers_of(tmp_path / "ray.jsonl"), answers_of(tmp_path / "here.jsonl")
    assert by_ray.keys() == here.keys()
    for name, row in here.items():
        assert list(row) == list(by_ray[name])
        assert (row["labels"], row["abstained"]) == (
            by_ray[name]["labels"],
            by_ray[name]["abstained"],
        )
        assert list(row["probabilities"].values()) == pytest.approx(
            list(by_ray[name]["probabilities"].values()), abs=1e-4
        )
    names = [
        sorted(
            {
                path.name.split(".")[0].split("-")[0]
                for path in (tmp_path / f"{name}.jsonl").iterdir()
            }
        )
        for name in ("ray", "here")
    ]
    assert names[0] == names[1] == ["_done", "_precision", "_run", "_summary", "part"]
    summaries = [
        json.loads((tmp_path / f"{name}.jsonl" / "_summary.json").read_text())
        for name in ("ray", "here")
    ]
    for summary in summaries:
        del summary["parts"], summary["run"]["piece_rows"]
    assert summaries[0] == summaries[1]


@pytest.mark.ray
def test_every_id_is_answered_once_as_by_the_loaded_release_and_bad_rows_are_set_aside(
    runs: Path, tmp_path: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = library(tmp_path / "rows.parquet", 300)
    with (tmp_path / "rows.jsonl").open("w") as file:
        bad: list[dict[str, object]] = [
            {"id": "r5", "text": "fever again"},
            {"id": "empty", "text": ""},
            {"id": "five", "text": 5},
            {"text": "lung"},
        ]
        file.writelines(json.dumps(row) + "\n" for row in [*inputs, *bad])
    assert predict(runs, "cancer", tmp_path / "rows.jsonl", tmp_path / "out.parquet") == 0
    result = pq.read_table(tmp_path / "out.parquet")
    assert sorted(result["id"].to_pylist()) == sorted(
        [row["id"] for row in inputs] + ["rows.jsonl:304"]
    )
    assert (result.schema.metadata[b"release"], result.schema.metadata[b"version"]) == (
        b"cancer",
        b"1",
    )
    answers = {row["id"]: row for row in result.to_pylist()}
    for row, expectation in zip(
        inputs,
        medray.load("cancer", storage_path=str(runs)).predict([row["text"] for row in inputs]),
        strict=True,
    ):
        answer = answers[row["id"]]
        assert (answer["label"], answer["abstained"]) == (
            expectation.labels[0],
            expectation.abstained,
        )
        assert answer["confidence"] == pytest.approx(expectation.confidence, abs=1e-3)
        assert list(answer["probabilities"].values()) == pytest.approx(
            expectation.probabilities, abs=1e-3
        )
    aside = [
        json.loads(line)
        for path in (tmp_path / "out.parquet" / "_set_aside").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert sorted((line["id"], line["kind"]) for line in aside) == [
        ("empty", rows.EMPTY),
        ("five", rows.WRONG_TYPE),
        ("r5", "repeated id"),
    ]
    summary = json.loads((tmp_path / "out.parquet" / "_summary.json").read_text())
    assert (summary["rows"], summary["answered"], summary["set_aside"], summary["made_ids"]) == (
        304,
        301,
        3,
        1,
    )
    assert summary["parts"] > 1
    assert (
        "304 rows: 301 predicted, 3 set aside, 1 ids made of file and position"
        in capsys.readouterr().out
    )


@pytest.mark.ray
@pytest.mark.slow
def test_a_choice_is_answered_too_and_too_many_bad_rows_stop_the_run_until_more_are_allowed(
    runs: Path, tmp_path: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = library(tmp_path / "rows.parquet", 40)
    lines = [
        "id;text",
        *(f"{row['id']};{row['text']} naïve" for row in inputs),
        *(f"b{number};" for number in range(10)),
    ]
    (tmp_path / "rows.csv").write_text("\n".join(lines), encoding="cp1252")
    assert predict(runs, "triage", tmp_path / "rows.csv", tmp_path / "out.csv") == 1
    message = (
        "10 of 50 rows cannot be predicted, more than --max-bad 0.1, so the run did not start; the "
        "first is rows.csv:42: the text is empty"
    )
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
    texts = {
        "id": [str(number) for number in range(50)],
        "text": [row["text"] for row in inputs] + [""] * 10,
    }
    pq.write_table(pa.table(texts), tmp_path / "some.parquet")  # its texts are read once
    assert predict(runs, "triage", tmp_path / "some.parquet", tmp_path / "some") == 1
    assert (
        "10 of 50 rows were set aside, more than --max-bad 0.1; one is some.parquet:41: the "
        "text is empty"
    ) in capsys.readouterr().err
    assert not (tmp_path / "some" / "_summary.json").exists()
    assert (
        predict(
            runs,
            "triage",
            tmp_path / "rows.csv",
            tmp_path / "out.csv",
            "--resume",
            "--max-bad",
            "0.3",
        )
        == 0
    )
    assert "text: text    id: id    encoding: cp1252\n" in capsys.readouterr().out
    (part,) = (tmp_path / "out.csv").glob("part-*.csv")
    assert len(part.read_text().splitlines()) == 41


@pytest.mark.ray
@pytest.mark.slow
def test_a_release_that_is_not_what_its_manifest_says_answers_nothing(
    runs: Path, tmp_path: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    library(tmp_path / "rows.parquet", 10)
    storage = tmp_path / "runs"
    shutil.copytree(runs, storage)
    weights = Registry(str(storage)).resolve("cancer").folder() / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert predict(storage, "cancer", tmp_path / "rows.parquet", tmp_path / "out") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medray: ")]
    assert "adapter_model.safetensors was changed" in line
    assert not list((tmp_path / "out").glob("part-*"))


@pytest.mark.chaos
@pytest.mark.slow
def test_a_run_that_is_killed_half_way_goes_on_and_answers_every_id_once(
    runs: Path, tmp_path: Path, cluster: Cluster
) -> None:
    inputs = library(tmp_path / "rows.parquet", 4000)
    output = tmp_path / "out.jsonl"
    where = [
        "--input",
        str(tmp_path / "rows.parquet"),
        "--output",
        str(output),
        "--storage-path",
        str(runs),
    ]
    command = [
        sys.executable,
        "-m",
        "medray.cli",
        "predict",
        "cancer",
        *where,
        "--precision",
        "fp32",
        "--actors",
        "1",
        "--cpus",
        "1",
    ]
    run = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"RAY_ADDRESS": ""}, start_new_session=True
    )
    notes = output / "_done"
    _wait(lambda: notes.is_dir() and len(list(notes.iterdir())) >= 2, run)
    os.killpg(run.pid, signal.SIGKILL)  # the driver and its Ray
    run.wait()
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert 0 < len(before) < -(-4000 // 500)
    assert (
        predict(
            runs,
            "cancer",
            tmp_path / "rows.parquet",
            output,
            "--resume",
            "--actors",
            "1",
            "--cpus",
            "1",
        )
        == 0
    )
    assert {name: (output / name).stat().st_mtime_ns for name in before} == before
    ids = [
        json.loads(line)["id"]
        for path in output.glob("part-*")
        for line in path.read_text().splitlines()
    ]
    assert sorted(ids) == sorted(row["id"] for row in inputs)


def _wait(until: Callable[[], bool], run: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while not until():
        assert run.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_precision_that_the_first_worker_chose_and_another_lacks_is_an_error_with_a_remedy(
    runs: Path, tmp_path: Path
) -> None:
    library(tmp_path / "rows.parquet", 10)
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
        r"its first part is in int8, which this machine cannot compute: .* answers in 8 bits are "
        r"gone.* "
        r"or start another output with --precision",
        str(failure),
    )
