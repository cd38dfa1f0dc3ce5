"""The first part of gpu.py: a GPU computes what the CPU computes, on tiny base models."""

import argparse
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch
from gpu_shapes import has_gpu, open_trial, start_loop, write_base, write_rows
from support import tiny

from medray.models.device import free_memory
from medray.registry.loading import load
from medray.registry.probe import check_probe, probe_outputs
from medray.training.loop import Loop
from medray.types import Sampling, gather

if TYPE_CHECKING:
    from gpu import Results

NF4, CHECKPOINTS = "model.quantization=nf4", "model.gradient_checkpointing=true"
BF16, FP16 = "model.precision=bf16", "model.precision=fp16"
TOLERANCE = {"fp32": 2e-3, "half": 0.1}  # of a training loss
SHAPE_OF_LIMIT = ("135m", 240)  # of the base model that runs out of memory, and words of its rows
PROMPTS = [[10, 11, 12], [20] * 17, [9, 13, 14], [15], [16, 17, 18, 19], [30, 31] * 6]


def cases() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield kinds of studies, families and settings."""
    for family in ("bert", "roberta", "distilbert", "electra"):
        yield "classification", family, ()
    for family in ("llama", "mistral", "phi", "phi3", "opt"):
        yield "choice", family, ()
    yield "tagging", "roberta", ()
    yield "instruct", "llama", ()
    yield "extraction", "phi", ()
    yield "choice", "llama", (BF16,)
    yield "choice", "llama", (FP16,)
    yield "classification", "llama", (BF16, CHECKPOINTS)
    for family in ("bert", "llama", "phi3"):
        yield "classification", family, (NF4,)
    yield "choice", "mistral", (NF4, BF16, CHECKPOINTS)
    for stage in (0, 1, 2, 3):
        yield "choice", "llama", (BF16, "train.strategy=deepspeed", f"train.zero_stage={stage}")


def measure(results: "Results", args: argparse.Namespace) -> None:
    for kind, family, settings in cases():
        name = " ".join([kind, family, *(setting.partition(".")[2] for setting in settings)])
        if args.only in name:
            results.run(name, lambda case=(kind, family, settings): compare(*case))
    for name, work in {
        "codes of 4 bits": compare_codes,
        "texts": compare_texts,
        "resume": compare_resume,
        "out of memory": halve,
    }.items():
        if args.only in name:
            results.run(name, work)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def on_cpu() -> Iterator[None]:
    with patch("torch.cuda.is_available", lambda: False):
        yield


def study_of(kind: str, folder: Path, family: str, *settings: str) -> Any:
    tagging = "{name: tagging, max_length: 64}"
    extraction = "{name: extraction, max_length: 96, max_answer: 24}"
    # Steps enlarge differences of rounding, so trials in 16 bits are short.
    settings = (f"train.epochs={1 if is_half(settings) else 2}", "lora.dropout=0", *settings)
    if kind == "classification":
        return tiny.study(folder, *settings, family=family)
    if kind in ("choice", "instruct"):
        make = tiny.choice_study if kind == "choice" else tiny.instruct_study
        return make(folder, *settings, family=family)
    task = tagging if kind == "tagging" else extraction
    return tiny.mention_study(folder, task, *settings, family=family)


def is_half(settings: Iterable[str]) -> bool:
    return any("precision=" in setting for setting in settings)


def compare(kind: str, family: str, settings: tuple[str, ...]) -> dict[str, Any]:
    """Train the same trial on the CPU and here. Then load each checkpoint on the other device,
    check its probe, and merge it."""
    for setting, package in ((NF4, "bitsandbytes"), ("train.strategy=deepspeed", "deepspeed")):
        if setting in settings and find_spec(package) is None:
            return {"skip": f"{package} is not installed"}
    is_in_name = device() == "cuda" and torch.cuda.get_device_name() == "in name"
    if is_in_name and "train.strategy=deepspeed" in settings:
        return {"skip": "the device in name has no NCCL"}
    # A process uses DeepSpeed on one device only. Plain steps on the CPU give the same.
    plain = [each for each in settings if not each.startswith("train.")]
    losses, checkpoints = {}, {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tiny.base(folder, family, hidden_size=64)
        for where in ("cpu", "here"):
            shutil.rmtree(folder / "trial", ignore_errors=True)
            if where == "cpu":
                with on_cpu():
                    result = tiny.trial(study_of(kind, folder, family, *plain), folder).run()
            else:
                result = tiny.trial(study_of(kind, folder, family, *settings), folder).run()
            losses[where] = np.array([row.train_loss for row in result.history])
            checkpoints[where] = folder / where
            shutil.copytree(result.checkpoint, checkpoints[where])
        for writer, reader in (("cpu", device()), ("here", "cpu")):
            load(checkpoints[writer], device=reader)  # raises where its probe differs
            release = load(checkpoints[writer], device=reader, precision="fp32").merge()
            outputs = probe_outputs(release.task, release.engine)
            if NF4 not in settings:  # merging 4 bits changes the outputs
                check_probe(checkpoints[writer], release.manifest.probe, outputs)
    difference = float(np.abs(losses["cpu"] - losses["here"]).max())
    return {
        "difference": difference,
        "loss": float(losses["here"][-1]),
        "is_right": difference < TOLERANCE["half" if is_half(settings) else "fp32"],
    }


def compare_codes() -> dict[str, Any]:
    """Compare the 4 bits that the GPU computes with those of the CPU, which medray stores."""
    if find_spec("bitsandbytes") is None:
        return {"skip": "bitsandbytes is not installed"}
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    codes, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    other_codes, _ = quantize_4bit(weight.to(device()), quant_type="nf4", compress_statistics=True)
    share = float((codes == other_codes.cpu()).float().mean())
    # what matters: the codes of the CPU mean the same on the GPU
    values = dequantize_4bit(codes, state)
    state.to(torch.device(device()))
    other_values = dequantize_4bit(codes.to(device()), state).cpu()
    difference = float((values - other_values).abs().max())
    return {"same_codes": share, "difference": difference, "is_right": difference < 1e-6}


def compare_texts() -> dict[str, Any]:
    """Compare greedy and random texts of the two devices."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        checkpoint = tiny.trial(tiny.instruct_study(folder), folder).run().checkpoint
        texts = {}
        for where in ("cpu", device()):
            engine = load(checkpoint, device=where, precision="fp32").engine
            texts[where] = [
                chunk.text
                for sampling in (
                    Sampling(max_tokens=16),
                    Sampling(max_tokens=16, temperature=0.7, seed=1),
                )
                for chunk in gather(engine.generate(PROMPTS, sampling), len(PROMPTS))
            ]
    num_same = sum(map(str.__eq__, texts["cpu"], texts[device()]))
    return {
        "same": num_same,
        "of": 2 * len(PROMPTS),
        "is_right": texts["cpu"][: len(PROMPTS)] == texts[device()][: len(PROMPTS)],
    }


def compare_resume() -> dict[str, Any]:
    """Compare a trial that stops after step 7 and continues with one that never stops. Dropout is
    on, so the random numbers of the device count."""

    class Stop(Exception):
        pass

    advance = Loop.advance

    def stop_after_7(loop: Loop) -> None:
        advance(loop)
        if loop.slot.step == 7:
            raise Stop

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        study = tiny.study(folder, "train.state_every_steps=1", "lora.dropout=0.1", family="llama")
        whole = [row.train_loss for row in tiny.trial(study, folder).run().history]
        shutil.rmtree(folder / "trial")
        with patch.object(Loop, "advance", stop_after_7):
            with suppress(Stop):
                tiny.trial(study, folder).run()
        parts = [row.train_loss for row in tiny.trial(study, folder).run(resume=True).history]
    difference = float(np.abs(np.array(whole) - np.array(parts)).max())
    return {"difference": difference, "is_right": difference < 1e-6}


def halve() -> dict[str, Any]:
    """Run out of memory at a limit between the weights and the peak of a step: the step is repeated
    in parts, with the same loss."""
    if not has_gpu():
        return {"skip": "needs the memory of a GPU"}
    shape, num_words = SHAPE_OF_LIMIT
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_rows(folder, 64, num_words)
        write_base(shape, folder)
        whole, least = take_two_steps(folder / f"base-{shape}", folder)
        most = torch.cuda.max_memory_allocated()
        free_memory()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((least + most) / 2 / total)
        try:
            parts, _ = take_two_steps(folder / f"base-{shape}", folder)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    difference = float(np.abs(np.array(whole.losses) - np.array(parts.losses)).max())
    return {
        "budget": whole.budget,
        "budget_after": parts.budget,
        "difference": difference,
        "is_right": difference < TOLERANCE["fp32"] and parts.budget < whole.budget,
    }


@dataclass(frozen=True)
class Steps:
    losses: list[float]
    budget: int  # tokens per micro-batch after them


def take_two_steps(base: Path, folder: Path) -> tuple[Steps, int]:
    """Return two steps in fp32, and the memory before them, which is that of the weights."""
    settings = ("model.precision=fp32", "lora.dropout=0")
    loop = start_loop(open_trial(base, folder, *settings))
    least = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return Steps([loop.take_step()[0] for _ in range(2)], loop.token_budget), least
