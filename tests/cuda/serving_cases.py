"""Releases on the CUDA device in name: heads and generated text as on a CPU.

tests/test_cuda.py runs this file in a process of its own."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.pretend_cuda import Device

from medray import cli
from medray.config.load import dump_settings
from medray.config.trial import Precision
from medray.engines.transformers import TransformersEngine
from medray.models import adapter, build
from medray.records import MergeRecord
from medray.registry import loading
from medray.registry.registry import Registry
from medray.registry.release import Release
from medray.serving import opening
from medray.serving.chat import ChatModel
from medray.serving.opening import open_model
from medray.serving.schemas import AppOptions, Limits
from medray.types import Chunk, Sampling

TEXTS = ("tumour in the lung", "fever after infection of the heart", "renal")
PROMPTS = [[5, 6, 7, 40], [8, 9], [10, 11, 12, 13, 14, 15]]


def publish(folder: Path, kind: str, family: str) -> Release:
    study = (tiny.instruct_study if kind == "instruct" else tiny.study)(
        folder, "train.epochs=1", "resources.gpus_per_worker=0", family=family, num_rows=24
    )
    checkpoint = tiny.trial(study, folder).run().checkpoint
    return Registry(str(folder / "runs")).publish(checkpoint, "cancer")


def answers(release: Release, device: str, precision: Precision) -> Any:
    """Return the probabilities, or the generated text, of a release that is open for requests."""
    options = AppOptions(
        releases=("cancer",), precision=precision, token_budget=256, generation_tokens=512
    )
    deadline = time.monotonic() + 60
    with ThreadPoolExecutor(1) as thread:
        model = open_model(release, options, thread, device=device)
        if isinstance(model, ChatModel):
            return [chunk.text for chunk in model.streams.collect(PROMPTS, Sampling(6), deadline)]  # type: ignore[attr-defined]
        request = model.task.routes[0].request(inputs=TEXTS)
        response: Any = model.answer(request, limits=Limits(tokens=1000), deadline=deadline)
        assert model.release.model.network.device.type == device
        return [list(answer.probabilities.values()) for answer in response.predictions]


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "distilbert", "electra", "modernbert", *tiny.WITH_HEADS]
)
def test_a_head_answers_as_on_a_cpu(tmp_path: Path, family: str) -> None:
    release = publish(tmp_path, "classification", family)
    on_cpu = answers(release, "cpu", "fp32")
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 0.02)):
        on_device = answers(release, "cuda", precision)
        for one, other in zip(on_device, on_cpu, strict=True):
            assert one == pytest.approx(other, abs=tolerance)


@pytest.mark.parametrize("setting", ["none", "nf4"])
def test_a_large_model_is_served_in_16_bits_and_never_lies_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    tiny.round_base(tiny.base(tmp_path, "llama"))
    settings = (f"model.quantization={setting}", "train.epochs=1", "resources.gpus_per_worker=0")
    checkpoint = tiny.trial(tiny.study(tmp_path, *settings, family="llama"), tmp_path).run()
    merge = MergeRecord(metric="f1_macro", unmerged=0.9, merged=0.9)
    registry = Registry(str(tmp_path / "runs"))
    release = registry.publish(checkpoint.checkpoint, "cancer", merge=merge)
    on_cpu = answers(release, "cpu", "fp32")
    most_wide = 0

    def count(network: Any) -> int:
        return sum(
            layer.weight.dtype == torch.float32
            for name, layer in network.named_modules()
            if type(layer) is torch.nn.Linear and ".layers." in name and ".lora_" not in name
        )

    merge_layer = adapter.merge

    def merge_and_count(layer: Any) -> None:
        nonlocal most_wide
        merge_layer(layer)
        most_wide = max(most_wide, count(network[0]))

    network: list[Any] = []
    merge_model = build.merge

    def merge_with_count(model: Any, precision: Precision = "fp32") -> Any:
        network.append(model.network)
        return merge_model(model, precision)

    monkeypatch.setattr(adapter, "merge", merge_and_count)
    monkeypatch.setattr(loading, "merge_adapter", merge_with_count)
    model = release.load(precision="bf16", device="cuda", merge=True)
    assert model.is_merged
    assert most_wide == 1, "the layer that is being merged"
    assert count(model.model.network) == 0
    for one, other in zip(answers(release, "cuda", "bf16"), on_cpu, strict=True):
        assert one == pytest.approx(other, abs=0.02)
    shares = [
        [
            word.share
            for word in release.load(precision="bf16", device=device).explain(TEXTS[0]).words
        ]
        for device in ("cpu", "cuda")
    ]
    assert shares[1] == pytest.approx(shares[0], abs=0.05)


@pytest.mark.parametrize("family", tiny.DECODERS)
def test_a_release_that_talks_gives_the_text_of_a_cpu(tmp_path: Path, family: str) -> None:
    release = publish(tmp_path, "instruct", family)
    assert answers(release, "cuda", "fp32") == answers(release, "cpu", "fp32")
    sampling = Sampling(6, temperature=0.8, top_p=0.9, seed=3, logprobs=2)

    def texts(device: str) -> list[Chunk]:
        engine = release.load(device=device).engine
        assert isinstance(engine, TransformersEngine)
        return list(engine.generate(TEXTS, sampling))

    assert [chunk.text for chunk in texts("cuda")] == [chunk.text for chunk in texts("cpu")]


def test_a_greedy_step_moves_a_number_per_row_and_no_logits(tmp_path: Path, gpu: Device) -> None:
    release = publish(tmp_path, "instruct", "llama")
    engine = release.load(device="cuda").engine
    assert isinstance(engine, TransformersEngine)

    def num_copies(sampling: Sampling) -> int:
        generation = engine.generation()
        generation.ends = set()
        generation.join([generation.row(at, row, sampling) for at, row in enumerate(PROMPTS)])
        gpu.syncs.clear()
        generation.step()
        return sum(count for place, count in gpu.syncs.items() if "generation" in place)

    assert num_copies(Sampling(8)) < num_copies(Sampling(8, logprobs=1))


def test_an_evaluation_takes_the_gpu_unless_its_study_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tiny.study(tmp_path, family="bert", num_rows=24)
    publish(tmp_path, "classification", "bert")
    path = tmp_path / "study.yaml"
    path.write_text(dump_settings(study))
    devices, results, load = [], [], loading.load

    def load_and_note(place: Path, *, device: str = "cpu", **options: Any) -> Any:
        devices.append(device)
        return load(place, device=device, **options)

    monkeypatch.setattr(loading, "load", load_and_note)
    for settings in ((), ("resources.gpus_per_worker=0",)):
        call = ["evaluate", "cancer@1", str(path), *settings, "--split", "validation"]
        assert cli.main([*call, "--storage-path", str(tmp_path / "runs"), "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out)["metrics"]["values"])
    assert devices == ["cuda", "cpu"]
    assert results[0] == pytest.approx(results[1], abs=1e-4)


@pytest.mark.parametrize("kind", ["classification", "instruct"])
def test_a_replica_follows_its_gpu_and_times_no_precision(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = publish(tmp_path, kind, "llama")
    precisions = []
    for name in ("time_texts", "time_steps"):
        measure = getattr(opening, name)
        monkeypatch.setattr(
            opening,
            name,
            lambda engine, *rest, measure=measure: (
                precisions.append(engine.precision) or measure(engine, *rest)
            ),
        )
    with ThreadPoolExecutor(1) as thread:
        model = open_model(release, AppOptions(releases=("cancer",)), thread, device="cuda")
    assert model.release.precision == "bf16"
    assert precisions == (["bf16"] if kind == "classification" else [])
    budget = model.release.engine.token_budget  # type: ignore[attr-defined]
    assert budget > AppOptions.model_fields["token_budget"].default
