"""What several commands take: configurations, a release, the storage that holds it."""

from pathlib import Path
from typing import Annotated

import typer

from medray.config import environment
from medray.config.load import load_study
from medray.config.study import StudyConfig
from medray.errors import ConfigError

Storage = Annotated[
    str,
    typer.Option(help="the study's storage_path, which holds its releases, or s3://BUCKET/PREFIX"),
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
TokenFile = Annotated[str | None, typer.Option(help="file that holds the token to ask with")]
RequireSignature = Annotated[
    Path | None,
    typer.Option(
        help="public key (PEM): a release that its holder did not sign is refused; extra `sign`"
    ),
]
_NOT_SENT = (
    "ray job submit sends nothing that .gitignore names, such as what is in runs/: keep the study "
    "elsewhere, or use medray submit"
)
SHOWN = ("f1_binary", "f1_macro", "accuracy", "accuracy_subset", "log_loss")


def load(arguments: list[str]) -> StudyConfig:
    files = [argument for argument in arguments if "=" not in argument]
    if environment.is_submitted_job() and (
        missing := next((file for file in files if not Path(file).exists()), None)
    ):
        raise ConfigError(f"{missing}: no such file; {_NOT_SENT}")
    return load_study(files, [argument for argument in arguments if "=" in argument])


def read_token(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError as err:
        raise ConfigError(f"{path}: cannot be read: {err.strerror}") from None
