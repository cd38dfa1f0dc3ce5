"""Speed and answers of a study's winner in fp32, bf16 and 8 bits on this machine, in one run, arms in turns.

Tokens are real ones, without padding; rates are tokens by CPU second of the process, which other programs disturb little.
`--onnx` adds what was rejected: ONNX Runtime's dynamic 8 bits of the same model (`pip install onnx onnxruntime`).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medray.config.load import load_study
from medray.data import dataset as datasets
from medray.engines.transformers import TransformersEngine
from medray.evaluation.leaderboard import f1_of
from medray.models import int8, precision
from medray.models.batch import collate
from medray.models.build import Built, merge
from medray.registry import loading
from medray.study.run import SETTINGS, latest
from medray.tasks.base.protocol import task_options

_BATCH = 8


class Counting:
    """An engine that keeps what it was asked, so that every arm answers the same rows in the same batches."""

    def __init__(self, tokenizer: Any, num_labels: int) -> None:
        self.tokenizer, self.num_labels = tokenizer, num_labels
        self.rows: list[Sequence[int]] = []

    def logits(self, inputs: Sequence[Sequence[int]]) -> Any:
        self.rows += inputs
        return np.zeros((len(inputs), self.num_labels), dtype=np.float32)


class Answered(Counting):
    def __init__(self, tokenizer: Any, outputs: Any) -> None:
        super().__init__(tokenizer, outputs.shape[1])
        self.outputs = outputs

    def logits(self, inputs: Sequence[Sequence[int]]) -> Any:
        return self.outputs


def onnx(built: Built, folder: Path, threads: int) -> Callable[[dict[str, Any]], Any]:
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = built.model

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.model(input_ids=ids, attention_mask=mask).logits

    example = collate([[5, 6, 7, 8], [5, 6, 7]], built.tokenizer.pad_token_id)
    exported, reduced = str(folder / "fp32.onnx"), str(folder / "int8.onnx")
    torch.onnx.export(
        Plain().eval(),
        (example["input_ids"], example["attention_mask"]),
        exported,
        input_names=["ids", "mask"],
        output_names=["logits"],
        dynamic_axes={"ids": {0: "rows", 1: "tokens"}, "mask": {0: "rows", 1: "tokens"}, "logits": {0: "rows"}},
        opset_version=17,
        dynamo=False,
    )
    quantize_dynamic(exported, reduced, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(reduced, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"ids": batch["input_ids"].numpy(), "mask": batch["attention_mask"].numpy()})[0]


def outputs(built: Built, arm: str, batches: Sequence[Sequence[Sequence[int]]], runtime: Any) -> Any:
    """What the arm says to all batches, one after another, and the CPU seconds it took."""
    context = int8.quantised(built) if arm == "int8" else precision.cast_within(built, "bf16") if arm == "bf16" else nullcontext()
    with context:
        engine = TransformersEngine(built, precision="fp32" if arm == "onnx int8" else arm, token_budget=1 << 20)  # type: ignore[arg-type]
        answer = (lambda rows: runtime(collate(rows, built.tokenizer.pad_token_id))) if arm == "onnx int8" else engine.logits
        answer(batches[-1])  # what is done once is not counted
        start = time.process_time()
        said = [answer(batch) for batch in batches]
        return np.concatenate(said), time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a study's folder, whose winner has a head that reads rows")
    parser.add_argument(
        "--part", choices=["validation", "test"], default="validation", help="test: its labels are opened, and that is logged"
    )
    parser.add_argument("--rows", type=int, default=10**9, help="at most so many")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--onnx", action="store_true", help="ONNX Runtime as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = latest(Path(args.run))
    study, board = load_study([run.folder / SETTINGS]), run.leaderboard()
    dataset = datasets.load(study.data, task_options(study.task).bring)
    part = dataset.validation if args.part == "validation" else dataset.open_test(run.storage_dir / "test_log", "bench int8").examples
    examples = list(part)[: args.rows]
    loaded = loading.load(str(board.best.checkpoint), precision="fp32")
    task, built = loaded.task, loaded.built
    built.model = merge(built).eval()
    int8.check(built)
    asked = Counting(built.tokenizer, len(task.labels))
    task.predict(asked, examples)  # type: ignore[arg-type]
    order = sorted(range(len(asked.rows)), key=lambda at: -len(asked.rows[at]))
    batches = [[asked.rows[at] for at in order[start : start + _BATCH]] for start in range(0, len(order), _BATCH)]
    num_tokens = sum(map(len, asked.rows))
    arms = ["fp32", "bf16", "int8", *(["onnx int8"] if args.onnx else [])]
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    said: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        runtime = onnx(built, Path(folder), args.threads) if args.onnx else None
        for _ in range(args.repeats):
            for arm in arms:
                found, taken = outputs(built, arm, batches, runtime)
                seconds[arm].append(taken)
                said[arm] = np.empty_like(found)
                said[arm][order] = found
    answers = {arm: task.predict(Answered(built.tokenizer, found), examples) for arm, found in said.items()}  # type: ignore[arg-type]
    rate = {arm: num_tokens / statistics.median(taken) for arm, taken in seconds.items()}
    f1 = f1_of(loaded.manifest.metrics, board.metric)
    print(f"{len(examples)} {args.part} rows, {num_tokens} tokens, mean {num_tokens / len(asked.rows):.0f}; threads: {args.threads}")
    print(f"{'arm':10} {'x fp32':>7} {'x bf16':>7} {'tokens/CPU s':>13} {'as fp32':>8} {f1:>10}  rates of each repeat")
    for arm in arms:
        alike = sum(one.labels == other.labels for one, other in zip(answers[arm], answers["fp32"], strict=True)) / len(examples)
        every = " ".join(f"{num_tokens / taken:.0f}" for taken in seconds[arm])
        figure = task.score(answers[arm], examples).values[f1]
        print(
            f"{arm:10} {rate[arm] / rate['fp32']:7.2f} {rate[arm] / rate['bf16']:7.2f} {rate[arm]:13.0f} {alike:8.4f} {figure:10.4f}  {every}"
        )


if __name__ == "__main__":
    main()
