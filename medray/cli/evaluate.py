"""The command that evaluates a release on labelled rows."""

from typing import Annotated, Literal

import typer
from pydantic_core import to_jsonable_python

from medray.cli.arguments import Configs, StudyStorage, load
from medray.cli.output import Json, Output, Quiet
from medray.errors import GateError, UsageError

app = typer.Typer()


@app.command()
def evaluate(
    model: Annotated[
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
        Literal["test", "validation", "all"],
        typer.Option(
            help="the rows to evaluate on; `all` is for data that did not train the model"
        ),
    ] = "test",
    at_least: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=VALUE",
            help="gate: exit with status 3 if the metric is lower; repeat it for several",
        ),
    ] = None,
    not_worse_than: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RELEASE",
            help="gate: exit with status 3 if this release is better on the same rows; repeat it "
            "for several",
        ),
    ] = None,
    storage_path: StudyStorage = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate a release, or a base model before training, on the data of a study's YAML. Each
    reading of test labels is logged."""
    from medray.evaluation import analysis
    from medray.models.device import reserved_device
    from medray.registry.evaluate import evaluate as evaluate_release
    from medray.registry.evaluate import evaluate_base_model
    from medray.storage import files

    out = Output.start(as_json, quiet)
    minimums = dict(_minimum(option) for option in at_least or ())
    study = load(arguments)
    log_dir = files.absolute(study.storage_path) / "test_log"
    device = reserved_device(study.resources.gpus_per_worker)
    base = next((base for base in study.base_models if base.source == model), None)
    if base and not_worse_than:
        raise UsageError(
            f"--not-worse-than applies to a release, and {model} is a base model; drop it"
        )
    if base:
        evaluation = evaluate_base_model(study.trial(base), split, log_dir=log_dir, device=device)
    else:
        evaluation = evaluate_release(
            model,
            study.data,
            split,
            storage_path=storage_path or study.storage_path,
            log_dir=log_dir,
            against=not_worse_than or (),
            device=device,
        )
    refusals = evaluation.refusals(minimums)
    values = evaluation.metrics.values
    spread = (
        f" (95 % interval {evaluation.interval.low:.3f} to {evaluation.interval.high:.3f})"
        if evaluation.interval
        else ""
    )
    sentences = (
        analysis.split_sentences(evaluation.analysis, evaluation.calibration)
        if evaluation.analysis
        else ()
    )
    out.result(
        {**to_jsonable_python(evaluation, inf_nan_mode="null"), "refusals": refusals},
        f"{evaluation.of} on {evaluation.metrics.num_rows} {split} rows: {evaluation.metric} "
        f"{values[evaluation.metric]:.4f}{spread}",
        *(f"  {name} {value:.4f}" for name, value in values.items()),
        *sentences,
    )
    if refusals:
        raise GateError("\n".join(refusals))


def _minimum(option: str) -> tuple[str, float]:
    metric, _, value = option.partition("=")
    try:
        return metric, float(value)
    except ValueError:
        raise UsageError(
            f"--at-least {option}: is not of the form METRIC=VALUE; write for example "
            "--at-least f1_macro=0.9"
        ) from None
