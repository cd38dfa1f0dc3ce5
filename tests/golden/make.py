"""The files that medray writes and the bodies that it answers, from fixed inputs: `python
tests/golden/make.py` stores them in `files`.

What differs between machines or from day to day is replaced by a word in angle brackets.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parents[1]))

from starlette.testclient import TestClient
from support import fake_service, run_files, tiny

from medray import cli
from medray.evaluation import leaderboard_files
from medray.records import MergeRecord, SliceRecord, TestRecord
from medray.registry.registry import Registry

FILES = Path(__file__).parent / "files"
COMMAND = "python tests/golden/make.py"
# Values of these keys differ from day to day or between machines.
VARYING = (
    "by",
    "content_id",
    "created",
    "data_fingerprint",
    "record",
    "release_date",
    "split_fingerprint",
    "time",
    "weight_hash",
)
# Numbers below these keys of a checkpoint are figures of a trained model, or of this machine.
MEASUREMENTS = (
    "confusion",
    "metrics",
    "outputs",
    "per_class",
    "probabilities",
    "seconds",
    "sizes",
    "tokens_per_s",
    "train_loss",
    "values",
)
_BLOCK = re.compile(
    r"(?=<(?:circle|details|div|figure|g|h[1-6]|header|li|line|path|p|rect|section|svg|table|td|text|th|tr)\b)"
)
_FLOAT = re.compile(r"-?\d+\.\d{4,}(?:e[+-]?\d+)?")


def documents() -> dict[str, str]:
    """The text of each golden file, by name."""
    with TemporaryDirectory() as folder:
        return {
            **_run(Path(folder).resolve()),
            **_release(Path(folder).resolve()),
            **_checkpoints(),
            **_http(),
        }


def write() -> None:
    """Store every golden file, and remove those that are not made any more."""
    FILES.mkdir(exist_ok=True)
    texts = documents()
    for path in FILES.iterdir():
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        (FILES / name).write_text(text, encoding="utf-8")


def _run(folder: Path) -> dict[str, str]:
    """What a study leaves in its run's folder, and its report."""
    run = run_files.run(folder, histories=run_files.trials(num_failed=1))
    page = folder / "report.html"
    assert cli.main(["report", str(run.folder), "--output", str(page)]) == 0
    board = run.leaderboard()
    texts = {
        "study.yaml": (run.folder / "study.yaml").read_text(encoding="utf-8"),
        "leaderboard.json": (run.folder / "leaderboard.json").read_text(encoding="utf-8"),
        "leaderboard.csv": leaderboard_files.to_csv(leaderboard_files.rows(board)),
        "leaderboard.md": leaderboard_files.to_markdown(board, run.analysis()),
        "history.csv": leaderboard_files.to_csv(
            leaderboard_files.history_rows(
                {record.trial: run.history(record.trial) for record in run.records()}
            )
        ),
        "analysis.json": _indent((run.folder / "analysis.json").read_bytes()),
        "trial.json": (run.trial_dir(board.winner) / "trial.json").read_text(encoding="utf-8"),
        "trial-failed.json": (run.trial_dir("small-encoder-003") / "trial.json").read_text(
            encoding="utf-8"
        ),
        "report.html": _BLOCK.sub("\n", page.read_text(encoding="utf-8")),
    }
    for name, text in texts.items():
        text = text.replace(str(folder), "<folder>").replace(run.folder.name, "<start>")
        text = re.sub(r"\bmedray \d+\.\d+[\w.]*", "medray <version>", text)
        texts[name] = _FLOAT.sub(lambda match: _short(float(match.group())), text)
    return texts


def _release(folder: Path) -> dict[str, str]:
    """The record of a release with everything that one may hold, and the move of an alias."""
    calibration = run_files.analysis("small-encoder-000").best.calibration
    lowest = SliceRecord(
        column="length",
        value="long",
        num_rows=20,
        metric="f1_macro",
        f1=0.8,
        low=0.7,
        high=0.9,
        num_compared=3,
        is_below=True,
    )
    test = TestRecord(
        metrics={"f1_macro": 0.9},
        num_rows=12,
        num_openings=2,
        ece=(0.1, 0.05),
        answered=(0.7, 0.96),
        worst_slice=lowest,
        num_seeds=3,
    )
    registry = Registry(str(folder / "registry"))
    release = registry.publish(
        tiny.checkpoint(),
        "cancer",
        test=test,
        merge=MergeRecord(metric="f1_macro", unmerged=0.9, merged=0.899),
        calibration=calibration,
        notes="for the golden files",
    )
    registry.point("cancer", "best", release.record.version)
    below = folder / "registry" / "releases" / "cancer"
    paths = {
        "release.json": below / "1.json",
        "alias-move.json": below / "aliases" / "best" / "1.json",
    }
    assert sorted(path.relative_to(below) for path in below.rglob("*.json")) == sorted(
        path.relative_to(below) for path in paths.values()
    )
    return {
        name: _indent(path.read_bytes(), lambda value: _neutral(value, ["probabilities"]))
        for name, path in paths.items()
    }


def _checkpoints() -> dict[str, str]:
    """What a trial stores of a checkpoint and beside it; of its adapter's weights the names and
    shapes."""
    texts = {}
    for task, folder in (
        ("classification", tiny.checkpoint()),
        ("choice", tiny.checkpoint("choice")),
    ):
        for name in ("manifest.json", "metrics.json", "audit.json", "adapter_config.json"):
            texts[f"{task}-{name}"] = _indent((folder / name).read_bytes(), _of_checkpoint)
        first = (folder / "predictions.jsonl").read_bytes().splitlines()[0]
        texts[f"{task}-prediction.json"] = _indent(first, _of_checkpoint)
        texts[f"{task}-history.json"] = _indent(
            (folder.parents[1] / "history.json").read_bytes(), _of_checkpoint
        )
        place = str(folder.parents[2])  # where the test data, the base model and the trial are
        texts |= {name: text.replace(place, "<folder>") for name, text in texts.items()}
    return texts


def _http() -> dict[str, str]:
    """The service's document, and its answers at each route."""
    http = TestClient(fake_service.api(fake_service.Service()), raise_server_exceptions=False)
    document = http.get("/openapi.json").json()
    document["info"]["version"] = "<version>"
    chat = {"model": "adviser@best", "messages": [{"role": "user", "content": "What is asthma?"}]}
    completion = {"model": "adviser@best", "prompt": "Asthma is"}
    choice = {
        "type": "choice",
        "name": "label",
        "instructions": "Is it about cancer?",
        "choices": [{"value": "no cancer"}, {"value": "cancer"}],
    }
    predicate = {"type": "predicate", "name": "fever", "instructions": "Has the patient fever?"}
    labels = {"type": "choice", "criteria": ["no cancer", "cancer"]}
    requests: list[tuple[str, str, dict[str, Any] | None]] = [
        ("GET", "/healthz", None),
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/adviser@best", None),
        ("GET", "/v1/releases", None),
        ("POST", "/v1/classify", {"model": "cancer@best", "inputs": ["one", "two"]}),
        ("POST", "/classify", {"model": "cancer@best", "text": "one"}),
        ("POST", "/v1/choose", {"model": "pubmedqa@2", "text": "one"}),
        ("POST", "/v1/explain", {"model": "cancer@best", "text": "not asthma"}),
        ("POST", "/v1/extract", {"model": "diseases@1", "text": "aspirin against asthma"}),
        (
            "POST",
            "/v1/decisions",
            {"model": "cancer@best", "input": "one", "questions": [choice]},
        ),
        (
            "POST",
            "/v1/decisions",
            {"model": "findings@best", "input": "fever", "questions": [predicate]},
        ),
        (
            "POST",
            "/v1/decisions",
            {"model": "cancer@best", "input": "unclear", "questions": [choice]},
        ),
        (
            "POST",
            "/v1/decisions",
            {"model": "cancer@best", "input": "one", "questions": [predicate]},
        ),
        (
            "POST",
            "/v1/systemone",
            {"model": "cancer@best", "state": {"age": 4}, "questions": {"label": labels}},
        ),
        (
            "POST",
            "/v1/systemone",
            {"model": "findings@best", "state": "fever", "questions": {"fever": {"type": "noul"}}},
        ),
        ("POST", "/v1/systemone", {"model": "cancer@best", "state": "one", "questions": {}}),
        ("POST", "/v1/chat/completions", chat),
        (
            "POST",
            "/v1/chat/completions",
            chat | {"stream": True, "stream_options": {"include_usage": True}},
        ),
        ("POST", "/v1/completions", completion),
        ("POST", "/v1/completions", completion | {"stream": True}),
        ("POST", "/v1/classify", {"model": "unknown", "text": "one"}),
        ("POST", "/v1/classify", {"model": "cancer@best"}),
        ("POST", "/v1/choose", {"model": "cancer@best", "text": "one"}),
        ("POST", "/v1/chat/completions", chat | {"messages": []}),
        ("GET", "/v1/nothing", None),
    ]
    answers = []
    for method, path, body in requests:
        response = http.request(method, path, json=body)
        answers.append(
            {
                "request": f"{method} {path}",
                "sent": body,
                "status": response.status_code,
                "answer": _answer(response.text),
            }
        )
    return {
        "openapi.json": json.dumps(document, indent=1) + "\n",
        "answers.json": json.dumps(answers, indent=1, ensure_ascii=False) + "\n",
    }


def _answer(text: str) -> Any:
    """A body, or the events of a stream."""
    if not text.startswith("data:"):
        return _neutral(json.loads(text))
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    return [event if event == "[DONE]" else _neutral(json.loads(event)) for event in events]


def _indent(raw: bytes, change: Callable[[Any], Any] = lambda value: value) -> str:
    return json.dumps(change(json.loads(raw)), indent=1, ensure_ascii=False) + "\n"


def _of_checkpoint(value: Any) -> Any:
    return _neutral(value, MEASUREMENTS)


def _neutral(value: Any, measurements: Collection[str] = (), is_measured: bool = False) -> Any:
    """The value with a word in angle brackets for what varies: its keys, its types and its plain
    values stay."""
    if isinstance(value, dict):
        return {
            key: _replace(key, inner)
            or _neutral(inner, measurements, is_measured or key in measurements)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_neutral(inner, measurements, is_measured) for inner in value]
    if isinstance(value, str):
        return re.sub(r"^(cmpl|chatcmpl|dec)-.*", r"\1-<number>", value)
    if is_measured and isinstance(value, int | float) and not isinstance(value, bool):
        return "<number>"
    return float(_short(value)) if isinstance(value, float) else value


def _replace(key: str, value: Any) -> Any:
    """What stands for the value of a key that varies; nothing for another key."""
    if key == "versions":
        return dict.fromkeys(value, "<version>")
    if key in ("files", "sizes"):  # in the order of the file system
        return dict.fromkeys(sorted(value), "<number>" if key == "sizes" else "<sha256>")
    if key == "git_commit":  # none outside a repository
        return "<git_commit>"
    return f"<{key}>" if key in VARYING and isinstance(value, str | int) else None


def _short(number: float) -> str:
    """Six digits: further ones may differ between processors."""
    return f"{0.0 if abs(number) < 1e-9 else number:.6g}"


if __name__ == "__main__":
    write()
    print(f"{len(list(FILES.iterdir()))} files in {FILES}")
