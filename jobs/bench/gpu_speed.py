"""The second part of gpu.py: medray against transformers' Trainer + PEFT, in bf16 and in 4 bits.

MFU counts 4 operations per weight inside layers and token: two forward and two backward, since a
frozen base needs no gradients of its own. Its share is of the speed of a large product in bf16 that
this part measures first."""

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gpu_shapes import (
    LENGTH,
    device,
    has_gpu,
    now,
    num_linear,
    open_trial,
    start_loop,
    study_of,
    take_steps,
    write_base,
    write_rows,
)

from medray.models.architecture import load_config
from medray.study.memory import step_footprint

if TYPE_CHECKING:
    from gpu import Results

NF4 = "model.quantization=nf4"
WARM_UP = 3  # steps that do not count


def measure(results: "Results", args: argparse.Namespace) -> None:
    ceiling = 0.0
    if torch.cuda.is_available():
        for name, dtype, is_tf32 in (
            ("bf16", torch.bfloat16, False),
            ("fp32", torch.float32, False),
            ("tf32", torch.float32, True),
        ):
            row = results.run(f"product {name}", partial(multiply, dtype, is_tf32))
            ceiling = ceiling or row.get("tflops", 0.0)
    shapes = args.shapes or (["7b", "135m", "1b"] if has_gpu() else ["tiny"])
    for shape in shapes:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            write_rows(folder, 400, 240 if shape != "tiny" else 20)
            results.run(f"{shape} base model", partial(write_base, shape, folder))
            for name, arm in arms(shape, folder, args.steps, ceiling).items():
                if args.only in name:
                    results.run(f"{shape} {name}", arm)


def multiply(dtype: torch.dtype, is_tf32: bool) -> dict[str, Any]:
    torch.set_float32_matmul_precision("high" if is_tf32 else "highest")
    size = 8192 if has_gpu() else 256
    matrix = torch.randn(size, size, device=device(), dtype=dtype)
    for _ in range(3):
        matrix @ matrix
    start = now()
    for _ in range(10):
        matrix @ matrix
    seconds = (now() - start) / 10
    torch.set_float32_matmul_precision("highest")
    return {"tflops": 2 * size**3 / seconds / 1e12}


def arms(
    shape: str, folder: Path, steps: int, ceiling: float
) -> dict[str, Callable[[], dict[str, Any]]]:
    base = folder / f"base-{shape}"
    medray = partial(train, base, folder, steps, ceiling)
    tutorial = partial(train_tutorial, base, folder, steps)
    result: dict[str, Callable[[], dict[str, Any]]] = {
        "medray bf16": partial(medray, is_profiled=True),
        "Trainer + PEFT bf16": tutorial,
    }
    if find_spec("bitsandbytes"):
        result |= {
            "medray QLoRA": partial(medray, NF4, is_profiled=True),
            "Trainer + PEFT QLoRA": partial(tutorial, is_qlora=True),
            "medray QLoRA, second load": partial(medray, NF4),
        }
    if shape != "7b":
        result["medray fp32"] = partial(medray, "model.precision=fp32")
    result["medray bf16, checkpoints"] = partial(medray, "model.gradient_checkpointing=true")
    result["plan"] = partial(plan, base, folder)
    return result


def train(
    base: Path, folder: Path, steps: int, ceiling: float, *settings: str, is_profiled: bool = False
) -> dict[str, Any]:
    start = now()
    trial = open_trial(base, folder, *settings)
    loop = start_loop(trial)
    load_s = now() - start
    take_steps(loop, WARM_UP)
    seconds, tokens = take_steps(loop, steps)
    tflops = 4 * num_linear(trial) * tokens / seconds / 1e12
    result = {
        "tokens_per_s": tokens / seconds,
        "ms_per_step": 1000 * seconds / steps,
        "tflops": tflops,
        "load_s": load_s,
    }
    if ceiling:
        result["mfu"] = tflops / ceiling
    if is_profiled and has_gpu():
        result |= profile(loop)
    return result | memory()


def memory() -> dict[str, float]:
    if not torch.cuda.is_available():
        return {}
    return {
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
    }


def profile(loop: Any) -> dict[str, float]:
    """Return the share of time in which the GPU is busy, and the kernels of a step."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    seconds, _ = take_steps(loop, 2)  # the profiler slows the host down, so time without it
    with torch.profiler.profile(activities=activities) as profiler:
        take_steps(loop, 2)
    kernels = [
        event
        for event in profiler.events() or ()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    busy_s = sum(event.device_time for event in kernels) / 1e6
    return {"gpu_busy": busy_s / seconds, "kernels_per_step": len(kernels) / 2}


def tutorial_model(base: Path, is_qlora: bool) -> Any:
    """Return a model as the documents of transformers and PEFT load it: in bf16, or in nf4 with
    arithmetic in bf16."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    options: dict[str, Any] = {}
    if is_qlora:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["score"],
        )
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        dtype=torch.bfloat16,
        num_labels=2,
        # bitsandbytes has no kernels of the device in name
        device_map={"": device() if has_gpu() else "cpu"},
        **options,
    ).to(device())
    model.config.use_cache = False
    if is_qlora:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = PeftConfig(
        task_type="SEQ_CLS", r=16, lora_alpha=32, lora_dropout=0.05, target_modules=layers
    )
    return get_peft_model(model, lora)


def train_tutorial(
    base: Path, folder: Path, steps: int, *, is_qlora: bool = False
) -> dict[str, Any]:
    """Train as tutorials do, with rows of similar lengths together."""
    from transformers import (
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(base)
    start = now()
    model = tutorial_model(base, is_qlora)
    load_s = now() - start
    model.config.pad_token_id = tokenizer.pad_token_id
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    data = []
    for row in rows:
        encoding = tokenizer(row["text"], truncation=True, max_length=LENGTH)
        data.append({**encoding, "labels": int(row["label"] == "cancer")})
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            times.append(now())

    settings = TrainingArguments(
        output_dir=str(folder / "hf"),
        per_device_train_batch_size=16,
        max_steps=WARM_UP + 1 + steps,
        learning_rate=1e-4,
        bf16=True,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        train_sampling_strategy="group_by_length",
        use_cpu=not torch.cuda.is_available(),
    )
    Trainer(
        model=model,
        args=settings,
        train_dataset=data,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[Clock()],
    ).train()
    mean = sum(len(row["input_ids"]) for row in data) / len(data)
    seconds = (times[-1] - times[WARM_UP]) / (len(times) - 1 - WARM_UP)
    return {
        "tokens_per_s": 16 * mean / seconds,
        "ms_per_step": 1000 * seconds,
        "load_s": load_s,
    } | memory()


def plan(base: Path, folder: Path) -> dict[str, Any]:
    """Return the memory that `medray plan` counts for the first arm."""
    if device() == "cuda" and not has_gpu():
        return {"skip": "a plan has tensors without contents, and the device in name has contents"}
    study = study_of(base, folder)
    (model,) = study.base_models
    whole = step_footprint(
        load_config(base, str(base)), study.trial(model), LENGTH, 2, 0, is_on_gpu=True
    )
    return {"peak_gb": whole.peak / 1e9, "weights_gb": whole.weights / 1e9}
