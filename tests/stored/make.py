"""Stores an interrupted run and releases in an archive: `python tests/stored/make.py`.

The archive comes from an earlier version and must stay readable, so it is never rewritten. A new
format gets an archive of its own beside it. Paths inside are relative to the folder of unpacking.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parents[1]))

from starlette.testclient import TestClient
from support import fake_service, tiny

import medray
from medray.records import AbstentionRecord, CalibrationRecord, TestRecord
from medray.registry.registry import Registry
from medray.serving.opening import open_model
from medray.serving.schemas import AppOptions, Limits
from medray.serving.text_model import TextModel

HERE = Path(__file__).parent
ARCHIVE, EXPECTATIONS = HERE / "stored.tar.gz", HERE / "expected.json"
COMPLETE, INCOMPLETE = "tiny-bert-000", "tiny-bert-001"  # trials
BEFORE, AFTER = 300, 360  # it was interrupted between these steps, the ends of epochs 5 and 6
TEXTS = (
    "tumour in the lung",
    "fever after infection",
    "the patient was stage no carcinoma",
    "blood pressure of the group before therapy",
)
STUDY = """
name: tiny
storage_path: runs
data: {format: {name: jsonl, path: rows.jsonl, id: id}}
task: {name: classification, positive_label: cancer, max_length: 48}
base_models: [{source: ./tiny-bert}]
model: {precision: fp32}
train:
  {epochs: 2, samples_per_step: 4, learning_rate: 0.003, token_budget: 128, log_every_steps: 10}
search: {algorithm: grid, space: {train.epochs: {grid: [3, 7]}}}
resources: {cpus_per_worker: 1}
publish: {name: winner, allow_worse: true}
"""
# A resume writes these again, or they depend on the machine, or only Ray Tune reads them.
_LEFT_OUT = (
    "prepared",
    "tune-*",
    "log.txt",
    "status.json",
    "stop",
    ".lock",
    "*.lock",
    "*tfevents*",
    "train",
    "output.txt",
)


def unpack(folder: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")


def study(folder: Path, *options: str, interrupted_at: str = "") -> str:
    """Run `medray study` in a folder and return its output. Interrupt it as soon as the log of the
    incomplete trial contains a text."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_")
    } | {"OMP_NUM_THREADS": "1"}
    output = folder / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("medray"), "study", "study.yaml", *options],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_accept_interrupts,
        )
    try:
        deadline = time.monotonic() + 500
        while process.poll() is None:
            assert time.monotonic() < deadline, output.read_text()
            logs = folder.glob(f"runs/tiny/*/trials/{INCOMPLETE}/log.txt") if interrupted_at else ()
            if any(interrupted_at in log.read_text() for log in logs):
                process.send_signal(signal.SIGINT)
                interrupted_at = ""
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode in (0, 130), output.read_text()
    return output.read_text()


def _accept_interrupts() -> None:
    """Restore the handling of Ctrl-C, which children of a shell's background job ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def predictions(reference: str) -> list[dict[str, Any]]:
    """Return the predictions of a release in the current folder for TEXTS."""
    answers = medray.load(reference, storage_path="runs").predict(TEXTS)
    return [
        {
            "labels": list(answer.labels),
            "probabilities": list(answer.probabilities),
            "abstained": answer.abstained,
        }
        for answer in answers
    ]


def answer_over_http(reference: str) -> Any:
    """Return the service's response to TEXTS. The release is merged and has its embeddings, as in a
    replica."""
    options = AppOptions(
        releases=(reference,),
        storage_path="runs",
        precision="fp32",
        token_budget=256,
        flag_unlike_training=True,
    )
    with ThreadPoolExecutor(1) as thread:
        head = open_model(Registry("runs").resolve(reference), options, thread, device="cpu")
        assert isinstance(head, TextModel)

        class Service(fake_service.Service):
            async def answer(self, reference: str, request: Any) -> Any:
                return head.answer(request, limits=Limits(), deadline=time.monotonic() + 60)

        response = TestClient(fake_service.api(Service(reference))).post(
            "/v1/classify", json={"inputs": list(TEXTS)}
        )
    assert response.status_code == 200, response.text
    return response.json()


def results(folder: Path) -> dict[str, Any]:
    """Return the results of an ended study: the history of each trial and the leaderboard."""
    board = medray.leaderboard(str(folder / "runs" / "tiny"))
    trials = sorted((folder / "runs" / "tiny").glob("*/trials/*/history.json"))
    figures = ("epoch", "step", "train_loss", "metrics")
    return {
        "winner": board.winner,
        "entries": {
            entry.name: {"validation": dict(entry.validation), "test": dict(entry.test)}
            for entry in board.entries
        },
        "histories": {
            path.parent.name: [
                {name: row[name] for name in figures} for row in json.loads(path.read_bytes())
            ]
            for path in trials
        },
    }


def write() -> None:
    with TemporaryDirectory() as place:
        folder = Path(place) / "stored"
        folder.mkdir()
        tiny.base(folder, "bert")
        tiny.abstracts(folder, num_rows=400)
        (folder / "study.yaml").write_text(STUDY.lstrip(), encoding="utf-8")
        study(folder, interrupted_at=f"step {BEFORE + 10}/")
        _check_interrupt(folder)
        os.chdir(folder)  # paths are relative
        _publish(folder)
        copy = shutil.copytree(
            folder, Path(place) / "kept", ignore=shutil.ignore_patterns(*_LEFT_OUT)
        )
        _reduce(copy)
        _pack(copy)
        study(copy, "--resume")
        expectations = {
            "predictions": predictions("cancer@1"),
            "answer": answer_over_http("cancer@1"),
            "study": results(copy),
        }
        EXPECTATIONS.write_text(json.dumps(expectations, indent=1) + "\n", encoding="utf-8")
        os.chdir(HERE)


def _check_interrupt(folder: Path) -> None:
    """Assert that one trial has ended and the other has a state from the middle of an epoch."""
    records = {
        path.parent.name: json.loads(path.read_bytes())
        for path in folder.glob("runs/tiny/*/trials/*/trial.json")
    }
    assert {name: record["status"] for name, record in records.items()} == {
        COMPLETE: "finished",
        INCOMPLETE: "running",
    }
    (state,) = folder.glob(f"runs/tiny/*/trials/{INCOMPLETE}/state/*")
    step = re.fullmatch(r"step-(\d+)", state.name)
    assert step, state.name
    assert BEFORE < int(step.group(1)) < AFTER, state.name


def _publish(folder: Path) -> None:
    """Publish version 1 with a calibration and metrics, and version 2 with an 8-bit record too."""
    checkpoint = max(folder.glob(f"runs/tiny/*/trials/{COMPLETE}/checkpoints/*"))
    registry = Registry("runs")
    rule = AbstentionRecord(precision=0.9, level=0.8, threshold=0.6, coverage=0.8)
    calibration = CalibrationRecord(temperature=1.5, abstention=rule, num_rows=80)
    test = TestRecord(
        metrics={"f1_macro": 0.9},
        num_rows=80,
        num_openings=1,
        ece=(0.1, 0.05),
        answered=(0.8, 0.95),
    )
    registry.publish(checkpoint, "cancer", test=test, calibration=calibration, notes="stored")
    registry.publish(
        checkpoint,
        "cancer",
        test=test,
        calibration=calibration,
        notes="stored, with a record of 8 bits",
    )
    int8 = {
        "metric": "f1_macro",
        "plain": 0.9,
        "int8": 0.9,
        "agreement": 1.0,
        "num_rows": 80,
        "tolerance": 0.5,
        "calibration": {},
    }
    record = folder / "runs" / "releases" / "cancer" / "2.json"  # records no longer have `int8`
    record.write_text(
        json.dumps(json.loads(record.read_bytes()) | {"int8": int8}, indent=1), encoding="utf-8"
    )
    registry.point("cancer", "best", 1)
    alias = folder / "runs" / "releases" / "cancer" / "aliases" / "best" / "1.json"
    alias.write_text(
        json.dumps(json.loads(alias.read_bytes()) | {"by": "someone"}), encoding="utf-8"
    )


def _reduce(folder: Path) -> None:
    """Delete all of the complete trial but its best checkpoint, the only one read again."""
    (trial,) = folder.glob(f"runs/tiny/*/trials/{COMPLETE}")
    best = [
        row["step"] for row in json.loads((trial / "history.json").read_bytes()) if row["is_best"]
    ][-1]
    shutil.rmtree(trial / "state")
    for checkpoint in (trial / "checkpoints").iterdir():
        if checkpoint.name != f"step-{best:06d}":
            shutil.rmtree(checkpoint)


def _pack(folder: Path) -> None:
    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(ARCHIVE, "w:gz") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.add(path, str(path.relative_to(folder)), filter=plain)


if __name__ == "__main__":
    write()
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size / 1000:.0f} kB")
