"""Commands that publish a winner, a checkpoint, a base model or an adapter as a release."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medray.cli.arguments import Storage
from medray.cli.output import Json, Output, Quiet
from medray.config.load import load_study
from medray.errors import ConfigError, UsageError, nearest_file

if TYPE_CHECKING:
    from medray.registry.registry import Registry
    from medray.registry.release import Release


app = typer.Typer()
Alias = Annotated[str | None, typer.Option(help="point this alias at the new version")]
Notes = Annotated[str, typer.Option(help="a sentence for the model card")]
Sign = Annotated[
    Path | None,
    typer.Option(
        help=(
            "sign the version with this elliptic-curve private key (PEM) before any alias points "
            "at it; needs the extra `sign`"
        )
    ),
]


@app.command()
def publish(
    place: Annotated[
        str,
        typer.Argument(
            help=(
                "a study's folder or the folder of one run, for its winner; a checkpoint's folder "
                "or URI; a study's YAML, for its untuned base model; with --system, a release"
            )
        ),
    ],
    name: Annotated[
        str | None,
        typer.Argument(help="the release's name; with --system, by default that of the release"),
    ] = None,
    alias: Alias = None,
    notes: Notes = "",
    abstain_precision: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=0.999,
            help="refit the threshold for abstention to this share of correct predictions",
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="with a study's YAML: which of its base models")
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            help="for a release that chats: publish a new version with this system prompt"
        ),
    ] = None,
    system_file: Annotated[
        Path | None, typer.Option(help="a file with the text for --system")
    ] = None,
    sign: Sign = None,
    storage_path: Storage = "runs",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish a study's winner, a checkpoint, or an untuned base model as the next version of a
    release."""
    out = Output.start(as_json, quiet)
    registry = _registry(storage_path, sign)
    prompt = _system_prompt(system, system_file)
    if prompt is not None:
        if base or abstain_precision is not None:
            raise UsageError(
                "--system changes a release (NAME@VERSION); drop --base and --abstain-precision"
            )
        release = registry.change(place, {"system": prompt}, name=name, notes=notes)
    else:
        if name is None:
            raise UsageError("NAME is missing; give the release's name after PLACE")
        release = _publish_model(registry, place, name, notes, base, abstain_precision)
    _finish(registry, release, alias, sign, out)


def _system_prompt(system: str | None, system_file: Path | None) -> str | None:
    if system_file is None:
        return system
    if system is not None:
        raise UsageError("--system and --system-file: give one of the two")
    if not system_file.is_file():
        raise ConfigError(f"--system-file {system_file}: no such file{nearest_file(system_file)}")
    return system_file.read_text(encoding="utf-8").strip()


def _publish_model(
    registry: "Registry",
    place: str,
    name: str,
    notes: str,
    base: str | None,
    abstain_precision: float | None,
) -> "Release":
    from medray.registry import external
    from medray.study.publish import publish as publish_winner

    if not place.endswith((".yaml", ".yml")):
        if base:
            raise UsageError(f"--base {base}: applies to a study's YAML; drop it, or name a YAML")
        return publish_winner(
            registry, place, name, notes=notes, abstain_precision=abstain_precision
        )
    if abstain_precision is not None:
        raise UsageError(
            "--abstain-precision and a study's YAML: set calibration.abstain_precision in it"
        )
    return external.publish_base_model(registry, load_study([place]), base, name, notes=notes)


@app.command("import")
def import_(
    folder: Annotated[
        Path,
        typer.Argument(
            help="a PEFT folder that another program trained, such as outputs/checkpoint-300"
        ),
    ],
    name: Annotated[str, typer.Argument(help="the release's name")],
    settings: Annotated[
        list[str],
        typer.Argument(
            help=(
                "model.source=BASE task.name=classification labels=[first,second] and other "
                "settings of model and task"
            )
        ),
    ],
    alias: Alias = None,
    notes: Notes = "",
    sign: Sign = None,
    storage_path: Storage = "runs",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish an adapter that another program trained, given its base, task and labels."""
    from medray.registry import external

    out = Output.start(as_json, quiet)
    registry = _registry(storage_path, sign)
    release = external.publish_adapter(
        registry, folder, name, external.ImportConfig.load(settings), notes=notes
    )
    _finish(registry, release, alias, sign, out)


def _registry(storage_path: str, sign: Path | None) -> "Registry":
    """Return the registry, after a trial of the key that shall sign: no version can be taken
    back."""
    from medray.registry import signatures
    from medray.registry.registry import Registry

    if sign:
        signatures.sign(b"", sign)
    return Registry(storage_path)


def _finish(
    registry: "Registry", release: "Release", alias: str | None, sign: Path | None, out: Output
) -> None:
    """Sign a new version, point an alias at it, and print it."""
    record = release.record
    if sign:
        registry.sign(release, sign)
    if alias:
        registry.point(record.name, alias, record.version, digest=release.digest)
    note = engine_note(release)
    out.result(
        {
            "release": release.reference,
            "alias": alias,
            "is_signed": sign is not None,
            "notes": [note] if note else [],
        },
        f"{release.reference}"
        + (f" is {record.name}@{alias}" if alias else "")
        + (", signed" if sign else ""),
        *([note] if note else []),
    )


def engine_note(release: "Release") -> str | None:
    """Return a sentence where vLLM is installed and cannot serve a release that chats."""
    from medray.engines.vllm import engine

    if not engine.is_installed():
        return None
    from medray.serving.vllm import refused_by_vllm, talks

    refusal = refused_by_vllm(release)
    if not refusal or not talks(release):
        return None
    return f"{release.reference} will be served by transformers and not by vLLM: {refusal}"
