"""Commands about data sets."""

import json
from typing import Annotated

import typer

from medray.cli.arguments import Configs, load
from medray.config.load import plugin_options
from medray.data.formats.base import protocol as formats

app = typer.Typer(no_args_is_help=True, help="Look at a data set, or change its format.")


@app.command()
def audit(
    arguments: Configs,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of text")] = False,
) -> None:
    """Tell what is in a study's data: balance, lengths, duplicates, conflicts, the ceiling they set."""
    study = load(arguments)
    from medray.study import materials, preflight

    preflight.check(study)
    for found in materials.audit(study):
        print(json.dumps(found.as_dict(), indent=1, ensure_ascii=False) if as_json else found.render())


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="format and options, as in YAML: 'name=raw_abstracts,path=samples/abstracts'")],
    target: Annotated[str, typer.Argument(help="the same for what is written: 'name=delimited,path=combined.psv'")],
) -> None:
    """Read one format, write another; an existing target is left alone and refused."""
    read_options, write_options = plugin_options("data.formats", source), plugin_options("data.formats", target)
    rows = list(formats.read(read_options))
    examples = [example for example in rows if not formats.is_left_out(example, read_options)]
    formats.write(examples, write_options)
    left_out = f", {num} without a label left out" if (num := len(rows) - len(examples)) else ""
    print(f"{len(examples)} examples from {source} to {target}{left_out}")
