"""The command that tells what a study will take."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from medray.cli.arguments import Configs, load
from medray.errors import ConfigError

if TYPE_CHECKING:
    from medray.study.estimate import StudyEstimate

app = typer.Typer()


@app.command()
def plan(
    arguments: Configs,
    nodes: Annotated[int, typer.Option(min=1, help="nodes of the cluster, all alike")] = 1,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs of a node; this machine's where not given")
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of a node")] = 0,
    memory_gb: Annotated[
        float | None,
        typer.Option(help="of a GPU, or without one of a node; this machine's where it has none"),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            help=(
                "10^12 operations a second that a worker reaches; assumed, and said so, where not "
                "given"
            )
        ),
    ] = None,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(
            help="measured of a worker, as the log of a trial has it, instead of --tflops"
        ),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="training rows, for data that is not on this machine")
    ] = None,
    max_hours: Annotated[
        float | None, typer.Option(help="exit with status 1 if the search may take longer")
    ] = None,
    max_gpu_hours: Annotated[
        float | None, typer.Option(help="exit with status 1 if it may take more")
    ] = None,
) -> None:
    """Tell memory, workers, trials side by side and hours of a study before it is started. Reads no
    weight."""
    from rich.console import Console
    from rich.table import Table

    from medray.runtime.cluster import Cluster, Node
    from medray.study.estimate import Speed, estimate

    if tflops and tokens_per_second:
        raise ConfigError(
            f"--tflops {tflops:g} and --tokens-per-second {tokens_per_second:g}: give one of the "
            "two"
        )
    study = load(arguments)
    if memory_gb is None and not gpus:
        memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    node = Node(float(cpus or os.cpu_count() or 1), float(gpus))
    found = estimate(
        study,
        Cluster((node,) * nodes, None, is_joined=False),
        memory_bytes=int(memory_gb * 1e9) if memory_gb else None,
        speed=Speed(tflops, tokens_per_second),
        num_rows=rows,
    )
    header, *lines = _table(found)
    shown = Table(*header)
    for line in lines:
        shown.add_row(*line)
    console = Console()
    console.print(shown) if console.is_terminal else print(
        "\n".join(" | ".join(line) for line in (header, *lines))
    )
    for base in found.bases:
        print(
            f"{base.source}: {base.rows.num_train} training rows of {base.rows.mean:.0f} tokens "
            f"({base.rows.lengths_from})"
        )
        for note in base.notes:
            print(f"{base.source}: {note}")
    print(_assumed(tflops, tokens_per_second, bool(gpus)))
    print(
        f"in all at most {found.hours:.3f} hours and {found.gpu_hours:.3f} GPU-hours; ASHA and "
        "patience end trials earlier"
    )
    over = [
        f"{amount:.3f} {name} are more than {limit:g}"
        for amount, limit, name in (
            (found.hours, max_hours or math.inf, "hours"),
            (found.gpu_hours, max_gpu_hours or math.inf, "GPU-hours"),
        )
        if amount > limit
    ]
    over += [
        f"{base.source} does not fit into memory" for base in found.bases if base.fits is False
    ]
    if over:
        raise ConfigError(f"study {study.name}: {'; '.join(over)}")


def _assumed(tflops: float | None, tokens_per_second: float | None, has_gpus: bool) -> str:
    from medray.study.estimate import TFLOPS_OF_A_GPU

    if tokens_per_second:
        return f"with {tokens_per_second:g} tokens a second of each worker, as measured"
    if tflops:
        return f"with {tflops:g} TFLOP/s of each worker"
    if has_gpus:
        return (
            f"assumed: {TFLOPS_OF_A_GPU:g} TFLOP/s of each GPU; --tokens-per-second takes what a "
            "trial's log tells"
        )
    return (
        "assumed: 0.04 TFLOP/s of each CPU in fp32, 0.06 in bf16; --tokens-per-second takes what a "
        "trial's log tells"
    )


def _table(found: "StudyEstimate") -> Sequence[tuple[str, ...]]:
    """Lines of what is told of each base model, the header first."""
    lines = [
        (
            "base model",
            "parameters",
            "train",
            "GB a worker",
            "of it activations",
            "fits",
            "workers",
            "side by side",
            "trials",
            "hours a trial",
        )
    ]
    for base in found.bases:
        shown = "-" if base.fits is None else "yes" if base.fits else "no"
        devices = f"{base.placement.least_workers} x " + (
            f"{base.placement.gpus:g} GPU"
            if base.placement.gpus
            else f"{base.placement.cpus:g} CPU"
        )
        figures = (
            f"{base.footprint.num_parameters / 1e6:,.0f}M",
            f"{base.footprint.num_trainable / 1e6:.1f}M",
            f"{base.worker_bytes / 1e9:.1f}",
        )
        rest = (
            f"{base.footprint.activations / 1e9:.1f}",
            shown,
            devices,
            str(base.at_once),
            str(base.num_trials),
            f"{base.trial_s / 3600:.3f}",
        )
        lines.append((base.source, *figures, *rest))
    return lines
