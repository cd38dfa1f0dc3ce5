"""The `medray` command: parse, call, print. No logic of its own; a failure exits non-zero."""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from medray import config as configs
from medray import plugins
from medray.errors import MedrayError

if TYPE_CHECKING:
    from medray.records import TestRecord
    from medray.training.loop import EpochReport
    from medray.tuning.study import Outcome

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Fine-tune, select and serve biomedical text models."
)
data_app = typer.Typer(no_args_is_help=True, help="Look at a data set, or change its format.")
app.add_typer(data_app, name="data")
console = Console()
_INTERRUPTED = 130  # typer's exit status for Ctrl-C
_SHOWN = ("f1_binary", "f1_macro", "accuracy", "accuracy_subset", "log_loss")

Storage = Annotated[str, typer.Option(help="the study's storage_path, which holds its releases")]
Reference = Annotated[str, typer.Argument(help="name@version, name@alias, or a name for its latest version")]
Configs = Annotated[
    list[str], typer.Argument(help="YAML files, later ones over earlier ones, then key=value settings such as train.epochs=3")
]


def _load(arguments: list[str]) -> configs.StudyConfig:
    files = [argument for argument in arguments if "=" not in argument]
    return configs.load(files, [argument for argument in arguments if "=" in argument])


@app.command()
def train(
    arguments: Configs,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the resolved configuration and what is wrong with it, train nothing")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the latest run of this study")] = False,
) -> None:
    """Train each base model of a study once and judge it on the test split."""
    study = _load(arguments)
    if dry_run:
        print(configs.dump(study))
    from medray.tuning import preflight
    from medray.tuning import study as studies

    preflight.check(study)
    if not dry_run:
        _print_outcomes(studies.run(study, resume=resume, on_audit=print, on_report=_print_report))


@app.command()
def publish(
    checkpoint: Annotated[str, typer.Argument(help="a checkpoint's folder, as `medray train` prints it")],
    name: Annotated[str, typer.Argument(help="the release's name")],
    alias: Annotated[str | None, typer.Option(help="point this alias at the new version")] = None,
    notes: Annotated[str, typer.Option(help="a sentence for the model card")] = "",
    storage_path: Storage = "runs",
) -> None:
    """Publish a checkpoint as the next version of a release."""
    from medray.registry import Registry

    registry = Registry(storage_path)
    release = registry.publish(checkpoint, name, test=_test_record(Path(checkpoint)), notes=notes)
    if alias:
        registry.point(name, alias, release.record.version)
    print(f"{release.reference}" + (f" is {name}@{alias}" if alias else ""))


@app.command()
def releases(storage_path: Storage = "runs") -> None:
    """List releases, their versions, aliases and figures."""
    from medray.registry import Registry

    registry = Registry(storage_path)
    for name in registry.names():
        aliases = registry.aliases(name)
        for version in registry.versions(name):
            record = registry.resolve(f"{name}@{version}").record
            called = "".join(f" @{alias}" for alias, at in sorted(aliases.items()) if at == version)
            figures = (
                "  ".join(f"test {metric} {value:.4f}" for metric, value in record.test.metrics.items() if metric in _SHOWN)
                if record.test
                else ""
            )
            print(f"{name}@{version}{called}  {record.created}  {record.content_id[:12]}  {figures}".rstrip())


@app.command()
def verify(reference: Reference, storage_path: Storage = "runs") -> None:
    """Recompute every hash of a release, and have it answer its probe."""
    from medray.registry import Registry

    release = Registry(storage_path).resolve(reference)
    release.load()
    print(f"{release.reference}: every file is what its manifest says, and the model answers its probe")


@app.command()
def export(
    reference: Reference,
    folder: Annotated[str, typer.Argument(help="a new folder")],
    merged: Annotated[bool, typer.Option("--merged", help="the whole model instead of the adapter")] = False,
    storage_path: Storage = "runs",
) -> None:
    """Write a release as a plain Hub folder with a model card."""
    from medray.registry import Registry

    Registry(storage_path).resolve(reference).export(Path(folder), merged=merged)
    print(f"{reference} is in {folder}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a study's YAML, for editors."""
    print(json.dumps(configs.StudyConfig.model_json_schema(), indent=1))


@data_app.command()
def audit(
    arguments: Configs,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of text")] = False,
) -> None:
    """Tell what is in a study's data: balance, lengths, duplicates, conflicts, the ceiling they set."""
    study = _load(arguments)
    from medray.tuning import preflight
    from medray.tuning import study as studies

    preflight.check(study)
    for found in studies.audit(study):
        print(json.dumps(found.as_dict(), indent=1, ensure_ascii=False) if as_json else found.render())


@data_app.command()
def convert(
    source: Annotated[str, typer.Argument(help="format and options, as in YAML: 'name=raw_abstracts,path=samples/abstracts'")],
    target: Annotated[str, typer.Argument(help="the same for what is written: 'name=delimited,path=combined.psv'")],
) -> None:
    """Read one format, write another; an existing target is left alone and refused."""
    read_options, write_options = configs.plugin_options("data.formats", source), configs.plugin_options("data.formats", target)
    examples = list(plugins.find("data.formats", read_options.name).read(read_options))
    plugins.find("data.formats", write_options.name).write(examples, write_options)
    print(f"{len(examples)} examples from {source} to {target}")


def _test_record(checkpoint: Path) -> "TestRecord | None":
    """The test figures that the trial left beside its checkpoints, if they are this checkpoint's."""
    from medray.records import TestRecord

    path = checkpoint.resolve().parent.parent / "test_metrics.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if found.get("checkpoint") != checkpoint.resolve().name:
        return None
    return TestRecord(metrics=found["values"], num_rows=found["num_rows"], num_openings=found["num_openings"])


def _print_report(source: str, report: "EpochReport") -> None:
    shown = "  ".join(f"{name} {value:.4f}" for name, value in report.metrics.items() if name in _SHOWN)
    print(
        f"{source}  epoch {report.epoch}  step {report.step}  train loss {report.train_loss:.4f}  validation {shown}"
        f"  {report.tokens_per_s:,.0f} tokens/s{'  best so far' if report.is_best else ''}",
        flush=True,
    )


def _print_outcomes(outcomes: "list[Outcome]") -> None:
    for outcome in outcomes:
        best = outcome.trial.best
        table = Table(
            title=f"{outcome.source}: best checkpoint (epoch {best['epoch']}, step {best['step']}, {outcome.trial.precision.used})",
            title_justify="left",
        )
        for column in ("metric", "validation", f"test ({outcome.test.num_rows} rows)"):
            table.add_column(column, justify="left" if column == "metric" else "right")
        for name in outcome.test.values:
            table.add_row(name, f"{best['metrics'][name]:.4f}", f"{outcome.test.values[name]:.4f}")
        console.print(table)
        print(f"checkpoint: {outcome.trial.checkpoint}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("bitsandbytes", "filelock", "fsspec", "httpx", "transformers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        app(args=list(sys.argv[1:] if arguments is None else arguments))
    except MedrayError as err:
        print(f"medray: {err}", file=sys.stderr)
        return 1
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            print("medray: interrupted; `train --resume` goes on from the last stored state", file=sys.stderr)
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
