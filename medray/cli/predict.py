"""The command that predicts a whole dataset with a release."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medray.cli.arguments import Reference, Storage
from medray.cli.output import Json, Output, Quiet

if TYPE_CHECKING:
    from medray.batch.driver import BatchPlan
    from medray.batch.output import Summary
    from medray.data.meter import Heartbeat

app = typer.Typer()
PrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="number format of the computation")
]


@app.command()
def predict(
    reference: Reference,
    input: Annotated[
        str,
        typer.Option(
            help=(
                "a file or folder of parquet, csv, tsv, psv, jsonl or txt, or its s3:// URI; "
                "tables are read as medray init reads them"
            )
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            help=(
                "a new folder or s3:// prefix; its ending .jsonl or .csv chooses that format, by "
                "default it is parquet"
            )
        ),
    ],
    text_column: Annotated[
        list[str] | None, typer.Option(help="column of the text; repeat it to join several")
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(help="column of the row's id; without one, ids are file and position"),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(help="encoding of tables and texts, such as cp1252; detected by default"),
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="delimiter of tables: , ; | or tab; detected by default")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue an earlier run into this output")
    ] = False,
    max_bad: Annotated[
        float, typer.Option(help="share of rows that may be set aside; above it the run stops")
    ] = 0.1,
    max_characters: Annotated[
        int, typer.Option(min=1, help="longer texts are set aside")
    ] = 1_000_000,
    precision: PrecisionOption = "auto",
    token_budget: Annotated[
        int, typer.Option(min=1, help="tokens per batch, padding included")
    ] = 4096,
    actors: Annotated[
        int | None,
        typer.Option(min=1, help="most processes that hold the model; by default by CPUs or GPUs"),
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option(min=1, help="CPUs and threads per process; by default 1 on up to 8 CPUs"),
    ] = None,
    storage_path: Storage = "runs",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a release over a whole dataset: one calibrated prediction per id, as over HTTP. Rows that
    cannot be read are set aside."""
    out = Output.start(as_json, quiet)
    print("starting", flush=True)
    from medray.batch import driver
    from medray.batch.shards import TextColumns
    from medray.data.meter import Heartbeat

    plan = driver.prepare(
        driver.BatchRequest(
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
    )
    text = " and ".join(plan.columns.text) or "each file"
    ids = plan.columns.id or "in each file, or file and position"
    encoding_note = (
        f"    encoding: {plan.source.encoding}" if plan.source.encoding != "utf-8" else ""
    )
    print(f"text: {text}    id: {ids}{encoding_note}", flush=True)
    with Heartbeat(lambda line: print(line, flush=True)) as heart:
        summary = _predict(plan, heart)
    out.result(summary.model_dump(mode="json"), *_lines(summary, output))


def _lines(summary: "Summary", output: str) -> list[str]:
    ids = f", {summary.made_ids} ids made of file and position" if summary.made_ids else ""
    return [
        f"{summary.rows} rows: {summary.answered} predicted, {summary.set_aside} set aside{ids}",
        *(f"  {count} {kind}" for kind, count in summary.reasons.items()),
        f"{output}: {summary.parts} parts; _summary.json records the run"
        + ("; _set_aside/ lists the rows that were set aside" if summary.set_aside else ""),
    ]


def _predict(plan: "BatchPlan", heart: "Heartbeat") -> "Summary":
    """Predict few rows in this process, unless a cluster or actors are named; many on Ray."""
    from medray.batch import driver, single
    from medray.runtime.cluster import exiting_on_sigterm, is_joining, start_cluster

    if plan.request.actors is None and not is_joining():
        heart.stage(driver.render_reading(plan.source))
        if count := single.count(plan):
            with exiting_on_sigterm():
                return single.predict(plan, count, heart)
    heart.stage("starting Ray")
    from medray.batch import pool

    with start_cluster() as cluster:
        return pool.predict(plan, cluster, heart)
