"""What a command prints: its result on stdout, as text or as one JSON document; its progress, which
`--json` moves to stderr and `--quiet` drops."""

import logging
import os
import sys
from dataclasses import dataclass
from functools import cache
from typing import Annotated, TextIO

import typer
from pydantic_core import to_json

Json = Annotated[
    bool,
    typer.Option("--json", help="print the result as one JSON document; progress goes to stderr"),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="print the result, warnings and errors, no progress")
]


@dataclass(frozen=True)
class Output:
    stdout: TextIO
    as_json: bool

    @classmethod
    def start(cls, as_json: bool, quiet: bool) -> "Output":
        """Keep stdout for the result. From here to the end of the command, `print` is progress."""
        stdout = sys.stdout
        if quiet:
            logging.getLogger().setLevel(logging.WARNING)
            sys.stdout = _null()
        elif as_json:
            sys.stdout = sys.stderr
        return cls(stdout, as_json)

    def result(self, document: object, *lines: str) -> None:
        """Print a result: the document where JSON was requested, else the lines."""
        text = (
            to_json(document, indent=1, inf_nan_mode="null", fallback=str).decode()
            if self.as_json
            else "\n".join(lines)
        )
        if text:
            print(text, file=self.stdout, flush=True)


@cache
def _null() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")
