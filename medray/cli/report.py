"""The command that writes a study's report, and the report that a study writes at its end."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medray.cli.arguments import StudyFolder
from medray.cli.output import Json, Output, Quiet
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
    folder: StudyFolder,
    output: Annotated[
        Path | None,
        typer.Option(help="the page to write; by default report.html in the run's folder"),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(help="a folder for every chart as SVG, and with the extra `plots` as PNG"),
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(help="log the study to the MLflow of this URI, once")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the report of a study that has ended, as one self-contained page."""
    from medray.reports import html_report
    from medray.reports.study_data import gather
    from medray.study.run import latest

    out = Output.start(as_json, quiet)
    run = latest(Path(folder))
    composition = html_report.compose(gather(run))
    path = html_report.write(composition, output or run.folder / html_report.REPORT)
    images = html_report.write_images(composition, plots) if plots is not None else []
    if plots is not None and (reason := html_report.no_png()):
        log.warning("%s", reason)
    mlflow_run = _log(run, mlflow, None) if mlflow is not None else None
    out.result(
        {"report": str(path), "plots": [str(image) for image in images], "mlflow_run": mlflow_run},
        str(path),
        *(str(image) for image in images),
        *([f"MLflow run {mlflow_run}"] if mlflow_run else []),
    )


def to_mlflow(study: StudyConfig, run: "Run", release: "Release | None") -> None:
    """Log a study to MLflow where its settings or the environment name one."""
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
    winner = None
    if release and data.config.publish:
        record = release.record
        winner = PublishedRelease(
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
    return log_study(data, uri, mark=mark, files=files, release=winner)
