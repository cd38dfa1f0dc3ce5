"""The command that runs a study on a cluster."""

from typing import Annotated

import typer

from medray.cli.arguments import Configs, load
from medray.cli.jobs import Address, follow_job
from medray.cli.output import Json, Output, Quiet
from medray.errors import UsageError

app = typer.Typer()


@app.command()
def submit(
    arguments: Configs,
    address: Address = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="print the log until the job ends, and exit with its status"),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="continue, or extend, this study's latest run on the cluster"
        ),
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="with --resume: run failed trials once more")
    ] = False,
    upload_data: Annotated[
        bool,
        typer.Option(
            "--upload-data",
            help="send the study's data files; the head keeps them while the job runs",
        ),
    ] = False,
    max_upload_mb: Annotated[
        float, typer.Option(help="the most that --upload-data sends of each file or folder")
    ] = 100.0,
    hub_token_file: Annotated[
        str | None,
        typer.Option(
            help="a file on the cluster's nodes with the Hub's token; no token is sent itself"
        ),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(help="the head's Python interpreter; by default the one that runs its Ray"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a study on a cluster as a job, from any machine that reaches the cluster's dashboard."""
    out = Output.start(as_json, quiet)
    if retry_failed and not resume:
        raise UsageError("--retry-failed applies to an earlier run; add --resume")
    study = load(arguments)
    from medray.runtime import jobs
    from medray.runtime.parcel import Parcel

    parcel = Parcel(upload_data, int(max_upload_mb * 1e6), hub_token_file)
    flags = (("--resume", resume), ("--retry-failed", retry_failed))
    options = tuple(name for name, is_set in flags if is_set)
    with jobs.connect(address) as client:
        python = python or jobs.head_python(jobs.nodes_of(client)) or "python"
        job = jobs.submit(client, study, parcel, python=python, options=options)
        out.result({"job": job}, f"job: {job}")
        status = follow_job(client, job) if follow else None
    if status is not None:
        raise typer.Exit(status)
    print(f"`medray jobs logs {job} --follow` prints its log, `medray jobs stop {job}` stops it")
