"""Compares the sentences that an answer cites with as many random ones, on texts with labels.

`STUDY` is a study of the task `choice`, such as `jobs/studies/pubmedqa.yaml`; its first base model
answers untuned, or the checkpoint of `--checkpoint`. Rows are validation rows of at most
`task.max_length` tokens. Sufficiency is better if it is low, comprehensiveness if it is high."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import numpy as np
from study_model import parser, study_model

from medray.config.load import load_study
from medray.data import dataset as datasets
from medray.evaluation.bootstrap import Sums, Tallies, compare, interval, value
from medray.evaluation.metrics import ratio
from medray.tasks.base import protocol as tasks
from medray.tasks.base.citations import evidence_of, of_labels
from medray.tasks.base.protocol import Calibrated
from medray.types import Engine, Example, Floats

FIGURES = ("sufficiency", "comprehensiveness")


def main() -> None:
    args = parser(__doc__, num_rows=50).parse_args()
    logging.basicConfig(level=logging.ERROR)
    study = load_study([args.study], args.settings)
    config = study.trial(study.base_models[0])
    dataset = datasets.load(config.data, tasks.task_options(config.task).bring)
    task, engine = study_model(args.checkpoint, config, dataset)
    assert isinstance(task, Calibrated), "a task without labels has no citations of labels"
    bare = [example.without_answer() for example in dataset.validation]
    encoded = task.encode(bare, engine.tokenizer)
    whole = [row for row, each in zip(bare, encoded, strict=True) if not each.truncated]
    show(*measure(task, engine, whole[: args.rows]))


def measure(task: Calibrated, engine: Engine, rows: Sequence[Example]) -> tuple[Tallies, Tallies]:
    """Return the figures of cited and of random sentences, on the rows that cite any."""
    rng = np.random.default_rng(0)
    ids: list[str] = []
    columns: dict[str, list[float]] = defaultdict(list)
    num_sentences = num_cited = 0
    for row, prediction in zip(rows, task.predict(engine, rows), strict=True):
        attribution = of_labels(
            task, lambda examples: task.predict(engine, examples), row.text, prediction
        )
        (citations,) = attribution.cite()
        if not citations.sentences:
            continue
        evidence = evidence_of(attribution.sentences)
        sample = rng.choice(evidence, len(citations.sentences), replace=False).tolist()
        ids.append(row.id)
        columns["cited sufficiency"].append(citations.sufficiency or 0.0)
        columns["cited comprehensiveness"].append(citations.comprehensiveness or 0.0)
        for name, figure in zip(FIGURES, attribution.erase(0, sample), strict=True):
            columns[f"random {name}"].append(figure)
        num_sentences += len(evidence)
        num_cited += len(citations.sentences)
        print(f"{len(ids)} rows", end="\r", flush=True)
    print(
        f"{len(ids)} of {len(rows)} rows cite sentences: {num_cited / len(ids):.1f} of "
        f"{num_sentences / len(ids):.1f} on average"
    )
    results = [
        tallies(ids, {name: columns[f"{arm} {name}"] for name in FIGURES})
        for arm in ("cited", "random")
    ]
    return results[0], results[1]


def tallies(ids: Sequence[str], columns: dict[str, list[float]]) -> Tallies:
    counts = {name: np.array(values) for name, values in columns.items()}
    counts["rows"] = np.ones(len(ids))
    return Tallies(tuple(ids), counts, {name: partial(mean, name=name) for name in columns})


def mean(sums: Sums, name: str) -> Floats:
    return ratio(sums[name], sums["rows"])


def show(citations: Tallies, sample: Tallies) -> None:
    for name in FIGURES:
        for arm, results in (("cited", citations), ("random", sample)):
            spread = interval(results, name)
            line = f"{value(results, name):+.3f} ({spread.low:+.3f} to {spread.high:+.3f})"
            print(f"{name:18} {arm:14} {line}")
        pair = compare(citations, sample, name)
        line = f"{pair.difference:+.3f} ({pair.low:+.3f} to {pair.high:+.3f})"
        print(f"{name:18} {'cited - random':14} {line}")


if __name__ == "__main__":
    main()
