"""The `medray` command: parse, call, print. No logic of its own; a failure exits non-zero."""

import json
import logging
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from medray import config as configs
from medray import plugins
from medray.errors import MedrayError

if TYPE_CHECKING:
    from medray.training.loop import EpochReport
    from medray.tuning.study import Outcome

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Fine-tune, select and serve biomedical text models."
)
data_app = typer.Typer(no_args_is_help=True, help="Look at a data set, or change its format.")
app.add_typer(data_app, name="data")
console = Console()
_SHOWN = ("f1_binary", "f1_macro", "accuracy", "accuracy_subset", "log_loss")

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


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("bitsandbytes", "filelock", "fsspec", "httpx", "transformers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        app()
    except MedrayError as err:
        print(f"medray: {err}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("medray: interrupted; `--resume` goes on from the last stored state", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
