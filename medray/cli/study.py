"""Commands that search for the best model, and read and tidy what a search stored."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from medray.cli import report as reports
from medray.cli.arguments import Configs, StudyFolder, load
from medray.cli.output import Json, Output, Quiet
from medray.config.load import dump_settings, public_settings
from medray.config.study import StudyConfig
from medray.errors import GateError, UsageError

if TYPE_CHECKING:
    from medray.study.study import Outcome


app = typer.Typer()


@app.command()
def study(
    arguments: Configs,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="print the resolved configuration, read the data, list mistakes, train nothing",
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue, or extend, the latest run of this study")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="with --resume: run failed trials once more")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search each base model's settings, rank the trials, evaluate the best on test rows, and
    publish the winner."""
    out = Output.start(as_json, quiet)
    config = load(arguments)
    if retry_failed and not resume:
        raise UsageError("--retry-failed applies to an earlier run; add --resume")
    if dry_run:
        out.result(public_settings(config), dump_settings(config).rstrip("\n"))
    else:
        print("checking the study", flush=True)
    from medray.study import preflight

    preflight.check(config, resume=resume, with_data=dry_run)
    if dry_run:
        if not quiet:  # stdout holds the configuration alone
            print("no mistakes; without --dry-run, this study trains", file=sys.stderr)
        return
    from medray.python.studies import search
    from medray.reports.html_report import REPORT
    from medray.study.run import Run

    run = Run.resume(config) if resume else Run.start(config)
    print(f"run: {run.folder}", flush=True)
    outcome = search(config, run, retry_failed)
    page = run.folder / REPORT
    lines = [f"report: {page}", *_release_lines(config, outcome)]
    out.result(_document(outcome, page), *_lines(outcome, out), *lines)
    reports.to_mlflow(config, run, outcome.release)
    if outcome.refusal:
        raise GateError(outcome.refusal)


def _document(outcome: "Outcome", page: Path) -> dict[str, object]:
    from medray.evaluation import leaderboard_files

    return {
        "run": str(outcome.run.folder),
        "checkpoint": outcome.board.best.checkpoint,
        "release": outcome.release.reference if outcome.release else None,
        "refusal": outcome.refusal,
        "report": str(page),
        "leaderboard": json.loads(leaderboard_files.to_json(outcome.board)),
    }


def _lines(outcome: "Outcome", out: Output) -> list[str]:
    from medray.evaluation import leaderboard_files

    board = outcome.board
    lines = ["", *leaderboard_files.sentences(board, outcome.analysis)]
    console = Console(file=out.stdout)
    if console.is_terminal:
        with console.capture() as capture:
            console.print(leaderboard_files.rich_table(board))
        lines.append(capture.get().rstrip("\n"))
    else:
        table = leaderboard_files.to_markdown(board, outcome.analysis).split("\n\n", 2)[2]
        lines.append(table.rstrip("\n"))
    lines += [
        f"leaderboard: {outcome.run.folder / 'leaderboard.md'}",
        f"checkpoint: {board.best.checkpoint}",
    ]
    return lines


def _release_lines(config: StudyConfig, outcome: "Outcome") -> list[str]:
    """Return where the winner is published, how to serve it, and which version its alias left."""
    if not outcome.release or not config.publish:
        return []
    release, alias = outcome.release, config.publish.alias
    name, version = release.record.name, release.record.version
    lines = [
        f"published: {release.reference} in {release.registry.store.uri}",
        f"next: medray serve {release.reference}",
    ]
    versions = [move.version for move in release.registry.history(name, alias)]
    if versions[-1:] == [version] and len(versions) > 1:
        lines.append(
            f"{name}@{alias} moved from version {versions[-2]} to {version}; medray rollback "
            f"{name} {alias} --no-wait moves it back"
        )
    return lines


@app.command()
def leaderboard(
    folder: StudyFolder,
    format: Annotated[Literal["md", "csv"], typer.Option(help="Markdown or CSV")] = "md",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print the leaderboard of a study that has ended."""
    from medray.study.run import latest

    out = Output.start(as_json, quiet)
    run = latest(Path(folder))
    run.leaderboard()  # raises where the study has not ended
    text = (run.folder / f"leaderboard.{format}").read_text(encoding="utf-8")
    document = json.loads((run.folder / "leaderboard.json").read_text(encoding="utf-8"))
    out.result(document, text.rstrip("\n"))


@app.command()
def gc(
    place: Annotated[
        str, typer.Argument(help="a storage path, a study's folder, or the folder of one run")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list what would be removed, and remove nothing")
    ] = False,
    finalists: Annotated[
        bool, typer.Option("--finalists", help="also remove finalists that did not win")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove checkpoints and states of losing trials from studies that have ended. Files that a
    release refers to stay."""
    from medray.storage import files
    from medray.study.gc import find, remove

    out = Output.start(as_json, quiet)
    sweep = find(files.absolute(place), finalists=finalists)
    if not dry_run:
        remove(sweep.surplus)
    folders = [
        {"trial": item.trial, "folder": str(item.folder), "num_bytes": item.num_bytes}
        for item in sweep.surplus
    ]
    out.result(
        {
            "dry_run": dry_run,
            "num_bytes": sweep.num_bytes,
            "folders": folders,
            "left_alone": sweep.skips,
        },
        *(f"left alone: {sentence}" for sentence in sweep.skips),
        *(f"{item.num_bytes / 1e6:9.1f} MB  {item.trial}  {item.folder}" for item in sweep.surplus),
        f"{'would free' if dry_run else 'freed'} {sweep.num_bytes / 1e6:.1f} MB",
    )


@app.command()
def schema() -> None:
    """Print the JSON Schema of a study's YAML, for editors."""
    print(json.dumps(StudyConfig.model_json_schema(), indent=1))
