"""What a training row weighs, and its loss."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from medray.tasks.base.protocol import LossInputs
from medray.tasks.classification import Options, Task
from medray.types import Example


def task_of(labels=(("cancer",), ("heart",), ("skin",)), **options):
    return Task.fit(
        Options(name="classification", **options),
        [Example(str(n), "text", row) for n, row in enumerate(labels)],
    )


def test_balanced_weights_are_those_of_scikit_learn_over_the_training_rows():
    classes = [0, 0, 0, 1, 2, 2]
    weights = (
        task_of(class_weights="balanced")
        .loss([(c,) for c in classes], [str(n) for n in range(6)])
        .weights
    )
    reference = compute_class_weight("balanced", classes=np.arange(3), y=classes)
    assert weights == pytest.approx(reference[classes])
    assert weights.sum() == pytest.approx(6)


def test_an_example_of_several_windows_counts_once():
    targets, ids = [(0,), (0,), (1,), (2,)], ["a", "a", "b", "c"]
    assert task_of().loss(targets, ids).weights.tolist() == [0.5, 0.5, 1, 1]
    assert task_of(class_weights="balanced").loss(targets, ids).weights.tolist() == [
        0.5,
        0.5,
        1,
        1,
    ]  # one example each
    assert task_of(class_weights={"heart": 3}).loss(targets, ids).weights.tolist() == [
        0.5,
        0.5,
        3,
        1,
    ]
    assert task_of(multi_label=True).loss(
        [(0, 1), (0, 1), ()], ["a", "a", "b"]
    ).weights.tolist() == [0.5, 0.5, 1]


def loss_of(task, logits, targets, weights):
    logits = torch.as_tensor(logits)
    rows = LossInputs(targets, torch.tensor(weights), torch.ones(len(targets), 1))
    return task.loss(targets, [str(number) for number in range(len(targets))])(
        SimpleNamespace(logits=logits), rows
    )


def test_the_loss_is_each_rows_weighted_cross_entropy():
    logits = [[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]]
    sums = loss_of(task_of(), logits, [(1,), (2,)], [1.0, 0.5])
    assert sums.tolist() == pytest.approx([-2 + np.log(np.exp(logits[0]).sum()), 0.5 * np.log(3)])


def test_label_smoothing_moves_a_share_to_every_label():
    logits, smoothing = np.array([1.0, 2.0, 0.5]), 0.3
    sums = loss_of(task_of(label_smoothing=smoothing), [logits.tolist()], [(1,)], [1.0])
    costs = np.log(np.exp(logits).sum()) - logits
    assert sums.tolist() == pytest.approx([0.7 * costs[1] + 0.3 * costs.mean()])


def test_the_multi_label_loss_is_the_mean_over_labels():
    task = task_of([("a", "b", "c")], multi_label=True)
    sums = loss_of(task, [[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]], [(0, 2), ()], [2.0, 1.0])
    costs = [np.log1p(np.exp(-1)), np.log1p(np.exp(-2)), np.log(2)]
    assert sums.tolist() == pytest.approx([2 * np.mean(costs), np.log(2)])


def test_the_loss_is_computed_in_fp32_whatever_the_model_computes_in():
    sums = loss_of(task_of(), torch.tensor([[1.0, 2, 3]], dtype=torch.bfloat16), [(0,)], [1.0])
    assert sums.dtype == torch.float32
    assert sums.tolist() == pytest.approx([np.log(np.exp([1, 2, 3]).sum()) - 1], rel=1e-6)


def test_cutting_a_batch_in_parts_changes_no_rows_loss():
    rng = np.random.default_rng(0)
    logits, targets, weights = (
        rng.normal(size=(6, 3)).tolist(),
        [(n % 3,) for n in range(6)],
        rng.random(6).tolist(),
    )
    whole = loss_of(task_of(label_smoothing=0.1), logits, targets, weights)
    parts = [
        loss_of(
            task_of(label_smoothing=0.1),
            logits[at : at + 2],
            targets[at : at + 2],
            weights[at : at + 2],
        )
        for at in (0, 2, 4)
    ]
    assert torch.cat(parts).tolist() == pytest.approx(whole.tolist())
