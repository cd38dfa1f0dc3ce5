"""Commands that search, choose and judge."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from medray.cli import report as reports
from medray.cli.arguments import Configs, load
from medray.config.load import dump_settings
from medray.config.study import StudyConfig

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
            help=(
                "print the resolved configuration, read the data, list what is wrong, train nothing"
            ),
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the latest run of this study, or extend it")
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="with --resume: run the trials that failed once more"),
    ] = False,
) -> None:
    """Search each base model's settings, rank the trials, judge the best on test rows, publish the
    winner."""
    from medray.errors import ConfigError, GateError

    asked = load(arguments)
    if retry_failed and not resume:
        raise ConfigError("--retry-failed is about an earlier run: give --resume with it")
    if dry_run:
        print(dump_settings(asked))
    else:
        print("checking the study", flush=True)
    from medray.study import preflight

    preflight.check(asked, resume=resume, with_data=dry_run)
    if dry_run:
        return
    from medray.reports.tensorboard import TensorBoard
    from medray.runtime.cluster import start_cluster
    from medray.study.progress import Progress, Watchers
    from medray.study.run import Run
    from medray.study.study import metric
    from medray.study.study import run as run_study

    run = Run.resume(asked) if resume else Run.start(asked)
    num_before = sum(
        record.status not in ("running", *(["failed"] if retry_failed else []))
        for record in run.records()
    )
    print(f"run: {run.folder}", flush=True)
    with Progress(metric(asked), Console(), num_before, run.folder / "trials") as progress:
        progress.stage("starting Ray")
        with start_cluster() as cluster:
            if cluster.dashboard:
                print(
                    f"Ray dashboard: {cluster.dashboard}    TensorBoard: tensorboard --logdir "
                    f"{run.folder}",
                    flush=True,
                )
            try:
                with TensorBoard(run.folder, metric(asked)) as board:
                    outcome = run_study(
                        asked,
                        cluster,
                        run,
                        watcher=Watchers(progress, [board]),
                        retry_failed=retry_failed,
                    )
            finally:
                report = reports.at_the_end(run)
    _print(outcome)
    print(f"report: {report}")
    reports.to_mlflow(asked, run, outcome.release)
    if outcome.refusal:
        raise GateError(outcome.refusal)


@app.command()
def leaderboard(
    folder: Annotated[
        str, typer.Argument(help="a study's folder (its latest run counts), or that of one run")
    ],
    form: Annotated[str, typer.Option("--format", help="md, csv or json")] = "md",
) -> None:
    """Print the leaderboard of a study that has ended."""
    from medray.errors import ConfigError, suggest
    from medray.study.run import latest

    run = latest(Path(folder))
    run.leaderboard()  # or says why there is none
    names = {"md": "leaderboard.md", "csv": "leaderboard.csv", "json": "leaderboard.json"}
    if form not in names:
        raise ConfigError(f"--format {form!r} is not known; {suggest(form, names)}")
    print((run.folder / names[form]).read_text(encoding="utf-8"), end="")


@app.command()
def evaluate(
    of: Annotated[
        str,
        typer.Argument(
            help=(
                "a release (name@version, name@alias, name), a checkpoint's folder, or one of the "
                "study's base models, untuned"
            )
        ),
    ],
    arguments: Configs,
    split: Annotated[
        str, typer.Option(help="test, validation, or all rows of data that did not train it")
    ] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of text")] = False,
    storage_path: Annotated[
        str | None,
        typer.Option(help="where releases are kept; the study's storage_path where not given"),
    ] = None,
) -> None:
    """Judge a release, or a base model before training, on the data of a study's YAML. Reading test
    labels is logged."""
    from pydantic import TypeAdapter

    from medray.errors import ConfigError, suggest
    from medray.evaluation import analysis
    from medray.registry.evaluate import ReleaseEvaluation, evaluate_base_model
    from medray.registry.evaluate import evaluate as evaluate_release
    from medray.storage import files

    asked = load(arguments)
    if split not in ("test", "validation", "all"):
        raise ConfigError(
            f"--split {split!r} is not known; {suggest(split, ('test', 'validation', 'all'))}"
        )
    log_dir = files.absolute(asked.storage_path) / "test_log"
    base = next((base for base in asked.base_models if base.source == of), None)
    if base:
        found = evaluate_base_model(asked.trial(base), split, log_dir=log_dir)  # type: ignore[arg-type]
    else:
        found = evaluate_release(
            of,
            asked.data,
            split,  # type: ignore[arg-type]
            storage_path=storage_path or asked.storage_path,
            log_dir=log_dir,
        )
    if as_json:
        print(TypeAdapter(ReleaseEvaluation).dump_json(found, indent=1).decode())
        return
    sure = (
        f" (95 % interval {found.interval.low:.3f} to {found.interval.high:.3f})"
        if found.interval
        else ""
    )
    print(
        f"{found.of} on {found.metrics.num_rows} {split} rows: {found.metric} "
        f"{found.metrics.values[found.metric]:.4f}{sure}"
    )
    for name, value in found.metrics.values.items():
        print(f"  {name} {value:.4f}")
    for sentence in (
        analysis.split_sentences(found.analysis, found.calibration) if found.analysis else ()
    ):
        print(sentence)


@app.command()
def gc(
    place: Annotated[
        str, typer.Argument(help="a storage path, a study's folder or that of one run")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="tell what would go, remove nothing")
    ] = False,
    finalists: Annotated[
        bool, typer.Option("--finalists", help="finalists that did not win as well")
    ] = False,
) -> None:
    """Remove checkpoints and states of losing trials of studies that have ended; never what a
    release refers to."""
    from medray.storage import files
    from medray.study.gc import find, remove

    sweep = find(files.absolute(place), finalists=finalists)
    for sentence in sweep.skips:
        print(f"left alone: {sentence}")
    for item in sweep.surplus:
        print(f"{item.num_bytes / 1e6:9.1f} MB  {item.trial}  {item.folder}")
    if not dry_run:
        remove(sweep.surplus)
    print(f"{'would free' if dry_run else 'freed'} {sweep.num_bytes / 1e6:.1f} MB")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a study's YAML, for editors."""
    print(json.dumps(StudyConfig.model_json_schema(), indent=1))


def _print(outcome: "Outcome") -> None:
    from medray.evaluation import leaderboard_files

    board = outcome.board
    print()
    for sentence in leaderboard_files.sentences(board, outcome.analysis):
        print(sentence)
    if (console := Console()).is_terminal:
        console.print(leaderboard_files.rich_table(board))
    else:
        print(leaderboard_files.to_markdown(board, outcome.analysis).split("\n\n", 2)[2], end="")
    print(f"leaderboard: {outcome.run.folder / 'leaderboard.md'}")
    print(f"checkpoint: {board.best.checkpoint}")
    if outcome.release:
        print(f"published: {outcome.release.reference} in {outcome.release.registry.store.uri}")
