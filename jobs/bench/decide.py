"""Trains medray and sysone for one typed question on the same rows, and asks both over HTTP. The
question is cancer or not, as a choice between two labels.

`--sysone PYTHON` names the Python of an environment with `pip install 'sysone[serve]'`; without it,
medray is measured alone. Each arm trains with its own defaults, the same base model and the same
number of epochs, and holds back a tenth of the training rows for validation. Figures on test rows
come from the probabilities of both by the same code. Seconds and CPU seconds of `train` begin with
the loaded libraries and end with a calibrated model. `--threads` is for training; a server may use
all cores; its figures are medians of `--rounds`, arms in turns. With `--folder`, an arm that has a
report there is not run again."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import servers
from decide_arms import NAME, OPTIONS, QUESTION, parser, read_rows

ARMS = Path(__file__).with_name("decide_arms.py")
_CLIENTS = 8
FIGURES = ("accuracy", "f1_macro", "log_loss", "brier", "ece")


def write_rows(args: Namespace, folder: Path) -> None:
    """Write training, validation and test rows, cut to a number of words."""
    from medray.config.load import load_study
    from medray.data import dataset as datasets

    study = load_study(
        [],
        [
            "name=bench",
            f"data.format={{name: raw_abstracts, path: '{args.data}'}}",
            f"data.limit={args.rows}",
            f"data.evaluation_rows={args.test_rows}",
            f"data.split.seed={args.seed}",
            "task.name=classification",
            "train.max_steps=1",
            f"base_models=[{{source: '{args.base}'}}]",
        ],
    )
    rows = datasets.load(study.data)
    parts = {
        "train": [row for place, row in enumerate(rows.train) if place % 10],
        "validation": list(rows.train[::10]),
        "test": rows.open_test(folder / "log", "bench").examples,
    }
    for split, examples in parts.items():
        lines = [
            json.dumps(
                {
                    "id": example.id,
                    "state": " ".join(example.text.split()[: args.words]),
                    "questions": {NAME: QUESTION},
                    "expected": {NAME: OPTIONS[example.labels[0] != args.positive]},
                    "split": split,
                }
            )
            for example in examples
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = "".join((folder / f"{split}.jsonl").read_text() for split in parts)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")


def serving_speed(
    args: Namespace, arm: str, folder: Path, texts: Sequence[str]
) -> dict[str, float]:
    """Return requests and CPU seconds of a server that several clients ask about each text, with
    one or several questions a request."""
    port = servers.free_port()
    questions = {NAME: QUESTION} | {
        f"topic_{number}": {
            **QUESTION,
            "instructions": f"Is the text about topic {number}?",
            "criteria": ["yes", "no"],
        }
        for number in range(1, args.questions)
    }
    body = {"model": "bench", "state": "a text", "questions": questions}
    command = servers.serve_command(folder, port)
    if arm == "sysone":
        command = [args.sysone, str(ARMS), *sys.argv[1:], "--arm", "server", str(folder)]
        command += ["--port", str(port)]

    def ask(text: str) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/systemone",
            json.dumps({**body, "state": text}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            answers = json.load(response)["answers"]
            assert answers[NAME]["choice"] in OPTIONS
            assert answers.keys() == questions.keys()

    with (
        servers.server(servers.Arm(command), port, warm_up=("/v1/systemone", body)) as pid,
        ThreadPoolExecutor(_CLIENTS) as pool,
    ):
        list(pool.map(ask, texts[:_CLIENTS]))  # warm-up
        start, cpu_start = time.monotonic(), servers.cpu_seconds(pid)
        list(pool.map(ask, texts))
        duration_s = time.monotonic() - start
        cpu_s = servers.cpu_seconds(pid) - cpu_start
    return {"requests_per_s": len(texts) / duration_s, "cpu_s_per_request": cpu_s / len(texts)}


def compare(folder: Path, reports: dict[str, dict[str, Any]]) -> None:
    """Print the figures of both arms on test rows, and their differences with intervals."""
    from medray.evaluation import bootstrap, decision_scores
    from medray.types import Example, Prediction, Question, QuestionAnswer, QuestionOption

    options = tuple(map(QuestionOption, OPTIONS))
    question = Question(NAME, "choice", str(QUESTION["instructions"]), options)
    examples = [
        Example(
            row["id"],
            row["state"],
            questions=(question,),
            answers=(tuple(float(row["expected"][NAME] == option) for option in OPTIONS),),
        )
        for row in read_rows(folder, "test")
    ]
    tallies = {}
    for name, report in reports.items():
        predictions = [
            Prediction(
                example.id,
                (),
                (),
                answers=(QuestionAnswer(NAME, "choice", OPTIONS, tuple(shares)),),
            )
            for example, shares in zip(examples, report["probabilities"], strict=True)
        ]
        tallies[name] = decision_scores.tally(predictions, examples, lambda question: NAME)
    print(f"{'test rows: ' + str(len(examples)):24}" + "".join(f"{name:>32}" for name in tallies))
    for figure in FIGURES:
        cells = []
        for results in tallies.values():
            spread = bootstrap.interval(results, figure)
            value = bootstrap.value(results, figure)
            cells.append(f"{value:.3f} [{spread.low:.3f} to {spread.high:.3f}]")
        print(f"{figure:24}" + "".join(f"{cell:>32}" for cell in cells))
    if len(tallies) > 1:
        one, two = tallies.values()
        for figure in FIGURES:
            difference = bootstrap.compare(one, two, figure)
            print(
                f"medray minus sysone: {figure} {difference.difference:+.3f} "
                f"[{difference.low:+.3f} to {difference.high:+.3f}]"
            )
    for part in ("train", "predict"):
        for unit in ("seconds", "cpu_seconds"):
            values = {name: report[part][unit] for name, report in reports.items()}
            show(f"{part}: {unit}", values)
    show("steps", {name: report["steps"] for name, report in reports.items()})
    for figure in ("requests_per_s", "cpu_s_per_request"):
        if all(figure in report for report in reports.values()):
            show(figure, {name: report[figure] for name, report in reports.items()})


def show(title: str, values: dict[str, float]) -> None:
    cells = "".join(f"{value:32.2f}" for value in values.values())
    ours, *others = values.values()
    ratio = f"   sysone/medray {others[0] / ours:.2f}" if others and ours else ""
    print(f"{title:24}{cells}{ratio}", flush=True)


def measure(args: Namespace, folder: Path) -> None:
    from medray.models import sources

    folder.mkdir(parents=True, exist_ok=True)
    base = str(sources.resolve(args.base, None).path)
    write_rows(args, folder)
    pythons = {"medray": sys.executable} | ({"sysone": args.sysone} if args.sysone else {})
    reports = {}
    for name, python in pythons.items():
        path = folder / f"{name}.json"
        if not path.exists():
            command = [python, str(ARMS), *sys.argv[1:], "--base-folder", base]
            output = subprocess.run(
                [*command, "--arm", name, str(folder)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
            path.write_text(output.splitlines()[-1] + "\n")
        reports[name] = json.loads(path.read_text())
        print(f"{name}: {reports[name]['train']}", flush=True)
    if args.requests:
        texts = [row["state"] for row in read_rows(folder, "test")][: args.requests]
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in reports}
        for _ in range(args.rounds):
            for name, speeds in rounds.items():
                speeds.append(serving_speed(args, name, folder, texts))
                print(f"{name}: {speeds[-1]}", flush=True)
        for name, report in reports.items():
            for figure in rounds[name][0]:
                report[figure] = statistics.median(speed[figure] for speed in rounds[name])
    compare(folder, reports)


def main() -> None:
    options = parser()
    options.description = __doc__
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(args, args.folder or Path(folder))


if __name__ == "__main__":
    main()
