"""The command that estimates a study before it runs."""

import math
import os
from typing import TYPE_CHECKING, Annotated

import typer

from medray.cli.arguments import Configs, load
from medray.cli.output import Json, Output, Quiet
from medray.errors import GateError, UsageError, suggest

if TYPE_CHECKING:
    from medray.study.estimate import BaseEstimate, StudyEstimate

app = typer.Typer()
_HEADER = (
    "base model",
    "parameters",
    "trainable",
    "GB/worker",
    "activations (GB)",
    "fits",
    "workers",
    "parallel trials",
    "trials",
    "hours/trial",
)


@app.command()
def plan(
    arguments: Configs,
    nodes: Annotated[int, typer.Option(min=1, help="nodes of the cluster, all alike")] = 1,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs per node; by default this machine's")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=0, help="GPUs per node; by default 1 with --card, else 0")
    ] = None,
    card: Annotated[
        str | None,
        typer.Option(help="name of the GPUs, such as A100-80G, for their memory and speed"),
    ] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(
            help="memory per GPU, or per node without GPUs; by default this machine's memory"
        ),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(help="speed of a worker in 10^12 operations per second; assumed by default"),
    ] = None,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(help="measured speed of a worker, from a trial's log, instead of --tflops"),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="number of training rows, for data that is not on this machine"),
    ] = None,
    max_hours: Annotated[
        float | None, typer.Option(help="gate: exit with status 3 if the search may take longer")
    ] = None,
    max_gpu_hours: Annotated[
        float | None, typer.Option(help="gate: exit with status 3 if it may take more")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Estimate a study's memory, parallelism and run time without loading weights."""
    from medray.runtime.cluster import Cluster, Node
    from medray.study.estimate import Speed, estimate
    from medray.study.gpus import CARDS

    out = Output.start(as_json, quiet)
    if tflops and tokens_per_second:
        raise UsageError(
            f"--tflops {tflops:g} and --tokens-per-second {tokens_per_second:g}: give one of the "
            "two"
        )
    if card is not None and card not in CARDS:
        raise UsageError(f"--card {card}: is not known; {suggest(card, CARDS)}")
    study = load(arguments)
    gpus = gpus if gpus is not None else int(card is not None)
    if memory_gb is None and card:
        memory_gb = CARDS[card].memory_gb
    elif memory_gb is None and not gpus:
        memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    node = Node(float(cpus or os.cpu_count() or 1), float(gpus), card)
    outlook = estimate(
        study,
        Cluster((node,) * nodes, None, is_joined=False),
        memory_bytes=int(memory_gb * 1e9) if memory_gb else None,
        speed=Speed(tflops, tokens_per_second),
        num_rows=rows,
    )
    assumption = _assumption(tflops, tokens_per_second, card or ("" if gpus else None))
    refusals = _refusals(outlook, max_hours, max_gpu_hours)
    out.result(
        {
            "hours": outlook.hours,
            "gpu_hours": outlook.gpu_hours,
            "speed": assumption,
            "refusals": refusals,
            "base_models": outlook.bases,
        },
        *_table(outlook, out),
        *_notes(outlook),
        assumption,
        f"in total at most {_number(outlook.hours)} hours and {_number(outlook.gpu_hours)} "
        "GPU-hours; ASHA and patience end trials earlier",
    )
    if refusals:
        raise GateError(f"study {study.name}: {'; '.join(refusals)}")


def _refusals(
    outlook: "StudyEstimate", max_hours: float | None, max_gpu_hours: float | None
) -> list[str]:
    """Return a sentence for each limit that the study may exceed."""
    limits = (
        (outlook.hours, max_hours, "hours", "--max-hours"),
        (outlook.gpu_hours, max_gpu_hours, "GPU-hours", "--max-gpu-hours"),
    )
    refusals = [
        f"{_number(amount)} {unit} are more than {option} {limit:g}"
        for amount, limit, unit, option in limits
        if amount > (limit or math.inf)
    ]
    return refusals + [
        f"{base.source} does not fit into memory" for base in outlook.bases if base.fits is False
    ]


def _assumption(tflops: float | None, tokens_per_second: float | None, card: str | None) -> str:
    """Return the assumed speed as a sentence. `card` is empty for an unknown GPU."""
    from medray.study.estimate import TFLOPS_OF_A_GPU

    if tokens_per_second:
        return f"speed: {tokens_per_second:g} tokens per second and worker, as measured"
    if tflops:
        return f"speed: {tflops:g} TFLOP/s per worker"
    remedy = "--tokens-per-second takes the speed in a trial's log"
    if card:
        return f"assumed speed: that of a {card}, by the base model's width and layers; {remedy}"
    if card is not None:
        return f"assumed speed: {TFLOPS_OF_A_GPU:g} TFLOP/s per GPU; --card names it, or {remedy}"
    return f"assumed speed: 0.04 TFLOP/s per CPU in fp32, 0.06 in bf16; {remedy}"


def _notes(outlook: "StudyEstimate") -> list[str]:
    return [
        line
        for base in outlook.bases
        for line in (
            f"{base.source}: {base.rows.num_train} training rows of {base.rows.mean:.0f} tokens "
            f"({base.rows.lengths_from})",
            *(f"{base.source}: {note}" for note in base.notes),
        )
    ]


def _table(outlook: "StudyEstimate", out: Output) -> list[str]:
    """Return the lines of a table with one row per base model."""
    from rich.console import Console
    from rich.table import Table

    rows = [_row(base) for base in outlook.bases]
    console = Console(file=out.stdout)
    if not console.is_terminal:
        return [" | ".join(row) for row in (_HEADER, *rows)]
    table = Table(*_HEADER)
    for row in rows:
        table.add_row(*row)
    with console.capture() as capture:
        console.print(table)
    return [capture.get().rstrip("\n")]


def _row(base: "BaseEstimate") -> tuple[str, ...]:
    devices = (
        f"{base.placement.gpus:g} GPU" if base.placement.gpus else f"{base.placement.cpus:g} CPU"
    )
    return (
        base.source,
        f"{base.footprint.num_parameters / 1e6:,.0f}M",
        f"{base.footprint.num_trainable / 1e6:.1f}M",
        f"{base.worker_bytes / 1e9:.1f}",
        f"{base.footprint.activations / 1e9:.1f}",
        "-" if base.fits is None else "yes" if base.fits else "no",
        f"{base.placement.least_workers} x {devices}",
        str(base.at_once),
        str(base.num_trials),
        _number(base.trial_s / 3600),
    )


def _number(hours: float) -> str:
    """Return hours with two digits also where there are thousandths of one."""
    return f"{hours:.3f}" if hours >= 0.1 or not hours else f"{hours:.2g}"
