"""The command that writes a study's report, and what a study does of it at its end."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medray.config.load import tracking_uri
from medray.config.study import StudyConfig
from medray.errors.redaction import redact

if TYPE_CHECKING:
    from medray.registry.release import Release
    from medray.study.run import Run


app = typer.Typer()
log = logging.getLogger(__name__)


@app.command()
def report(
    folder: Annotated[
        str, typer.Argument(help="a study's folder (its latest run counts), or that of one run")
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="the page to write; report.html in the run's folder where not given"),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            help="a folder for every chart as SVG, and as PNG where the extra `plots` is installed"
        ),
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(help="log the study to the MLflow of this URI, unless it is there")
    ] = None,
) -> None:
    """Write the report of a study that has ended: one page that needs nothing else."""
    from medray.reports import html_report
    from medray.reports.study_data import gather
    from medray.study.run import latest

    run = latest(Path(folder))
    made = html_report.compose(gather(run))
    print(html_report.write(made, output or run.folder / html_report.REPORT))
    if plots is not None:
        for path in html_report.write_images(made, plots):
            print(path)
        if reason := html_report.no_png():
            log.warning("%s", reason)
    if mlflow is not None:
        print(f"MLflow run {_log(run, mlflow, None)}")


def at_the_end(run: "Run") -> Path | None:
    """The report of a study that has just ended, or was stopped before anything could be ranked:
    None."""
    from medray.reports import html_report
    from medray.reports.study_data import gather
    from medray.study.run import LEADERBOARD

    if not (run.folder / LEADERBOARD).exists():
        return None
    return html_report.write(html_report.compose(gather(run)), run.folder / html_report.REPORT)


def to_mlflow(study: StudyConfig, run: "Run", release: "Release | None") -> None:
    from medray.reports.mlflow import MISSING, is_installed

    uri = tracking_uri(study)
    if uri is None:
        return
    if not study.mlflow and not is_installed():
        log.warning("MLFLOW_TRACKING_URI is set, but %s", MISSING)
        return
    print(f"MLflow run: {_log(run, uri, release)} at {redact(uri)}")


def _log(run: "Run", uri: str, release: "Release | None") -> str:
    from medray.records import SETTINGS
    from medray.reports import html_report
    from medray.reports.mlflow import PublishedRelease
    from medray.reports.mlflow import log as log_study
    from medray.reports.study_data import gather
    from medray.storage import files as storage
    from medray.study.run import LEADERBOARD

    data = gather(run)
    published = None
    if release and data.config.publish:
        record = release.record
        published = PublishedRelease(
            record.name,
            record.version,
            data.config.publish.alias,
            record.content_id,
            release.folder(),
        )
    files = [
        path
        for name in (html_report.REPORT, LEADERBOARD, SETTINGS)
        if (path := run.folder / name).exists()
    ]
    mark = f"{run.folder.name}-{storage.hash_file(run.folder / LEADERBOARD)[:12]}"
    return log_study(data, uri, mark=mark, files=files, release=published)
