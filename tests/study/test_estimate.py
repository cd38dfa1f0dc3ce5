"""Estimates of a study, compared with a real step on real tensors, and their arithmetic."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import tiny

from medray import cli
from medray.config.load import dump_settings, load_study
from medray.config.trial import LoraConfig, ModelOptions
from medray.errors import ArtifactError
from medray.models import architecture, footprint, sources
from medray.models.architecture import load_config, outline_of
from medray.models.build import build
from medray.models.footprint import Batch, Footprint
from medray.runtime.cluster import Cluster, Node
from medray.study import estimate, memory
from medray.study.estimate import Speed
from medray.types import Head

ROOT = Path(__file__).parents[2]
HEAD = Head(labels=("a", "b"), multi_label=False)
BATCH = Batch(4, 64)
PLAIN, LORA = ModelOptions(), LoraConfig()
KNOWN_SPEED = Speed(tokens_per_s=1000)


def measure_model(
    folder: Path,
    family: str,
    model: ModelOptions = PLAIN,
    lora: LoraConfig = LORA,
    batch: Batch = BATCH,
) -> Footprint:
    path = folder / f"tiny-{family}"
    config = load_config(path if path.exists() else tiny.base(folder, family), family)
    return footprint.measure(config, model, lora, batch, needs="head", precision="fp32")


@pytest.mark.parametrize("family", ["bert", "llama", "opt"])
def test_what_is_counted_without_contents_is_what_a_real_step_holds(
    family: str, tmp_path: Path
) -> None:
    counts = measure_model(tmp_path, family)
    model = build(sources.resolve(str(tmp_path / f"tiny-{family}")), HEAD, PLAIN, LoraConfig())
    model.network.train()
    parameters = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters)
    inputs = {
        name: torch.ones((BATCH.rows, BATCH.length), dtype=torch.long)
        for name in ("input_ids", "attention_mask")
    }
    with footprint.LiveBytes() as live:
        for _ in range(2):
            live.most = live.now
            loss = F.cross_entropy(
                model.network(**inputs).logits.float(), torch.zeros(BATCH.rows, dtype=torch.long)
            )
            loss.backward()
            del loss
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    num_bytes = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for tensor in [*model.network.parameters(), *model.network.buffers()]
    }
    assert counts.peak == pytest.approx(live.most + sum(num_bytes.values()), rel=0.02)
    assert counts.weights == pytest.approx(sum(num_bytes.values()), rel=0.01)
    assert (counts.num_parameters, counts.num_trainable) == (
        model.num_parameters,
        model.num_trainable,
    )
    assert counts.gradients == 4 * counts.num_trainable == counts.moments / 2


def test_settings_that_save_memory_are_counted_as_saving_it(tmp_path: Path) -> None:
    plain = measure_model(tmp_path, "llama")
    assert (
        measure_model(tmp_path, "llama", ModelOptions(gradient_checkpointing=True)).activations
        < plain.activations
    )
    in_4_bits = measure_model(tmp_path, "llama", ModelOptions(quantization="nf4"))
    assert plain.weights - in_4_bits.weights == pytest.approx(
        (4 - 0.516) * plain.num_linear, rel=0.01
    )
    assert in_4_bits.num_parameters == plain.num_parameters
    top = measure_model(tmp_path, "llama", lora=LoraConfig(top_layers=1))
    assert top.trained_share == 0.5
    assert plain.trained_share == 1.0
    assert top.activations < 0.7 * plain.activations
    assert measure_model(tmp_path, "llama", batch=Batch(8, 64)).activations == pytest.approx(
        2 * plain.activations, rel=0.15
    )


def test_a_base_in_16_bits_is_counted_in_fp32_but_for_frozen_layers_on_a_gpu(
    tmp_path: Path,
) -> None:
    trial = tiny.study(tmp_path, "model.precision=bf16", family="llama")
    trial = trial.trial(trial.base_models[0])
    config = load_config(Path(trial.model.source), "llama")
    config.dtype = torch.bfloat16

    def count(is_on_gpu: bool, **train: object) -> Footprint:
        other = trial.model_copy(update={"train": trial.train.model_copy(update=train)})
        return memory.step_footprint(config, other, 64, 2, 0, is_on_gpu=is_on_gpu)

    on_cpu, on_gpu = count(False), count(True)
    assert on_cpu.weights == pytest.approx(4 * on_cpu.num_parameters, rel=0.05)
    assert on_cpu.weights - on_gpu.weights == pytest.approx(2 * on_cpu.num_linear, rel=0.01)
    assert on_cpu.peak - on_gpu.peak > 2 * on_cpu.num_linear, "autocast keeps no copies of them"
    assert count(True, strategy="deepspeed", zero_stage=3) == on_gpu


@pytest.mark.parametrize(
    ("source", "needs", "millions"),
    [
        ("FacebookAI/roberta-base", "head", 124.6),
        ("google-bert/bert-base-uncased", "head", 109.5),
        ("distilbert/distilbert-base-uncased", "head", 67.0),
        ("facebook/opt-1.3b", "language model", 1315.8),
        ("mistralai/Mistral-7B-v0.3", "language model", 7248.0),
        ("meta-llama/Llama-3.2-1B", "language model", 1235.8),
        ("meta-llama/Llama-3.2-3B", "language model", 3212.7),
        ("HuggingFaceTB/SmolLM-135M-Instruct", "language model", 134.5),
        ("microsoft/phi-2", "language model", 2779.7),
        ("microsoft/Phi-4-mini-instruct", "language model", 3836.0),
        ("microsoft/phi-4", "language model", 14659.5),
        ("answerdotai/ModernBERT-base", "head", 149.6),
        ("google/gemma-3-270m", "language model", 268.1),
        ("google/gemma-3-1b-it", "language model", 999.9),
        ("Qwen/Qwen3-0.6B", "language model", 596.0),
        ("Qwen/Qwen3-4B", "language model", 4022.5),
        ("HuggingFaceTB/SmolLM3-3B", "language model", 3075.1),
    ],
)
def test_published_shapes_have_as_many_weights_as_the_models_they_stand_for(
    source: str, needs: str, millions: float
) -> None:
    result, note = architecture.find(source, None)
    weights = {
        id(weight): weight.numel() for weight in outline_of(result, source, needs).parameters()
    }  # type: ignore[arg-type]
    assert sum(weights.values()) / 1e6 == pytest.approx(millions, rel=0.005)
    assert "its config.json is not here" in note


def test_every_base_model_of_the_studies_that_ship_can_be_planned() -> None:
    for path in sorted((ROOT / "jobs" / "studies").glob("seed_*.yaml")):
        for base in load_study([path]).base_models:
            assert architecture.find(base.source, base.revision)


@pytest.mark.parametrize(
    ("study", "gigabytes"),
    [
        ("seed_003_phi4_mini", {"Phi-4-mini-instruct": 6.7}),
        ("seed_004_pubmedqa", {"Mistral-7B-v0.3": 5.6, "Llama-3.2-1B": 2.8, "Llama-3.2-3B": 4.7}),
    ],
)
@pytest.mark.document(
    "004",
    "4 to 6 GB of a GPU for Mistral-7B, 2 to 3 for Llama 3B, 1 to 2 for Llama 1B",
    where="`medray plan`",
    how="by estimate, in training: 5.6, 4.7 and 2.8 GB",
)
def test_the_memory_that_studies_in_4_bits_say_they_take_is_what_is_planned(
    study: str, gigabytes: dict[str, float]
) -> None:
    path = ROOT / "jobs" / "studies" / f"{study}.yaml"
    on_a_gpu = estimate.estimate(
        load_study([path]), cluster(gpus=1), memory_bytes=8 * 10**9, speed=KNOWN_SPEED, num_rows=400
    )
    assert {
        base.source.rpartition("/")[2]: round(base.worker_bytes / 1e9, 1) for base in on_a_gpu.bases
    } == gigabytes
    assert f"{next(iter(gigabytes.values()))} GB" in path.read_text(encoding="utf-8")


def test_a_base_model_of_unknown_shape_is_told_with_what_is_needed() -> None:
    with pytest.raises(
        ArtifactError,
        match=(
            r"planning needs only its config\.json: .*did you "
            r"mean 'google-bert/bert-base-uncased'"
        ),
    ):
        architecture.find("google-bert/bert-base-cased", None)


@pytest.mark.parametrize(
    ("stage", "num_bytes"), [(None, 100), (0, 100), (1, 98), (2, 95), (3, 65 + 40)]
)
def test_workers_share_what_the_stage_says(stage: int | None, num_bytes: int) -> None:
    """Of a model this small, ZeRO-3 gathers all weights beside their shards."""
    whole = Footprint(10, 10, 1, 1.0, weights=40, gradients=4, moments=8, peak=100)
    assert memory.sharded_bytes(whole, stage, 4) == num_bytes


@pytest.mark.parametrize(("weight_bytes", "gather_gb"), [(4.0, 4.0), (2.0, 2.0), (0.5, 1.0)])
def test_zero_3_gathers_as_many_numbers_as_deepspeed_allows(
    weight_bytes: float, gather_gb: float
) -> None:
    zero = pytest.importorskip("deepspeed.runtime.zero.config")
    assert zero.DeepSpeedZeroConfig().max_live_parameters == memory.GATHER_LIMIT
    weights = int(7 * weight_bytes * 10**9)
    whole = Footprint(7 * 10**9, 0, 0, 1.0, weights=weights, gradients=0, moments=0, peak=weights)
    assert memory.sharded_bytes(whole, 3, 2) == weights / 2 + gather_gb * 10**9


def cluster(cpus: float = 8, gpus: float = 0, nodes: int = 1) -> Cluster:
    return Cluster((Node(cpus, gpus),) * nodes, None, is_joined=False)


@pytest.fixture(autouse=True)
def each_shape_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure each shape once: a measurement takes a second, and many tests use the same shapes."""
    footprints: dict[str, Footprint] = {}
    measure = footprint.measure

    def once(*arguments: object, **options: object) -> Footprint:
        key = repr((arguments[1:], options))
        if key not in footprints:
            footprints[key] = measure(*arguments, **options)  # type: ignore[arg-type]
        return footprints[key]

    monkeypatch.setattr(memory, "measure", once)


def estimate_study(
    folder: Path, *settings: str, memory_bytes: int | None = None, speed: Speed = KNOWN_SPEED
) -> estimate.StudyEstimate:
    return estimate.estimate(
        tiny.study(folder, *settings), cluster(), memory_bytes=memory_bytes, speed=speed
    )


def test_hours_follow_rows_epochs_trials_and_the_search_s_own_budgets(tmp_path: Path) -> None:
    axis = "search.space={train.learning_rate: {loguniform: [0.001, 0.01]}}"
    one = estimate_study(tmp_path, "resources.cpus_per_worker=8")
    (base,) = one.bases
    rows = base.rows
    assert rows.num_train == 36
    assert base.trial_s == pytest.approx(2 * rows.mean * (36 + rows.num_validation / 2) / 1000)
    four = estimate_study(tmp_path, axis, "search.num_trials=4", "resources.cpus_per_worker=8")
    assert four.hours == pytest.approx(4 * one.hours)
    side_by_side = estimate_study(
        tmp_path, axis, "search.num_trials=4", "resources.cpus_per_worker=2"
    )
    assert side_by_side.bases[0].at_once == 4
    assert side_by_side.hours == pytest.approx(one.hours)
    assert estimate_study(
        tmp_path, axis, "search.num_trials=4", "search.num_epochs=4", "resources.cpus_per_worker=8"
    ).hours == pytest.approx(2 * one.hours)
    assert estimate_study(
        tmp_path, axis, "search.num_trials=4", "search.time_s=0.001"
    ).hours == pytest.approx(0.001 / 3600)
    assert estimate_study(
        tmp_path, axis, "search.num_trials=4", "search.num_seeds=3", "resources.cpus_per_worker=8"
    ).hours == pytest.approx(6 * one.hours)
    assert one.gpu_hours == 0


def test_what_a_worker_computes_gives_hours_where_no_speed_was_measured(tmp_path: Path) -> None:
    slow, fast = (
        estimate_study(tmp_path, speed=Speed(tflops=tflops)).bases[0] for tflops in (0.1, 1.0)
    )
    assert slow.trial_s == pytest.approx(10 * fast.trial_s)
    tokens = 2 * slow.rows.mean
    assert fast.trial_s == pytest.approx(
        fast.footprint.num_linear * tokens * (36 * 4 + slow.rows.num_validation * 2) / 1e12
    )


def test_memory_limits_what_runs_side_by_side_and_what_does_not_fit_is_told_what_would(
    tmp_path: Path,
) -> None:
    axis = [
        "search.space={train.learning_rate: {loguniform: [0.001, 0.01]}}",
        "search.num_trials=8",
        "resources.cpus_per_worker=1",
    ]
    worker = estimate_study(tmp_path, *axis).bases[0].worker_bytes
    assert estimate_study(tmp_path, *axis, memory_bytes=int(3.5 * worker)).bases[0].at_once == 3
    large = estimate_study(
        tmp_path, *axis, "train.token_budget=65536", memory_bytes=int(1.2 * worker)
    ).bases[0]
    assert large.fits is False
    assert large.notes[0].startswith("fits with train.token_budget=")


def test_the_command_tells_a_plan_and_fails_above_a_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(dump_settings(tiny.study(tmp_path)))
    command = ["plan", str(study), "--cpus", "4", "--memory-gb", "8", "--tokens-per-second", "10"]
    assert cli.main(command) == 0
    output = capsys.readouterr().out
    assert "36 training rows" in output
    assert "in total at most" in output
    fast = [*command, "--tokens-per-second", "1000000"]  # of seconds
    assert cli.main(fast) == 0
    hours = re.search(r"in total at most (\S+) hours", capsys.readouterr().out)
    assert hours
    assert 0 < float(hours[1]) < 0.001
    assert cli.main([*command, "--max-hours", "0.00001"]) == 3
    assert "hours are more than --max-hours 1e-05" in capsys.readouterr().err
    assert cli.main([*command, "data.format.path=/nowhere/rows.jsonl"]) == 1
    assert "give the number of training rows by --rows" in capsys.readouterr().err
    assert cli.main([*command, "data.format.path=/nowhere/rows.jsonl", "--rows", "1000"]) == 0
    assert "1000 training rows of 64 tokens (max_length for each row)" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", ["llama 29M, head", "llama 64M, language model", "llama 121M, head, bf16"]
)
def test_estimates_are_within_a_quarter_of_what_a_trial_took(shape: str) -> None:
    script = ROOT / "jobs" / "bench" / "memory.py"
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": str(1 << 18)
    }  # otherwise glibc keeps freed memory
    process = subprocess.run(
        [sys.executable, script, "--one", shape],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert result["counted"] == result["parameters"]
    assert result["estimated"] == pytest.approx(result["measured"], rel=0.25)
