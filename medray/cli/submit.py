"""The command that sends a study to a cluster."""

import logging
from typing import Annotated

import typer

from medray.cli.arguments import load
from medray.errors import ConfigError, MedrayError

app = typer.Typer()


@app.command()
def submit(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="YAML files of a study, then key=value settings, as `medray study` takes them"
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help=(
                "the dashboard, http://HOST:8265; RAY_API_SERVER_ADDRESS or RAY_ADDRESS where not "
                "given"
            )
        ),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="show the job's log until it ends, and exit with its status"),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="go on with the latest run of this study on the cluster, or extend it"
        ),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="with --resume: run the trials that failed once more"),
    ] = False,
    upload_data: Annotated[
        bool,
        typer.Option(
            "--upload-data",
            help="send the study's data files along, for the head to keep while the job runs",
        ),
    ] = False,
    max_upload_mb: Annotated[
        float, typer.Option(help="what --upload-data may send at most of each file or folder")
    ] = 100.0,
    hub_token_file: Annotated[
        str | None,
        typer.Option(
            help=(
                "file on the cluster's nodes that holds the Hub's token; a token itself is never "
                "sent"
            )
        ),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(
            help="interpreter of the head node; the one that runs its Ray where not given"
        ),
    ] = None,
    logs: Annotated[
        str | None,
        typer.Option(
            help="instead of a study: show the log of this job, with --follow until it ends"
        ),
    ] = None,
    stop: Annotated[
        str | None,
        typer.Option(help="instead of a study: end this job; `--resume` goes on with its study"),
    ] = None,
) -> None:
    """Run a study on a cluster as a job, from any machine that reaches the cluster's dashboard."""
    asked = [
        name
        for name, value in (("a study", arguments), ("--logs", logs), ("--stop", stop))
        if value
    ]
    if len(asked) != 1:
        raise ConfigError(
            f"{' and '.join(asked) or 'nothing'} given: give a study, --logs JOB or --stop JOB"
        )
    if retry_failed and not resume:
        raise ConfigError("--retry-failed is about an earlier run: give --resume with it")
    study = load(arguments) if arguments else None
    from medray.runtime import jobs as cluster_jobs

    logging.getLogger("ray.dashboard").setLevel(logging.ERROR)
    jobs = cluster_jobs.jobs_of(address)
    try:
        if stop:
            print(
                f"{stop} {'is stopped' if cluster_jobs.stop(jobs, stop) else 'had ended before'}",
                flush=True,
            )
            return
        job = logs
        if study:
            parcel = cluster_jobs.Parcel(upload_data, int(max_upload_mb * 1e6), hub_token_file)
            flags = (("--resume", resume), ("--retry-failed", retry_failed))
            options = tuple(name for name, is_set in flags if is_set)
            python = python or cluster_jobs.head_python(cluster_jobs.nodes_of(jobs)) or "python"
            job = cluster_jobs.submit(jobs, study, parcel, python=python, options=options)
            print(f"job: {job}", flush=True)
        assert job
        if not follow:
            print(
                jobs.get_job_logs(job)
                if logs
                else f"medray submit --logs {job} --follow shows its log, --stop {job} ends it",
                flush=True,
            )
            return
        status = cluster_jobs.follow(jobs, job, lambda text: print(text, end="", flush=True))
    except MedrayError:
        raise
    except RuntimeError as err:  # Ray's word for a job that it does not know, or refuses
        raise ConfigError(str(err).splitlines()[0]) from None
    except KeyboardInterrupt:
        print(
            f"\n{job} goes on; `medray submit --logs {job} --follow` shows its log, --stop {job} "
            "ends it",
            flush=True,
        )
        raise typer.Exit(1) from None
    raise typer.Exit(status)
