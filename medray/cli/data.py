"""Commands that read a data set: its first study, its audit, another format."""

from pathlib import Path
from typing import Annotated

import typer

from medray.cli.arguments import Configs, load
from medray.cli.output import Json, Output, Quiet
from medray.config.load import plugin_options
from medray.data.formats.base import protocol as formats
from medray.errors import ConfigError
from medray.storage import files

app = typer.Typer(no_args_is_help=True, help="Audit a data set, or change its format.")
first = typer.Typer()  # the command that a newcomer starts with stands at the top


@first.command()
def init(
    data: Annotated[
        str,
        typer.Argument(
            help=(
                "a file (csv, tsv, psv, jsonl, parquet, json of PubMedQA), or a folder with a "
                "folder of .txt files per class"
            )
        ),
    ],
    output: Annotated[
        str, typer.Option(help="the YAML to write; an existing file is never replaced")
    ] = "study.yaml",
    text_column: Annotated[
        list[str] | None, typer.Option(help="column of the text; repeat it to join several")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="column of the label, or of the labels")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="column of the row's id")] = None,
    positive: Annotated[
        str | None, typer.Option(help="of two labels, the one that precision and F1 describe")
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(help="the file's text encoding, such as cp1252; detected by default"),
    ] = None,
    drop_unlabelled: Annotated[
        bool,
        typer.Option("--drop-unlabelled", help="leave out rows without a label, and count them"),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Read a data set and write a first study of it."""
    from medray.data import columns, first_study, guess

    out = Output.start(as_json, quiet)
    sketch = guess.sketch(
        data,
        columns.Hints(tuple(text_column or ()), label_column, id_column, encoding, drop_unlabelled),
    )
    study = first_study.first_study(sketch, output, positive)
    if not files.create(Path(output), study.encode("utf-8")):
        raise ConfigError(f"{output}: exists already; remove it, or choose another --output")
    median, most, longest = sketch.num_tokens
    document = {
        "study": output,
        "format": sketch.options.model_dump(mode="json", exclude_unset=True),
        "num_rows": sketch.num_rows,
        "labels": dict(sketch.labels),
        "num_tokens": {"median": median, "percentile_95": most, "longest": longest},
        "notes": sketch.notes,
    }
    out.result(
        document, sketch.render(), f"{output} is written; next: medray study {output} --dry-run"
    )


@app.command()
def audit(arguments: Configs, as_json: Json = False, quiet: Quiet = False) -> None:
    """Report a study's data: balance, lengths, duplicates, conflicting labels, and the best figures
    that they allow."""
    out = Output.start(as_json, quiet)
    study = load(arguments)
    from medray.study import materials, preflight

    preflight.check(study)
    audits = list(materials.audit(study))
    out.result([audit.as_dict() for audit in audits], *(audit.render() for audit in audits))


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="format and options, as in YAML: 'name=raw_abstracts,path=samples/abstracts'"
        ),
    ],
    target: Annotated[
        str, typer.Argument(help="the same for the output: 'name=delimited,path=combined.psv'")
    ],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Read one format and write another; an existing target is kept and is an error."""
    out = Output.start(as_json, quiet)
    read_options = plugin_options("data.formats", source)
    write_options = plugin_options("data.formats", target)
    rows = list(formats.read(read_options))
    examples = [example for example in rows if not formats.is_left_out(example, read_options)]
    formats.write(examples, write_options)
    num_dropped = len(rows) - len(examples)
    out.result(
        {"num_examples": len(examples), "num_dropped": num_dropped, "target": target},
        f"{len(examples)} examples from {source} to {target}"
        + (f", {num_dropped} without a label left out" if num_dropped else ""),
    )
