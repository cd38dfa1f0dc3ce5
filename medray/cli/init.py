"""The command that starts: a look at data, and a first study of it."""

from pathlib import Path
from typing import Annotated

import typer

from medray.errors import ConfigError
from medray.storage import files

app = typer.Typer()


@app.command()
def init(
    data: Annotated[
        str,
        typer.Argument(help="a file (csv, tsv, psv, jsonl, parquet, json of PubMedQA), or a folder with a folder of .txt files per class"),
    ],
    output: Annotated[str, typer.Option(help="the YAML to write; one that is there is left alone")] = "study.yaml",
    text: Annotated[list[str] | None, typer.Option(help="column of the text; give it again to join several")] = None,
    label: Annotated[str | None, typer.Option(help="column of the label, or of the labels")] = None,
    id: Annotated[str | None, typer.Option(help="column of the row's id")] = None,
    positive: Annotated[str | None, typer.Option(help="of two labels, the one that the figures are about")] = None,
    encoding: Annotated[str | None, typer.Option(help="of the file's text, such as cp1252; proposed where not given")] = None,
    drop_unlabelled: Annotated[bool, typer.Option("--drop-unlabelled", help="leave out rows without a label, and count them")] = False,
) -> None:
    """Look at a data set and write a first study of it."""
    from medray.data import first_study, guess

    found = guess.sketch(data, guess.Columns(tuple(text or ()), label, id, encoding, drop_unlabelled))
    study = first_study.first_study(found, output, positive)
    if not files.create(Path(output), study.encode("utf-8")):
        raise ConfigError(f"{output}: is there already and is left alone; choose another --output")
    print(f"{found.render()}\n{output} is written; next: medray study {output} --dry-run")
