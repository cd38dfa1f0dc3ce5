"""Commands for jobs that a cluster runs: `medray jobs list`, `logs` and `stop`."""

import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from medray.cli.output import Json, Output, Quiet

if TYPE_CHECKING:
    from medray.runtime.jobs import Jobs

app = typer.Typer(no_args_is_help=True, help="List, follow and stop the jobs of a cluster.")
Address = Annotated[
    str | None,
    typer.Option(
        help=(
            "the cluster's dashboard, http://HOST:8265; by default RAY_API_SERVER_ADDRESS or "
            "RAY_ADDRESS"
        )
    ),
]
Job = Annotated[str, typer.Argument(help="the job's name, as `medray jobs list` prints it")]


@app.command("list")
def list_(address: Address = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """List the cluster's jobs, the newest first."""
    from medray.runtime import jobs

    out = Output.start(as_json, quiet)
    with jobs.connect(address) as client:
        summaries = jobs.summaries(client)
    out.result(summaries, *(job.render() for job in summaries))


@app.command()
def logs(
    job: Job,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="print the log until the job ends, and exit with its status"),
    ] = False,
    address: Address = None,
) -> None:
    """Print the log of a job."""
    from medray.runtime import jobs

    with jobs.connect(address) as client:
        if not follow:
            print(client.get_job_logs(job), flush=True)
        status = follow_job(client, job) if follow else 0
    raise typer.Exit(status)


@app.command()
def stop(job: Job, address: Address = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Stop a job and wait until it has ended."""
    from medray.runtime import jobs

    out = Output.start(as_json, quiet)
    with jobs.connect(address) as client:
        was_running = jobs.stop(client, job)
    out.result(
        {"job": job, "was_running": was_running},
        f"{job} {'is stopped' if was_running else 'had already ended'}",
    )


def follow_job(client: "Jobs", job: str) -> int:
    """Print a job's log until the job ends, and return its exit status."""
    from medray.runtime import jobs

    try:
        return jobs.follow(client, job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(
            f"\nmedray: interrupted; {job} continues: `medray jobs logs {job} --follow` prints its "
            f"log, `medray jobs stop {job}` stops it",
            file=sys.stderr,
        )
        return 128 + signal.SIGINT
