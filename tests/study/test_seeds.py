"""The reference documents' studies of choices and mentions, with tiny random models of their
architecture classes: from the YAML to an answer over HTTP."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import in_process, tiny
from support.serve_session import end_serve

from medray.client import Client
from medray.config.load import load_study
from medray.config.study import StudyConfig
from medray.config.trial import DataConfig
from medray.data import dataset
from medray.evaluation.calibration import rescale
from medray.registry import evaluate
from medray.reports import html_report, study_data
from medray.runtime.cluster import Cluster, free_port
from medray.serving import app
from medray.serving.schemas import AppOptions
from medray.study import preflight
from medray.study.study import Outcome
from medray.types import DISCLAIMER, Example

pytestmark = [pytest.mark.ray, pytest.mark.slow]
STUDIES = Path(__file__).parents[2] / "jobs" / "studies"


def symptoms(folder: Path) -> Path:
    """The real layout: every row several times, padded with empty columns."""
    rng, path = random.Random(0), folder / "dataset.csv"
    rows = ["Disease," + ",".join(f"Symptom_{number}" for number in range(1, 6))]
    for number in range(48):
        label = list(tiny.SIGNS)[number % 3]
        words = [*tiny.SIGNS[label], *rng.sample(tiny.WORDS[:12], 2)]
        rng.shuffle(words)
        rows += [",".join([label, *(f" {word}" for word in words), ""])] * 2
    path.write_text("\n".join(rows) + "\n")
    return path


def questions(folder: Path) -> Path:
    rng, path = random.Random(0), folder / "ori_pqal.json"
    rows_by_split = {}
    for number in range(60):
        answer = ("yes", "no", "maybe")[number % 3]
        rows_by_split[str(1000 + number)] = {
            "QUESTION": f"{tiny.text(rng, 4)} {'tumour' if answer == 'yes' else 'fever'} {number}?",
            "CONTEXTS": [tiny.text(rng, 8)],
            "LONG_ANSWER": answer,
            "final_decision": answer,
        }
    path.write_text(json.dumps(rows_by_split))
    return path


WORSE = ("publish.allow_worse=true",)  # than TF-IDF, as models of random weights are


def run(
    folder: Path, name: str, data: Path, *families: str, nf4: bool, settings: tuple[str, ...] = ()
) -> tuple[StudyConfig, Outcome]:
    sources = ", ".join(f"{{source: {tiny.base(folder, family)}}}" for family in families)
    study = load_study(
        [STUDIES / f"{name}.yaml"],
        [
            f"base_models=[{sources}]",
            f"data.format.path={data}",
            f"storage_path={folder / 'runs'}",
            "task.max_length=100",
            "train.epochs=2",
            "model.precision=fp32",  # fp16 is for GPUs
            "resources.cpus_per_worker=1",
            *settings,
        ],
    )
    assert study.model.quantization == ("nf4" if nf4 else "none")
    preflight.check(study)
    return study, in_process.run(study)


@pytest.mark.document(
    "000",
    "base model and tuned model are compared, zero-shot against fine-tuned",
    where="`jobs/studies/seed_000_zero_shot.yaml`",
    how="as a language model that is asked; an untrained classification head answers by chance",
)
@pytest.mark.document(
    "002",
    "the base model is measured before training",
    where="the untuned row of `medray leaderboard`",
)
@pytest.mark.document(
    "004",
    "three language models are fine-tuned",
    where="`jobs/studies/seed_004_pubmedqa.yaml`",
)
def test_the_seeds_of_choices_are_trained_scored_published_and_answer_over_http(
    tmp_path: Path, cluster: Cluster
) -> None:
    studies = [
        run(
            tmp_path,
            "seed_000_zero_shot",
            tiny.raw_abstracts(tmp_path),
            "phi",
            nf4=False,
            settings=WORSE,
        ),
        run(tmp_path, "seed_002_opt", symptoms(tmp_path), "opt", nf4=False, settings=WORSE),
        run(
            tmp_path,
            "seed_004_pubmedqa",
            questions(tmp_path),
            "mistral",
            "llama",
            nf4=True,
            settings=WORSE,
        ),
    ]
    for study, outcome in studies:
        board = outcome.board
        base_models = {f"{base.source}, untuned" for base in study.base_models}
        rows = {entry.name: entry for entry in board.entries if entry.kind == "reference"}
        assert rows.keys() == {"majority", "TF-IDF + logistic regression", *base_models}
        assert all(
            0 <= rows[name].test[board.metric] <= 1 and rows[name].validation
            for name in base_models
        )
        assert {
            pair.other for pair in board.comparisons
        } >= base_models  # before and after, on the same rows
        again = evaluate.evaluate_base_model(
            study.trial(study.base_models[0]), "validation", log_dir=tmp_path / "log"
        )
        assert again.metrics.values == rows[again.of].validation
    names = ("cancer-asked", "symptoms", "pubmedqa")
    options = AppOptions(
        releases=tuple(f"{name}@best" for name in names),
        storage_path=str(tmp_path / "runs"),
        precision="fp32",
        audit_log=None,
        limits={"timeout_s": 60},
    )
    port = free_port()
    try:
        with app.serving(options, host="127.0.0.1", port=port):
            client = Client(f"http://127.0.0.1:{port}")
            for (_, outcome), name in zip(studies, names, strict=True):
                _answers_as_in_training(client, outcome, name)
    finally:
        end_serve()


def _validation(outcome: Outcome) -> tuple[Sequence[Example], list[dict[str, Any]]]:
    """The validation rows of the winner, and its predictions of them as its trial stored them."""
    checkpoint = Path(str(outcome.board.best.checkpoint))
    predictions = [
        json.loads(line) for line in (checkpoint / "predictions.jsonl").read_text().splitlines()
    ]
    data = json.loads((checkpoint / "manifest.json").read_text())["trial"]["data"]
    return dataset.load(DataConfig.model_validate(data)).validation, predictions


def _answers_as_in_training(client: Client, outcome: Outcome, name: str) -> None:
    rows, predictions = _validation(outcome)
    reply = client.choose([row.text for row in rows], model=f"{name}@best")
    assert (reply.release, reply.version, reply.disclaimer) == (name, 1, DISCLAIMER)
    assert outcome.release is not None
    temperature = outcome.release.record.calibration.temperature
    probabilities_of = rescale(
        np.array([row["probabilities"] for row in predictions]), temperature, multi_label=False
    )
    for answer, prediction, probabilities in zip(
        reply.predictions, predictions, probabilities_of.tolist(), strict=True
    ):
        assert list(answer.labels) == prediction["labels"]
        assert list(answer.probabilities.values()) == pytest.approx(probabilities, abs=1e-3)


def test_the_studies_of_mentions_are_trained_judged_published_and_answer_over_http(
    tmp_path: Path, cluster: Cluster
) -> None:
    data, answer = tiny.annotations(tmp_path), ("task.max_answer=16",)
    studies = {
        "disease-names": run(tmp_path, "seed_000_extract", data, "phi", nf4=False, settings=answer),
        "disease-names-few-shot": run(
            tmp_path,
            "seed_001_extract",
            data,
            "phi3",
            nf4=True,
            settings=(*answer, "task.num_examples=1", "task.instruction=''"),
        ),
        "diseases": run(tmp_path, "tagging", data, "bert", nf4=False),
    }
    for study, outcome in studies.values():
        board = outcome.board
        base_models = (
            {f"{base.source}, untuned" for base in study.base_models}
            if study.task.name == "extraction"
            else set()
        )
        assert {entry.name for entry in board.entries if entry.kind == "reference"} == base_models
        assert board.metric == "mention_f1"
        assert board.best.test_interval is not None
        assert {pair.other for pair in board.comparisons} == base_models
        assert outcome.analysis is None
        assert "</html>" in html_report.render(html_report.compose(study_data.gather(outcome.run)))
    options = AppOptions(
        releases=tuple(f"{name}@best" for name in studies),
        storage_path=str(tmp_path / "runs"),
        precision="fp32",
        audit_log=None,
        limits={"timeout_s": 60},
    )
    port = free_port()
    try:
        with app.serving(options, host="127.0.0.1", port=port):
            client = Client(f"http://127.0.0.1:{port}")
            for name, (_, outcome) in studies.items():
                _finds_as_in_training(client, outcome, name)
    finally:
        end_serve()


def _finds_as_in_training(client: Client, outcome: Outcome, name: str) -> None:
    rows, predictions = _validation(outcome)
    words = client.extract([row.text for row in rows], model=f"{name}@best")
    assert (words.release, words.version, words.disclaimer) == (name, 1, DISCLAIMER)
    for row, answer, prediction in zip(rows, words.predictions, predictions, strict=True):
        assert [(m.start, m.end, m.kind) for m in answer.mentions] == [
            (m["start"], m["end"], m["kind"]) for m in prediction["mentions"]
        ]
        assert all(row.text[m.start : m.end] == m.text for m in answer.mentions)
