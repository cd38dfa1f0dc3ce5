"""Commands that train and choose."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from medray import config as configs
from medray.cli.arguments import SHOWN, Configs, load

if TYPE_CHECKING:
    from medray.training.loop import EpochReport
    from medray.tuning.study import Outcome

app = typer.Typer()
console = Console()


@app.command()
def train(
    arguments: Configs,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the resolved configuration and what is wrong with it, train nothing")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the latest run of this study")] = False,
) -> None:
    """Train each base model of a study once and judge it on the test split."""
    study = load(arguments)
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


def _print_report(source: str, report: "EpochReport") -> None:
    shown = "  ".join(f"{name} {value:.4f}" for name, value in report.metrics.items() if name in SHOWN)
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
