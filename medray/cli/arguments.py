"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from medray.config import environment
from medray.config.load import load_study
from medray.config.study import StudyConfig
from medray.errors import ConfigError

Storage = Annotated[
    str,
    typer.Option(
        help="the study's storage_path, which holds its releases: a folder or s3://BUCKET/PREFIX"
    ),
]
StudyStorage = Annotated[
    str | None,
    typer.Option(help="where the release is stored; by default the study's storage_path"),
]
Reference = Annotated[
    str, typer.Argument(help="name@version, name@alias, or a name for its latest version")
]
Configs = Annotated[
    list[str],
    typer.Argument(
        help=(
            "YAML files, later ones over earlier ones, then key=value settings such as "
            "train.epochs=3"
        )
    ),
]
StudyFolder = Annotated[
    str, typer.Argument(help="a study's folder, for its latest run, or the folder of one run")
]
TokenFile = Annotated[
    str | None, typer.Option(help="file with the token that the service requires")
]
RequireSignature = Annotated[
    Path | None,
    typer.Option(
        help=(
            "public key (PEM); a release that its private key did not sign is refused; needs the "
            "extra `sign`"
        )
    ),
]
_SUBMIT_HINT = (
    "ray job submit sends no file that .gitignore names, such as those in runs/; keep the study "
    "in another folder, or use medray submit"
)
# Metrics that a list of releases prints.
HEADLINE_METRICS = ("f1_binary", "f1_macro", "accuracy", "accuracy_subset", "log_loss")


def load(arguments: list[str]) -> StudyConfig:
    """Load a study from a command's YAML files and key=value settings."""
    files = [argument for argument in arguments if "=" not in argument]
    if environment.is_submitted_job() and (
        missing := next((file for file in files if not Path(file).exists()), None)
    ):
        raise ConfigError(f"{missing}: no such file; {_SUBMIT_HINT}")
    return load_study(files, [argument for argument in arguments if "=" in argument])


def read_token(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError as err:
        raise ConfigError(f"{path}: cannot be read: {err.strerror}; name a readable file") from None
