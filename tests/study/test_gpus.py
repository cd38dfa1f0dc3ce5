"""How many trials share a known GPU, and how long a micro-batch takes on it."""

from pathlib import Path

import pytest

from medray.config.load import load_study
from medray.runtime.cluster import Cluster, Node
from medray.study import estimate
from medray.study.estimate import Speed
from medray.study.gpus import CARDS, BatchSeconds, batch_seconds, card_of, trials_per_gpu

H200 = CARDS["H200"]
STUDY = Path(__file__).parents[2] / "jobs" / "studies" / "seed_001_distilbert.yaml"
# weights in layers, hidden size, layers, is an encoder, tokens, and simulated milliseconds
SHAPES = {
    "MiniLM": (10.6e6, 384, 6, True, 4096, 3.5),
    "RoBERTa": (85e6, 768, 12, True, 4096, 12),
    "SmolLM-135M": (106e6, 576, 30, False, 2048, 22),
    "Llama-1B": (973e6, 2048, 16, False, 4096, 78),
    "Mistral-7B": (6.98e9, 4096, 32, False, 4096, 378),
}


def seconds_of(name: str) -> BatchSeconds:
    weights, width, layers, is_encoder, tokens, _ = SHAPES[name]
    return batch_seconds(
        H200, 4 * weights * tokens, width=width, num_layers=layers, is_encoder=is_encoder
    )


@pytest.mark.parametrize("name", SHAPES)
def test_the_seconds_of_a_batch_are_those_of_simulated_steps_within_a_factor(name: str) -> None:
    assert 1 / 2.3 < 1000 * seconds_of(name).gpu / SHAPES[name][-1] < 2.3


def test_small_models_share_a_gpu_and_large_ones_have_it_alone() -> None:
    numbers = {name: trials_per_gpu(H200, seconds_of(name), 2 * 10**9) for name in SHAPES}
    assert numbers["MiniLM"] >= 2
    assert numbers["SmolLM-135M"] >= 4
    assert numbers["Llama-1B"] == numbers["Mistral-7B"] == 1


def test_memory_limits_the_trials_of_a_gpu() -> None:
    idle = BatchSeconds(gpu=0.001, host=0.1)
    assert trials_per_gpu(H200, idle, 2 * 10**9) == 8
    assert trials_per_gpu(H200, idle, 40 * 10**9) == 3
    assert trials_per_gpu(H200, idle, 200 * 10**9) == 1


def test_trials_that_share_a_gpu_wait_for_its_arithmetic_and_not_for_each_others_launches() -> None:
    seconds = BatchSeconds(gpu=0.01, host=0.05)
    assert [seconds.of_trials(number) for number in (1, 4, 8)] == [0.05, 0.05, 0.08]


def test_the_card_of_a_cluster_is_that_of_all_its_gpus() -> None:
    def cluster(*names: str | None) -> Cluster:
        nodes = tuple(Node(8, 1, name) for name in names)
        return Cluster((Node(8, 0), *nodes), None, is_joined=False)

    assert card_of(cluster("H200", "H200")) is H200
    assert card_of(cluster("H200", "T4")) is card_of(cluster("Quantum-9")) is None
    assert card_of(cluster(None)) is card_of(cluster()) is None


@pytest.mark.parametrize(
    ("token_budget", "card", "num_sharing"), [(1024, "H200", 5), (4096, "H200", 1), (1024, None, 1)]
)
def test_a_plan_and_a_study_count_the_same_trials_on_a_gpu(
    token_budget: int, card: str | None, num_sharing: int
) -> None:
    cluster = Cluster((Node(16, 1, card),), None, is_joined=False)
    study = load_study(
        [STUDY],
        [
            "search={num_trials: 12, space: {train.learning_rate: {loguniform: [0.001, 0.01]}}}",
            f"train.token_budget={token_budget}",
            "base_models=[{source: FacebookAI/roberta-base}]",
        ],
    )
    (base,) = estimate.estimate(
        study, cluster, memory_bytes=H200.memory_bytes, speed=Speed(), num_rows=400
    ).bases
    assert base.at_once == num_sharing
    assert base.placement.gpus == pytest.approx(1 / num_sharing, abs=1e-3)
    assert estimate.trials_per_gpu(study.trial(study.base_models[0]), cluster) == num_sharing
