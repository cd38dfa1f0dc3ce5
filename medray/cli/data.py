"""Commands that look at a data set: a first study of it, its audit, another format."""

import json
from pathlib import Path
from typing import Annotated

import typer

from medray.cli.arguments import Configs, load
from medray.config.load import plugin_options
from medray.data.formats.base import protocol as formats
from medray.errors import ConfigError
from medray.storage import files

app = typer.Typer(no_args_is_help=True, help="Look at a data set, or change its format.")
first = typer.Typer()  # the command that a newcomer starts with, at the top


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
        str, typer.Option(help="the YAML to write; one that is there is left alone")
    ] = "study.yaml",
    text_column: Annotated[
        list[str] | None, typer.Option(help="column of the text; give it again to join several")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="column of the label, or of the labels")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="column of the row's id")] = None,
    positive: Annotated[
        str | None, typer.Option(help="of two labels, the one that the figures are about")
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(help="of the file's text, such as cp1252; proposed where not given"),
    ] = None,
    drop_unlabelled: Annotated[
        bool,
        typer.Option("--drop-unlabelled", help="leave out rows without a label, and count them"),
    ] = False,
) -> None:
    """Look at a data set and write a first study of it."""
    from medray.data import columns, first_study, guess

    found = guess.sketch(
        data,
        columns.Hints(tuple(text_column or ()), label_column, id_column, encoding, drop_unlabelled),
    )
    study = first_study.first_study(found, output, positive)
    if not files.create(Path(output), study.encode("utf-8")):
        raise ConfigError(f"{output}: is there already and is left alone; choose another --output")
    print(f"{found.render()}\n{output} is written; next: medray study {output} --dry-run")


@app.command()
def audit(
    arguments: Configs,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of text")] = False,
) -> None:
    """Tell what is in a study's data: balance, lengths, duplicates, conflicts, the ceiling they
    set."""
    study = load(arguments)
    from medray.study import materials, preflight

    preflight.check(study)
    for found in materials.audit(study):
        print(
            json.dumps(found.as_dict(), indent=1, ensure_ascii=False) if as_json else found.render()
        )


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="format and options, as in YAML: 'name=raw_abstracts,path=samples/abstracts'"
        ),
    ],
    target: Annotated[
        str, typer.Argument(help="the same for what is written: 'name=delimited,path=combined.psv'")
    ],
) -> None:
    """Read one format, write another; an existing target is left alone and refused."""
    read_options, write_options = (
        plugin_options("data.formats", source),
        plugin_options("data.formats", target),
    )
    rows = list(formats.read(read_options))
    examples = [example for example in rows if not formats.is_left_out(example, read_options)]
    formats.write(examples, write_options)
    left_out = f", {num} without a label left out" if (num := len(rows) - len(examples)) else ""
    print(f"{len(examples)} examples from {source} to {target}{left_out}")
