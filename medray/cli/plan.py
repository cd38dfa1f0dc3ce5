"""The command that estimates a study before it runs."""

import math
import os
from typing import TYPE_CHECKING, Annotated

import typer

from medray.cli.arguments import Configs, load
from medray.cli.output import Json, Output, Quiet
from medray.errors import GateError, UsageError, suggest

if TYPE_CHECKING:
    from medray.study.estimate import StudyEstimate

app = typer.Typer()


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
    from medray.study.estimate import Speed, estimate, hours_text
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
        f"in total at most {hours_text(outlook.hours)} hours and {hours_text(outlook.gpu_hours)} "
        "GPU-hours; ASHA and patience end trials earlier",
    )
    if refusals:
        raise GateError(f"study {study.name}: {'; '.join(refusals)}")


def _refusals(
    outlook: "StudyEstimate", max_hours: float | None, max_gpu_hours: float | None
) -> list[str]:
    """Return a sentence for each limit that the study may exceed."""
    from medray.study.estimate import hours_text

    limits = (
        (outlook.hours, max_hours, "hours", "--max-hours"),
        (outlook.gpu_hours, max_gpu_hours, "GPU-hours", "--max-gpu-hours"),
    )
    refusals = [
        f"{hours_text(amount)} {unit} are more than {option} {limit:g}"
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

    header, *rows = outlook.rows()
    console = Console(file=out.stdout)
    if not console.is_terminal:
        return [" | ".join(row) for row in (header, *rows)]
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    with console.capture() as capture:
        console.print(table)
    return [capture.get().rstrip("\n")]
