"""Commands about releases: publish, list, verify, export."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medray.cli.arguments import SHOWN, Reference, RequireSignature, Storage
from medray.config.load import load_study
from medray.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from medray.registry.registry import Registry
    from medray.registry.release import Release


app = typer.Typer()
Sign = Annotated[
    Path | None,
    typer.Option(
        help=(
            "sign the version with this elliptic-curve private key (PEM), before any alias points "
            "at it; extra `sign`"
        )
    ),
]


@app.command()
def publish(
    place: Annotated[
        str,
        typer.Argument(
            help="a study's folder or that of a run, whose winner is meant;"
            " a checkpoint's folder or URI; a study's YAML, whose base model is meant as it is;"
            " or, with --system, a release"
        ),
    ],
    name: Annotated[
        str | None,
        typer.Argument(
            help="the release's name; with --system that of the release where not given"
        ),
    ] = None,
    alias: Annotated[str | None, typer.Option(help="point this alias at the new version")] = None,
    notes: Annotated[str, typer.Option(help="a sentence for the model card")] = "",
    abstain_precision: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=0.999,
            help="fit the threshold for abstention anew, for this share of right answers",
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="with a study's YAML: which of its base models")
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            help=(
                "of a release that answers in words: a new version with this system prompt, "
                "untrained"
            )
        ),
    ] = None,
    system_file: Annotated[str | None, typer.Option(help="the same, read from a file")] = None,
    sign: Sign = None,
    storage_path: Storage = "runs",
) -> None:
    """Publish a study's winner, a checkpoint, or a base model without training, as the next version
    of a release."""
    from medray.registry import external
    from medray.study.publish import publish as publish_winner

    registry = _registry(storage_path, sign)
    if system_file is not None:
        if system is not None:
            raise ConfigError("--system and --system-file: give one of the two")
        if not Path(system_file).is_file():
            raise ConfigError(f"--system-file: there is no file {system_file}")
        system = Path(system_file).read_text(encoding="utf-8").strip()
    if system is not None:
        if base or abstain_precision is not None:
            raise ConfigError(
                "--system goes with a release (NAME@VERSION), and neither with --base nor with "
                "--abstain-precision"
            )
        _point(
            registry,
            registry.change(place, {"system": system}, name=name, notes=notes),
            alias,
            sign,
        )
        return
    if name is None:
        raise ConfigError("NAME is missing: what the release is called")
    is_study = place.endswith((".yaml", ".yml"))
    if is_study and abstain_precision is not None:
        raise ConfigError(
            "--abstain-precision and a study's YAML: set calibration.abstain_precision in it"
        )
    if base and not is_study:
        raise ConfigError(
            f"--base {base}: goes with a study's YAML, whose base model is published as it is"
        )
    if is_study:
        release = external.publish_base_model(
            registry, load_study([place]), base, name, notes=notes
        )
    else:
        release = publish_winner(
            registry, place, name, notes=notes, abstain_precision=abstain_precision
        )
    _point(registry, release, alias, sign)


@app.command("import")
def import_(
    folder: Annotated[
        str,
        typer.Argument(
            help="a PEFT folder that was trained elsewhere, such as outputs/checkpoint-300"
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
    alias: Annotated[str | None, typer.Option(help="point this alias at the new version")] = None,
    notes: Annotated[str, typer.Option(help="a sentence for the model card")] = "",
    sign: Sign = None,
    storage_path: Storage = "runs",
) -> None:
    """Publish an adapter that was trained elsewhere, once its base, task and labels are named."""
    from medray.registry import external

    registry = _registry(storage_path, sign)
    release = external.publish_adapter(
        registry, Path(folder), name, external.ImportConfig.load(settings), notes=notes
    )
    _point(registry, release, alias, sign)


def _registry(storage_path: str, sign: Path | None) -> "Registry":
    """The registry, once the key that shall sign is known to be one: a version that is published
    stays."""
    from medray.registry import signatures
    from medray.registry.registry import Registry

    if sign:
        signatures.sign(b"", sign)
    return Registry(storage_path)


def _point(
    registry: "Registry", release: "Release", alias: str | None, sign: Path | None = None
) -> None:
    record = release.record
    if sign:
        registry.sign(release, sign)
    if alias:
        registry.point(record.name, alias, record.version, digest=release.digest)
    print(
        f"{release.reference}"
        + (f" is {record.name}@{alias}" if alias else "")
        + (", signed" if sign else "")
    )
    from medray.engines.vllm import engine

    if engine.is_installed():
        _say_engine(release)


def _say_engine(release: "Release") -> None:
    """Where vLLM is installed, it answers for releases that talk; for which it does not should be
    known before they are served."""
    from medray.serving.vllm import refused_by_vllm, talks

    refusal = refused_by_vllm(release)
    if refusal and talks(release):
        print(f"{release.reference} will be answered by transformers and not by vLLM: {refusal}")


@app.command()
def releases(storage_path: Storage = "runs") -> None:
    """List releases, their versions, aliases and figures."""
    from medray.registry.registry import Registry

    registry = Registry(storage_path)
    wrong = [mistake for name in registry.names() for mistake in _list(registry, name)]
    for mistake in wrong:
        print(f"medray: {mistake}", file=sys.stderr)
    if wrong:
        raise typer.Exit(1)


def _list(registry: "Registry", name: str) -> list[str]:
    """Print the versions of a release; return a sentence for each file that cannot be read."""
    wrong, aliases = [], {}
    for alias in registry.alias_names(name):
        try:
            aliases[alias] = registry.newest(name, alias).version
        except ArtifactError as err:
            wrong.append(str(err))
    for version in registry.versions(name):
        try:
            record = registry.read(name, version).record
        except ArtifactError as err:
            wrong.append(str(err))
            continue
        called = "".join(f" @{alias}" for alias, at in sorted(aliases.items()) if at == version)
        figures = (
            "  ".join(
                f"test {metric} {value:.4f}"
                for metric, value in record.test.metrics.items()
                if metric in SHOWN
            )
            if record.test
            else ""
        )
        print(
            (
                f"{name}@{version}{called}  {record.created}  {record.content_id[:12]}  {figures}"
            ).rstrip()
        )
    return wrong


@app.command()
def verify(
    reference: Annotated[
        str | None,
        typer.Argument(
            help="name@version, name@alias, or a name for its latest version; none with --repair"
        ),
    ] = None,
    require_signature: RequireSignature = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="look at the whole storage path, and print what would be mended and how",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="with --repair: mend it")] = False,
    storage_path: Storage = "runs",
) -> None:
    """Recompute every hash of a release, and have it answer its probe; or find what is broken in a
    storage path."""
    from medray.registry.registry import Registry

    registry = Registry(storage_path)
    if repair:
        if reference or require_signature:
            raise ConfigError(
                "--repair looks at the whole storage path; drop NAME@VERSION and "
                "--require-signature"
            )
        _repair(registry, yes)
        return
    if reference is None or yes:
        raise ConfigError(
            "NAME@VERSION is missing"
            if reference is None
            else "--yes goes with --repair; drop one of them"
        )
    release = registry.resolve(reference)
    if require_signature:
        release.check_signature(require_signature)
    notes = release.check_aliases()
    release.verify()
    _load(release)
    for note in notes:
        print(f"note: {note}")


def _load(release: "Release") -> None:
    release.load()
    print(
        f"{release.reference}: every file is what its manifest says, and the model answers its "
        "probe"
    )


def _repair(registry: "Registry", yes: bool) -> None:
    from medray.registry import repair

    findings = list(repair.examine(registry))
    for finding in findings:
        if yes and finding.mend:
            finding.mend()
        print(
            f"{finding.where}: {finding.what}; "
            f"{'done: ' if yes and finding.mend else ''}{finding.remedy}"
        )
    open_ones = [
        finding for finding in findings if finding.is_broken and not (yes and finding.mend)
    ]
    if not findings:
        print(f"{registry.store.uri}: nothing is broken")
    if not yes and any(finding.mend for finding in findings):
        print("nothing was changed: `medray verify --repair --yes` mends what can be mended")
    if open_ones:
        raise typer.Exit(1)


@app.command()
def export(
    reference: Reference,
    folder: Annotated[str, typer.Argument(help="a new folder")],
    merged: Annotated[
        bool, typer.Option("--merged", help="the whole model instead of the adapter")
    ] = False,
    bundle: Annotated[
        bool,
        typer.Option(
            "--bundle", help="a storage path with this release alone, for a server of its own"
        ),
    ] = False,
    storage_path: Storage = "runs",
) -> None:
    """Write a release as a plain Hub folder with a model card, or as a storage path of its own."""
    from medray.registry.registry import Registry

    if merged and bundle:
        raise ConfigError("--merged and --bundle: a server merges what it loads; drop one of them")
    release = Registry(storage_path).resolve(reference)
    if bundle:
        release.bundle(Path(folder))
        print(f"{reference} is in {folder}: `medray serve {reference} --storage-path {folder}`")
        return
    release.export(Path(folder), merged=merged)
    print(f"{reference} is in {folder}")
