"""The files of a trial: the contents of a checkpoint, and equal predictions after loading it."""

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny

from medray.config.study import StudyConfig
from medray.data import dataset
from medray.engines.transformers import TransformersEngine
from medray.errors import ArtifactError, DataError
from medray.models import precision
from medray.records import parse_history
from medray.registry import loading, probe
from medray.storage import checkpoint, files
from medray.tasks.base import protocol as tasks
from medray.training import status
from medray.training.loop import Loop
from medray.training.material import gather
from medray.training.trial import Trial


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_reloaded_checkpoint_predicts_what_was_reported(tmp_path: Path, family: str) -> None:
    trial = tiny.trial(tiny.study(tmp_path, family=family), tmp_path)
    result = trial.run()
    release = loading.load(result.checkpoint)
    examples = trial.material.validation
    predictions = release.task.predict(release.engine, examples)
    reports = [
        json.loads(line)
        for line in (result.checkpoint / "predictions.jsonl").read_text().splitlines()
    ]
    assert [(row["row_id"], tuple(row["labels"])) for row in reports] == [
        (row.row_id, row.labels) for row in predictions
    ]
    difference = np.abs(
        np.array([row["probabilities"] for row in reports])
        - np.array([row.probabilities for row in predictions])
    )
    assert difference.max() < 1e-4
    assert release.task.score(predictions, examples).values == pytest.approx(
        release.manifest.metrics, abs=1e-4
    )


@pytest.mark.document(
    "002",
    "the number of parameters that train is printed",
    where="`log.txt` of a trial",
)
def test_a_trial_logs_how_many_of_its_parameters_train(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="medray"):
        trial = tiny.trial(tiny.study(tmp_path), tmp_path)
    num_trainable = sum(
        weight.numel() for weight in trial.model.network.parameters() if weight.requires_grad
    )
    assert 0 < num_trainable < trial.num_parameters
    assert f"{num_trainable} of {trial.num_parameters} parameters train" in caplog.text


def test_the_manifest_records_model_data_and_settings(tmp_path: Path) -> None:
    trial = tiny.trial(tiny.study(tmp_path), tmp_path)
    result = trial.run()
    manifest = checkpoint.verify(result.checkpoint)
    assert manifest.task.state["labels"] == ["cancer", "other"]
    assert manifest.base.weight_hash == trial.material.base.weight_hash
    assert manifest.trial == trial.config.model_dump(mode="json")
    assert manifest.data_fingerprint == trial.material.data_fingerprint
    assert manifest.cursor["step"] == result.best.step
    assert {"torch", "peft", "transformers", "medray"} <= manifest.versions.keys()
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer/tokenizer.json",
        "metrics.json",
        "predictions.jsonl",
        "audit.json",
        "train_rows.safetensors",
    } <= set(manifest.files)
    assert json.loads((result.checkpoint / "audit.json").read_text())["num_rows"] == 60
    texts = "".join(
        path.read_text(errors="replace")
        for path in result.checkpoint.rglob("*.json*")
        if "tokenizer" not in path.parts
    )
    assert dataset.load(trial.config.data).train[0].text not in texts


def test_a_checkpoint_keeps_what_its_validation_rows_are_like_and_of_few_rows_nothing(
    tmp_path: Path,
) -> None:
    few = tiny.trial(tiny.study(tmp_path, "train.epochs=1"), tmp_path).run().checkpoint
    assert loading.read_cloud(few) is None
    (many := tmp_path / "many").mkdir()
    trial = tiny.trial(tiny.study(many, "train.epochs=1", num_rows=300), many)
    folder = trial.run().checkpoint
    assert "embeddings.safetensors" in checkpoint.verify(folder).files
    cloud, engine = loading.read_cloud(folder), loading.load(folder).engine
    assert cloud is not None
    rows = trial.task.encode(trial.material.validation, engine.tokenizer)
    embeddings = engine.logits_and_embeddings([row.tokens for row in rows])[:, 2:]  # type: ignore[attr-defined]
    np.testing.assert_allclose(cloud.centre, embeddings.mean(0), atol=1e-4)
    assert (cloud.distances(embeddings) <= cloud.limit).mean() > 0.95


def test_another_base_another_head_or_another_adapter_fails_the_load(tmp_path: Path) -> None:
    result = tiny.trial(tiny.study(tmp_path), tmp_path).run()
    manifest = checkpoint.read(result.checkpoint)
    other = np.array(manifest.probe.outputs) + 0.1
    with pytest.raises(ArtifactError, match="its probe gives"):
        probe.check_probe(result.checkpoint, manifest.probe, other)
    tiny.base(tmp_path / "again", seed=5)
    (tmp_path / "tiny-bert").rename(tmp_path / "old")
    (tmp_path / "again" / "tiny-bert").rename(tmp_path / "tiny-bert")
    with pytest.raises(ArtifactError, match=r"was trained on .* with weights"):
        loading.load(result.checkpoint)


@pytest.mark.document(
    "001",
    "labels become classes, also several of a row",
    where="`task.multi_label`",
)
def test_multi_label_thresholds_travel_with_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    tiny.abstracts(tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["label"] = [row["label"], *(["third"] if number % 3 == 0 else [])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = tiny.trial(
        tiny.study(tmp_path, "task={name: classification, multi_label: true}"), tmp_path
    ).run()
    release = loading.load(result.checkpoint)
    thresholds = release.manifest.task.state["thresholds"]
    assert len(thresholds) == 3
    predictions = release.task.predict(
        release.engine, dataset.load(tiny.study(tmp_path).data).unlabelled_test()
    )
    for row in predictions:
        labels = [
            label
            for label, value, least in zip(
                release.task.state()["labels"], row.probabilities, thresholds, strict=True
            )
            if value >= least
        ]
        assert list(row.labels) == labels


def test_precision_auto_times_both_and_keeps_the_result(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        result = tiny.trial(
            tiny.study(tmp_path, "model.precision=auto", "train.epochs=1"), tmp_path
        ).run()
    record = checkpoint.read(result.checkpoint).precision
    assert record.setting == "auto"
    assert record.seconds.keys() == {"fp32", "bf16"}
    assert (record.actual == "bf16") == (record.seconds["bf16"] * 1.1 < record.seconds["fp32"])
    assert "precision auto" in caplog.text


@pytest.mark.parametrize(
    ("fp32", "bf16", "precision_name", "num_rounds"),
    [
        ([9.0, 2.0, 2.1, 2.2], [9.0, 1.0, 1.1, 1.2], "bf16", 3),  # the first of each is not counted
        ([9.0, 1.0, 1.1, 1.2], [9.0, 2.0, 2.1, 2.2], "fp32", 3),
        (
            [9.0, 1.1, 2.0, 2.0, 2.0] + [2.0] * 8,
            [9.0, 2.2, 0.8, 0.8, 0.8] + [0.8] * 8,
            "bf16",
            12,
        ),  # its first timing said fp32
        ([9.0] + [1.0, 1.05] * 6, [9.0] + [0.95, 1.02] * 6, "fp32", 12),  # too close to tell
    ],
)
def test_precision_auto_is_timed_until_it_is_clear(
    fp32: list[float], bf16: list[float], precision_name: str, num_rounds: int
) -> None:
    seconds = {"fp32": iter(fp32), "bf16": iter(bf16)}
    steps: list[str] = []
    record = precision.time_steps(
        lambda: pytest.fail("computed"),
        (1, 1),
        "cpu",
        lambda forward, name, device: steps.append(name) or next(seconds[name]),
    )
    assert (record.actual, len(steps)) == (precision_name, 2 * (1 + num_rounds))
    assert steps[:4] == ["fp32", "bf16"] * 2  # in turn: what slows the machine slows both


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.document(
    "002",
    "the base model's weights are fp16",
    where="`model.precision: fp16`",
    how="training computes in fp16; the frozen weights lie in fp32",
)
def test_other_types_train_and_reload_exactly_in_fp32(tmp_path: Path, precision: str) -> None:
    result = tiny.trial(
        tiny.study(tmp_path, f"model.precision={precision}", "train.epochs=4", num_rows=120),
        tmp_path,
    ).run()
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert (
        loading.load(result.checkpoint).manifest.precision.actual == precision
    )  # the probe was compared in fp32


@pytest.mark.parametrize("precision", ["fp32", "auto", "fp16"])
@pytest.mark.parametrize("family", ["bert", "phi3"])
@pytest.mark.document("003", "training in 4 bits with LoRA", where="`model.quantization: nf4`")
def test_a_trial_in_4_bits_learns_and_its_checkpoint_answers_the_same(
    tmp_path: Path, family: str, precision: str
) -> None:
    settings = ("model.quantization=nf4", f"model.precision={precision}", "train.epochs=4")
    trial = tiny.trial(tiny.study(tmp_path, *settings, family=family, num_rows=120), tmp_path)
    result = trial.run()
    assert result.history[-1].train_loss < result.history[0].train_loss
    release = loading.load(result.checkpoint)  # the probe was compared in fp32
    assert release.manifest.quantization == "nf4"
    assert release.model.network.is_loaded_in_4bit
    assert release.manifest.base.weight_hash == files.hash_text(
        [files.hash_file(tmp_path / f"tiny-{family}" / "model.safetensors")]
    )
    predictions = release.task.predict(release.engine, trial.material.validation)
    reports = [
        json.loads(line)["labels"]
        for line in (result.checkpoint / "predictions.jsonl").read_text().splitlines()
    ]
    assert [list(row.labels) for row in predictions] == reports


def test_a_checkpoint_in_4_bits_is_not_taken_for_a_plain_one(tmp_path: Path) -> None:
    result = tiny.trial(
        tiny.study(tmp_path, "model.quantization=nf4", "train.epochs=1"), tmp_path
    ).run()
    path = result.checkpoint / checkpoint.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["trial"]["model"]["quantization"] = "none"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="its probe gives"):
        loading.load(result.checkpoint)


def test_windows_of_a_long_text_train_as_one_example(tmp_path: Path) -> None:
    settings = ("task.long_texts=windows", "task.max_length=12", "task.window_overlap=4")
    trial = tiny.trial(tiny.study(tmp_path, *settings), tmp_path)
    weights = trial.task.loss(trial.rows.targets(), trial.rows.ids).weights
    assert len(trial.rows) > len(dataset.load(trial.config.data).train)
    assert weights.sum() == pytest.approx(len(dataset.load(trial.config.data).train))
    trial.run()


def test_rows_are_encoded_once_and_read_again_by_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_config = tiny.study(tmp_path)
    first = tiny.trial(study_config, tmp_path)
    monkeypatch.setattr(type(first.task), "encode", lambda *args: pytest.fail("encoded again"))
    again = tiny.trial(study_config, tmp_path)
    assert again.material.prepared.table.equals(first.material.prepared.table)
    assert len(list((tmp_path / "prepared").glob("*.arrow"))) == 1
    monkeypatch.undo()
    tiny.trial(tiny.study(tmp_path, "task.max_length=8"), tmp_path)
    tiny.trial(tiny.study(tmp_path, "data.split.seed=3"), tmp_path)
    tiny.trial(tiny.study(tmp_path, "data.limit=20"), tmp_path)
    assert len(list((tmp_path / "prepared").glob("*.arrow"))) == 4


def tagging_study(folder: Path, *settings: str, family: str = "bert") -> StudyConfig:
    task = "{name: tagging, max_length: 64}"
    study: StudyConfig = tiny.mention_study(folder, task, *settings, family=family)
    return study


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (tiny.study, ()),
        (tiny.study, ("task.long_texts=windows", "task.max_length=12", "task.window_overlap=4")),
        (tiny.choice_study, ("task.prior_correction=true",)),
        (tiny.choice_study, ("task.decoding=generate", "task.max_length=14")),
        (tiny.decision_study, ("task.max_length=24",)),
        (partial(tiny.decision_study, family="bert"), ("task.max_length=24",)),
        (tagging_study, ("train.epochs=4",)),  # until it tags a mention
        (
            partial(tagging_study, family="llama"),
            ("train.epochs=4", "task.max_length=8", "task.window_overlap=4"),
        ),
    ],
)
def test_an_evaluation_reads_prepared_rows_and_predicts_as_from_texts(
    tmp_path: Path, make: Callable[..., StudyConfig], settings: tuple[str, ...]
) -> None:
    trial = tiny.trial(make(tmp_path, "train.epochs=1", *settings), tmp_path)
    trial.run()
    validation = trial.validation
    assert validation is not None
    token_budget = trial.config.train.token_budget  # another one rounds in another order
    engine = TransformersEngine(trial.model, precision="fp32", token_budget=token_budget)
    assert trial.task.predict(engine, trial.material.validation) == validation.predictions
    engine.model.tokenizer = tokenizer = _TextList(engine.tokenizer)
    texts = [example.text for example in trial.material.validation]
    trial.predict_rows(trial.material.validation, [])
    assert not [text for text in texts if text in "\n".join(tokenizer.texts)]
    trial.task.predict(engine, trial.material.validation)
    assert all(text in "\n".join(tokenizer.texts) for text in texts)


class _TextList:
    """A tokenizer that keeps the texts that it encodes."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.texts = tokenizer, list[str]()
        self.backend_tokenizer = _Backend(tokenizer.backend_tokenizer, self.texts)

    def __call__(self, texts: list[str], **options: object) -> object:
        self.texts += texts
        return self.tokenizer(texts, **options)

    def __getattr__(self, name: str) -> object:
        return getattr(self.tokenizer, name)


class _Backend:
    def __init__(self, backend: Any, texts: list[str]) -> None:
        self.backend, self.texts = backend, texts

    def encode_batch(self, texts: list[str]) -> object:
        self.texts += texts
        return self.backend.encode_batch(texts)

    def encode_batch_fast(self, texts: list[str]) -> object:
        self.texts += texts
        return self.backend.encode_batch_fast(texts)

    def __getattr__(self, name: str) -> object:
        return getattr(self.backend, name)


def test_a_test_row_never_trains(tmp_path: Path) -> None:
    study_config = tiny.study(tmp_path)
    config = study_config.trial(study_config.base_models[0])
    data = dataset.load(config.data)
    task = tasks.fit(config.task, data.label_sets())
    rows = gather(config, data, task, tmp_path / "prepared").prepared.split("train")
    assert set(rows.ids) == {row for row, side in data.splits.items() if side == "train"}
    assert not set(rows.ids) & {example.id for example in data.unlabelled_test()}
    (test_row,) = data.unlabelled_test()[:1]
    data.train.append(test_row)
    with pytest.raises(
        DataError, match=f"1 row.* no training rows of this split, for example '{test_row.id}'"
    ):
        gather(config, data, task, tmp_path / "other")


def test_precisions_are_timed_once_per_study_and_per_processor_and_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timings = []
    seconds = {"fp32": 2.0, "bf16": 1.0}
    steps = partial(
        precision.time_steps,
        seconds_of=lambda forward, name, device: timings.append(name) or seconds[name],
    )
    monkeypatch.setattr(precision, "time_steps", steps)

    def run(study: str, *settings: str) -> tuple[str, int]:
        """Return the precision of a trial of a study, and the number of steps that were timed for
        it."""
        timings.clear()
        (tmp_path / study).mkdir(exist_ok=True)
        study_config = tiny.study(tmp_path, "model.precision=auto", "train.epochs=1", *settings)
        trial = tiny.trial(study_config, tmp_path)
        trial.folder = tmp_path / study / "trial"
        trial.stop = None
        return trial.run().precision.actual, len(timings)

    whole = 2 * (1 + 3)
    assert run("first") == ("bf16", whole)
    seconds["fp32"] = 0.5  # what a busy machine would say next
    for settings in (["lora.r=4"], ["train.samples_per_step=2"], ["resources.cpus_per_worker=2"]):
        assert run("first", *settings) == ("bf16", 0)  # trials of a study share their arithmetic
    assert run("second") == ("bf16", 0)  # its first trial is like one that was timed before
    assert run("third", "resources.cpus_per_worker=2") == ("fp32", whole)
    monkeypatch.setattr(
        precision, "processor", lambda device: "another machine that sees the same folder"
    )
    assert run("first") == ("bf16", 0)
    assert run("fourth") == ("fp32", whole)


@pytest.mark.document("004", "loss is logged every ten steps", where="`train.log_every_steps`")
def test_a_trial_shows_its_steps_inside_an_epoch_and_leaves_no_status_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "WRITE_INTERVAL_S", 0.0)
    trial = tiny.trial(tiny.study(tmp_path, "train.epochs=1"), tmp_path)
    statuses: list[status.Status | None] = [status.read(tmp_path / "trial")]
    take = Loop.take_step

    def look(loop: Loop) -> tuple[float, object, bool]:
        statuses.append(status.read(tmp_path / "trial"))
        return take(loop)

    monkeypatch.setattr(Loop, "take_step", look)
    trial.report = lambda report: statuses.append(status.read(tmp_path / "trial"))
    trial.run()
    stages = [entry.stage for entry in statuses if entry]
    assert stages[0] == "loading the base model"
    assert stages[-1] == "evaluating"
    inside = [entry for entry in statuses if entry and entry.stage == status.TRAINING]
    assert [entry.step for entry in inside] == list(range(1, trial.slot.num_steps))
    assert {entry.epoch for entry in inside} == {1}
    assert all(
        entry.loss and entry.tokens_per_s and entry.num_steps == trial.slot.num_steps
        for entry in inside
    )
    assert status.read(tmp_path / "trial") is None


def test_early_evaluations_read_few_rows_and_leave_training_and_the_best_epoch_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medray.training.trial._EARLY_ROWS", 5)
    study_config = tiny.study(tmp_path, "train.epochs=2", "train.samples_per_step=4")
    plain = tiny.trial(study_config, tmp_path / "plain")
    whole = plain.run().history
    num_rows: list[int] = []
    early = Trial(
        plain.config,
        plain.material,
        tmp_path / "early",
        lambda evaluation: num_rows.append(early.validation.metrics.num_rows),
        early_rungs=(1 / 9, 1 / 3),
    )
    result = early.run()
    assert [row.is_early for row in result.history] == [True, True, False, False]
    assert [row.step for row in result.history] == [1, 3, 9, 18]
    num_validation = len(early.material.validation)
    assert num_validation > 5
    assert [num <= 5 for num in num_rows] == [True, True, False, False]
    assert [row.metrics for row in result.history[2:]] == [row.metrics for row in whole]
    assert sorted(path.name for path in (tmp_path / "early" / "checkpoints").iterdir()) == sorted(
        path.name for path in (tmp_path / "plain" / "trial" / "checkpoints").iterdir()
    )
    assert parse_history((tmp_path / "early" / "history.json").read_bytes()) == result.history
