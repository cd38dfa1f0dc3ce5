"""A head that reads the mean of all tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny

from medray.config.trial import LoraConfig, ModelOptions
from medray.engines.transformers import TransformersEngine
from medray.errors import ConfigError
from medray.models import sources
from medray.models.build import BuiltModel, build, merge, merge_and_export, save
from medray.models.families import ENCODERS
from medray.models.libraries import base_of
from medray.registry.loading import load
from medray.registry.predictions import read_predictions
from medray.tasks.base import protocol as tasks
from medray.types import Floats32, Head, Pooling

ROWS = [[10, 11, 12], [20] * 30, [9, 13, 14, 15, 16]]


def make(
    folder: Path, family: str, pooling: Pooling, adapter_dir: Path | None = None
) -> BuiltModel:
    base = sources.resolve(str(folder / f"tiny-{family}"))
    head = Head(("a", "b"), pooling=pooling)
    return build(base, head, ModelOptions(), LoraConfig(), seed=1, adapter_dir=adapter_dir)


def logits(model: BuiltModel, rows: list[list[int]] = ROWS) -> Floats32:
    return TransformersEngine(model, precision="fp32", token_budget=1000).logits(rows)


def states(model: BuiltModel, row: list[int]) -> torch.Tensor:
    """Return what the head gets for each token of a row."""
    network = base_of(model.network).eval()
    body = getattr(network, network.base_model_prefix)
    ids = torch.tensor([row])
    with torch.inference_mode():
        return body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]


@pytest.mark.parametrize("family", [*ENCODERS, *tiny.WITH_HEADS])
def test_every_family_reads_the_mean_of_a_rows_own_tokens(tmp_path: Path, family: str) -> None:
    tiny.base(tmp_path, family)
    token, mean = make(tmp_path, family, "token"), make(tmp_path, family, "mean")
    expectation = states(token, ROWS[2]).mean(dim=0)
    assert (states(mean, ROWS[2]) - expectation).abs().max() < 1e-5
    alone = np.concatenate([logits(mean, [row]) for row in ROWS])
    assert np.abs(logits(mean) - alone).max() < 1e-5
    assert np.abs(logits(mean) - logits(token)).max() > 1e-3


def test_the_head_of_bert_is_its_classifier_and_survives_a_reload_and_a_merge(
    tmp_path: Path,
) -> None:
    tiny.base(tmp_path, "bert")
    model = make(tmp_path, "bert", "mean")
    assert model.family.head_modules == ("classifier",)  # a pooler would read the first token
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    before = logits(model)
    save(model, tmp_path / "saved")
    again = make(tmp_path, "bert", "mean", adapter_dir=tmp_path / "saved")
    assert np.array_equal(logits(again), before)
    assert np.abs(logits(merge(again)) - before).max() < 1e-4


def test_a_merged_folder_for_plain_transformers_is_refused(tmp_path: Path) -> None:
    tiny.base(tmp_path, "bert")
    with pytest.raises(ConfigError, match="plain transformers would give it one token; export"):
        merge_and_export(make(tmp_path, "bert", "mean"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_trial_keeps_its_probe_and_its_predictions_after_a_reload(tmp_path: Path) -> None:
    trial = tiny.trial(tiny.study(tmp_path, "task.pooling=mean"), tmp_path / "trial")
    checkpoint = trial.run().checkpoint
    release = load(checkpoint)  # compares the probe
    assert release.model.head is not None
    assert release.model.head.pooling == "mean"
    predictions = release.task.predict(release.engine, trial.material.validation)
    earlier = read_predictions(checkpoint)
    assert [row.labels for row in predictions] == [row.labels for row in earlier]


def test_a_checkpoint_of_an_earlier_version_reads_a_token() -> None:
    options = {"name": "classification", "positive_label": "a"}
    task = tasks.restore(options, {"labels": ["a", "b"], "thresholds": None})
    head = task.head()
    assert head is not None
    assert head.pooling == "token"
