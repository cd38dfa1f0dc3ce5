"""Batch prediction on Ray: results as of one process, bad rows set aside, a resume after a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.batches import answers_of, predict, predict_here, write_rows

import medray
from medray.batch import rows
from medray.registry.registry import Registry
from medray.runtime.cluster import Cluster


def write_bad_rows(folder: Path, num_rows: int) -> list[dict[str, str]]:
    """Write rows as JSON lines, with a repeated id, two bad texts and a row without an id, and
    return the good ones with an id."""
    inputs = write_rows(folder / "rows.parquet", num_rows)
    bad: list[dict[str, object]] = [
        {"id": "r5", "text": "fever again"},
        {"id": "empty", "text": ""},
        {"id": "five", "text": 5},
        {"text": "lung"},
    ]
    with (folder / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in [*inputs, *bad])
    return inputs


def set_aside(output: Path) -> list[dict[str, str]]:
    """Return the rows that a prediction set aside, by id."""
    lines = [
        json.loads(line)
        for path in (output / "_set_aside").iterdir()
        for line in path.read_text().splitlines()
    ]
    return sorted(lines, key=lambda line: str(line["id"]))


@pytest.mark.ray
def test_ray_and_one_process_write_the_same_of_the_same_rows(
    runs: Path, tmp_path: Path, cluster: Cluster
) -> None:
    write_bad_rows(tmp_path, 100)
    for name, answer in (("ray", predict), ("here", predict_here)):
        assert answer(runs, "cancer", tmp_path / "rows.jsonl", tmp_path / f"{name}.jsonl") == 0
    assert set_aside(tmp_path / "ray.jsonl") == set_aside(tmp_path / "here.jsonl")
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
    assert names[0] == names[1]
    assert {"_done", "_precision", "_run", "_set_aside", "_summary", "part"} <= set(names[0])
    summaries = [
        json.loads((tmp_path / f"{name}.jsonl" / "_summary.json").read_text())
        for name in ("ray", "here")
    ]
    for summary in summaries:
        del summary["parts"], summary["run"]["piece_rows"]
    assert summaries[0] == summaries[1]


def test_every_id_is_answered_once_as_by_the_loaded_release_and_bad_rows_are_set_aside(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = write_bad_rows(tmp_path, 300)
    assert predict_here(runs, "cancer", tmp_path / "rows.jsonl", tmp_path / "out.parquet") == 0
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
    aside = set_aside(tmp_path / "out.parquet")
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
    inputs = write_rows(tmp_path / "rows.parquet", 40)
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
    write_rows(tmp_path / "rows.parquet", 10)
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
    inputs = write_rows(tmp_path / "rows.parquet", 4000)
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
