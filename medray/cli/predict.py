"""The command that answers a whole library of texts with a release."""

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from medray.cli.arguments import Reference, Storage

if TYPE_CHECKING:
    from medray.batch.driver import BatchPlan
    from medray.batch.output import Summary
    from medray.data.meter import Heartbeat

app = typer.Typer()
log = logging.getLogger(__name__)


@app.command()
def predict(
    reference: Reference,
    input: Annotated[
        str,
        typer.Option(
            help=(
                "a file or folder of parquet, csv, tsv, psv, jsonl or txt, or its s3:// URI; "
                "delimited as medray init reads it"
            )
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            help=(
                "a new folder or s3:// prefix; .jsonl or .csv at its end chooses that form, else "
                "it is parquet"
            )
        ),
    ],
    text_column: Annotated[
        list[str] | None, typer.Option(help="column of the text; give it again to join several")
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            help="column of the row's id; made from file and position where there is none"
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(help="of delimited files and texts, such as cp1252; found where not given"),
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="of delimited files: , ; | or tab; found where not given")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on where an earlier run into this output ended")
    ] = False,
    max_bad: Annotated[
        float, typer.Option(help="share of rows that may be set aside; with more the run stops")
    ] = 0.1,
    max_characters: Annotated[
        int, typer.Option(min=1, help="longer texts are set aside")
    ] = 1_000_000,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16")] = "auto",
    token_budget: Annotated[
        int, typer.Option(min=1, help="tokens of a batch, padding included")
    ] = 4096,
    actors: Annotated[
        int | None,
        typer.Option(
            min=1, help="processes that hold the model, at most; by CPUs or GPUs where not given"
        ),
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option(min=1, help="CPUs and threads of each; 1 up to 8 CPUs where not given"),
    ] = None,
    storage_path: Storage = "runs",
) -> None:
    """Answer every row of a library: an answer an id, calibrated as over HTTP; rows that cannot be
    read are set aside."""
    print("starting", flush=True)
    from medray.batch import driver
    from medray.batch.shards import TextColumns
    from medray.data.meter import Heartbeat

    asked = driver.BatchRequest(
        reference=reference,
        input=input,
        output=output,
        storage_path=storage_path,
        columns=TextColumns(tuple(text_column or ()), id_column),
        resume=resume,
        max_bad=max_bad,
        most_characters=max_characters,
        token_budget=token_budget,
        precision=precision,
        actors=actors,
        threads=cpus,
        encoding=encoding,
        delimiter="\t" if delimiter == "tab" else delimiter,
    )
    plan = driver.prepare(asked)
    named = " and ".join(plan.columns.text) or "each file"
    written = f"    encoding: {plan.source.encoding}" if plan.source.encoding != "utf-8" else ""
    print(
        f"text: {named}    id: "
        f"{plan.columns.id or 'its own in each file, or made from file and position'}{written}",
        flush=True,
    )
    with Heartbeat(lambda line: print(line, flush=True)) as heart:
        found = _answered(plan, heart)
    made = f", {found.made_ids} ids made from file and position" if found.made_ids else ""
    print(f"{found.rows} rows: {found.answered} answered, {found.set_aside} set aside{made}")
    for kind, count in found.reasons.items():
        print(f"  {count} {kind}")
    print(
        f"{plan.request.output}: {found.parts} parts; _summary.json says what made them"
        + ("; _set_aside/ why" if found.set_aside else "")
    )


def _answered(plan: "BatchPlan", heart: "Heartbeat") -> "Summary":
    """A few rows in this process, where no cluster is named and no actors are asked for; others by
    Ray."""
    from medray.batch import driver, single
    from medray.runtime.cluster import exiting_on_sigterm, is_joining, start_cluster

    if plan.request.actors is None and not is_joining():
        heart.stage(driver.render_reading(plan.source))
        if counted := single.count(plan):
            with exiting_on_sigterm():
                return single.predict(plan, counted, heart)
    heart.stage("starting Ray")
    from medray.batch import pool

    with start_cluster() as cluster:
        return pool.predict(plan, cluster, heart)
