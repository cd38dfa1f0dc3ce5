"""Arms of `predict.py --encode`: rows of a study and of `datasets.map`, from a CSV to encoded rows
on disk. Each stage reports its seconds, CPU seconds and peak memory."""

import csv
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LENGTH = 256
_CHARACTERS, _LABELS = 2048, ("neoplasms", "digestive", "nervous", "cardiovascular", "general")
_RUN = 8  # words that stay together, as in the abstract that they come from


def write_rows(texts: list[str], num_rows: int, path: Path) -> None:
    """Write rows of 2,048 characters, each of short runs of words from many texts."""
    rng = np.random.default_rng(0)
    words = np.array(" ".join(texts).split(), dtype=object)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label"])
        for number in range(num_rows):
            starts = rng.integers(len(words) - _RUN, size=_CHARACTERS // (2 * _RUN))
            runs = words[starts[:, None] + np.arange(_RUN)]
            text = " ".join(runs.ravel())[:_CHARACTERS]
            writer.writerow([f"r{number:08}", text, _LABELS[number % len(_LABELS)]])


@dataclass(frozen=True)
class Stage:
    name: str
    seconds: float
    cpu_seconds: float
    gib: float  # peak of the memory that is no file's, of this process and its children


class Stages:
    """Measures each stage from the end of the one before."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self._start = self._now()
        self._peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def end(self, name: str) -> None:
        now = self._now()
        spans = [after - before for before, after in zip(self._start, now, strict=True)]
        self.stages.append(Stage(name, *spans, max(self._peak, _anonymous_bytes()) / 2**30))
        self._start, self._peak = now, 0

    def _now(self) -> tuple[float, float]:
        return time.monotonic(), sum(os.times()[:4])

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, _anonymous_bytes())
            time.sleep(0.2)


def _anonymous_bytes() -> int:
    return sum(map(_anonymous_bytes_of, _family(os.getpid())))


def _family(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [
            int(child) for task in tasks for child in (task / "children").read_text().split()
        ]
    except OSError:  # it ended meanwhile
        return [pid]
    return [pid, *(member for child in children for member in _family(child))]


def _anonymous_bytes_of(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


class _StageLog(logging.Handler):
    """Ends a stage where medray logs the end of one."""

    def __init__(self, stages: Stages) -> None:
        super().__init__()
        self.stages = stages

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == "%s: %d %s in %.1f s" and isinstance(record.args, tuple):
            self.stages.end(str(record.args[0]))


def encode_with_medray(rows: Path, folder: Path, base: str) -> list[Stage]:
    """Read, split, encode and audit rows as a study does."""
    os.environ["MEDRAY_CACHE"] = str(folder / "cache")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # as in a study, where nobody sets it
    from medray.config.trial import TrialConfig
    from medray.data import dataset as datasets
    from medray.data import meter
    from medray.tasks.base import protocol as tasks
    from medray.training.material import gather

    config = TrialConfig.model_validate(
        {
            "data": {"format": {"name": "delimited", "path": str(rows), "id": "id"}},
            "task": {"name": "classification", "max_length": LENGTH},
            "model": {"source": base},
            "train": {"epochs": 1},
        }
    )
    stages = Stages()
    meter.log.addHandler(_StageLog(stages))
    meter.log.setLevel(logging.INFO)
    dataset = datasets.load(config.data)
    task = tasks.fit(config.task, dataset.label_sets(), dataset.train)
    gather(config, dataset, task, folder / "prepared")
    stages.end("row hashes, description")
    return stages.stages


def encode_with_datasets(rows: Path, folder: Path, base: str) -> list[Stage]:
    """Encode rows as tutorials do. Texts are cut, and nobody counts the tokens of whole ones."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # map forks
    from datasets import disable_progress_bars, load_dataset

    from medray.models import sources
    from medray.models.build import load_tokenizer

    disable_progress_bars()
    tokenizer = load_tokenizer(sources.resolve(base, None).path)
    stages = Stages()
    table = load_dataset("csv", data_files=str(rows), split="train", cache_dir=str(folder))
    stages.end("read")
    table.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=LENGTH),
        batched=True,
        num_proc=2,
        remove_columns=["text"],
    )
    stages.end("map")
    return stages.stages


ARMS: dict[str, Callable[[Path, Path, str], list[Stage]]] = {
    "medray": encode_with_medray,
    "datasets.map, 2 processes": encode_with_datasets,
}
