"""Base models of real shapes with random weights, rows, and trials, for gpu.py. Speed and memory
do not depend on the values of weights."""

import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from support import tiny
from transformers import LlamaConfig, LlamaForCausalLM

from medray.config.load import load_study
from medray.config.study import StudyConfig
from medray.training.loop import Loop
from medray.training.trial import Trial

LENGTH = 512
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32768,
    },
}


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def has_gpu() -> bool:
    """Return whether there is a GPU for real shapes. The device in name computes on the CPU."""
    return torch.cuda.is_available() and torch.cuda.get_device_name() != "in name"


def now() -> float:
    """Return the time when the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def write_base(shape: str, folder: Path) -> dict[str, Any]:
    """Save a Llama of a shape with random weights in bf16, and the tokenizer of the tests."""
    path, tokenizer = folder / f"base-{shape}", tiny.tokenizer("llama")
    tokenizer.model_max_length = 4 * LENGTH
    sizes = LlamaConfig(
        max_position_embeddings=4 * LENGTH,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **SHAPES[shape],
    )
    with torch.device("cuda" if has_gpu() else "cpu"):  # the one in name has no bytes
        model = LlamaForCausalLM._from_config(sizes, dtype=torch.bfloat16)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return {}


def write_rows(folder: Path, num_rows: int, num_words: int) -> Path:
    """Write rows whose lengths vary as those of abstracts do."""
    rng, path = random.Random(0), folder / "rows.jsonl"
    with path.open("w") as file:
        for number in range(num_rows):
            length = max(8, int(rng.gauss(num_words, num_words / 3)))
            row = {
                "id": f"r{number}",
                "text": f"{tiny.text(rng, length)} {number}",
                "label": ("cancer", "other")[number % 2],
            }
            file.write(json.dumps(row) + "\n")
    return path


def study_of(base: Path, folder: Path, *settings: str) -> StudyConfig:
    return load_study(
        [],
        [
            "name=bench",
            f"storage_path={folder / 'runs'}",
            f"data.format={{name: jsonl, path: {folder / 'rows.jsonl'}, id: id}}",
            f"task={{name: classification, positive_label: cancer, max_length: {LENGTH}}}",
            f"base_models=[{{source: {base}}}]",
            "train={epochs: 100, samples_per_step: 16, learning_rate: 1.0e-4, token_budget: 8192}",
            "model.precision=bf16",
            *settings,
        ],
    )


def open_trial(base: Path, folder: Path, *settings: str) -> Trial:
    trial: Trial = tiny.trial(study_of(base, folder, *settings), folder)
    return trial


def start_loop(trial: Trial) -> Loop:
    """Prepare a trial for steps without evaluations."""
    trial.loop = trial.make_loop()
    precision = trial.config.model.precision
    trial.precision = trial.precision.model_copy(update={"actual": precision})
    trial._start(None)
    return trial.loop


def take_steps(loop: Loop, num_steps: int) -> tuple[float, int]:
    """Take steps, and return their seconds and real tokens."""
    start, tokens = now(), loop.slot.num_tokens
    for _ in range(num_steps):
        if loop.slot.cursor[1] + 1 == len(loop.steps()):
            loop.slot.cursor = (loop.slot.cursor[0], 0)  # no epoch ends, so no evaluation is due
        loop.advance()
    return now() - start, loop.slot.num_tokens - tokens


def num_linear(trial: Trial) -> int:
    """Return the weights inside layers, which multiply every token."""
    return sum(
        module.in_features * module.out_features
        for name, module in trial.model.network.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name and ".lora_" not in name
    )
