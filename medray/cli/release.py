"""Commands that read releases: list, verify, export."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medray.cli.arguments import HEADLINE_METRICS, Reference, RequireSignature, Storage
from medray.cli.output import Json, Output, Quiet
from medray.errors import PARTIAL_SUCCESS, ArtifactError, UsageError

if TYPE_CHECKING:
    from medray.registry.registry import Registry


app = typer.Typer()


@dataclass
class Listing:
    """Versions of releases, and a sentence for each file that cannot be read."""

    versions: list[dict[str, object]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)


@app.command()
def releases(storage_path: Storage = "runs", as_json: Json = False, quiet: Quiet = False) -> None:
    """List releases with their versions, aliases and figures."""
    from medray.registry.registry import Registry

    out = Output.start(as_json, quiet)
    registry, listing = Registry(storage_path), Listing()
    for name in registry.names():
        _list(registry, name, listing)
    if not registry.names():
        listing.lines.append(
            f"no releases in {registry.store.uri}; medray study publishes one, or give "
            "--storage-path"
        )
    out.result({"versions": listing.versions, "unreadable": listing.mistakes}, *listing.lines)
    for mistake in listing.mistakes:
        print(f"medray: {mistake}", file=sys.stderr)
    if listing.mistakes:
        raise typer.Exit(PARTIAL_SUCCESS)


def _list(registry: "Registry", name: str, listing: Listing) -> None:
    """Add the versions of a release to a listing."""
    aliases: dict[str, int] = {}
    for alias in registry.alias_names(name):
        try:
            aliases[alias] = registry.newest(name, alias).version
        except ArtifactError as err:
            listing.mistakes.append(str(err))
    for version in registry.versions(name):
        try:
            record = registry.read(name, version).record
        except ArtifactError as err:
            listing.mistakes.append(str(err))
            continue
        names = sorted(alias for alias, target in aliases.items() if target == version)
        metrics = dict(record.test.metrics) if record.test else {}
        listing.versions.append(
            {
                "release": f"{name}@{version}",
                "aliases": names,
                "created": record.created,
                "content_id": record.content_id,
                "test": metrics,
            }
        )
        figures = "  ".join(
            f"test {metric} {value:.4f}"
            for metric, value in metrics.items()
            if metric in HEADLINE_METRICS
        )
        suffix = "".join(f" @{alias}" for alias in names)
        listing.lines.append(
            f"{name}@{version}{suffix}  {record.created}  {record.content_id[:12]}  "
            f"{figures}".rstrip()
        )


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
        typer.Option("--repair", help="check the whole storage path and list what can be repaired"),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="with --repair: repair it")] = False,
    storage_path: Storage = "runs",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Recompute every hash of a release and rerun its probe; or find what is broken in a storage
    path."""
    from medray.registry.registry import Registry

    out = Output.start(as_json, quiet)
    registry = Registry(storage_path)
    if repair:
        if reference or require_signature:
            raise UsageError(
                "--repair checks the whole storage path; drop NAME@VERSION and --require-signature"
            )
        _repair(registry, yes, out)
        return
    if reference is None:
        raise UsageError("NAME@VERSION is missing; give a release, or --repair")
    if yes:
        raise UsageError("--yes has no effect without --repair; drop one of them")
    release = registry.resolve(reference)
    if require_signature:
        release.check_signature(require_signature)
    notes = release.check_aliases()
    release.verify()
    release.load()
    out.result(
        {"release": release.reference, "notes": notes},
        f"{release.reference}: every file is what its manifest says, and the model answers its "
        "probe",
        *(f"note: {note}" for note in notes),
    )


def _repair(registry: "Registry", yes: bool, out: Output) -> None:
    from medray.registry import repair

    findings, num_done = list(repair.examine(registry)), 0
    lines, document = [], []
    for finding in findings:
        is_done = bool(yes and finding.mend)
        if yes and finding.mend:
            finding.mend()
            num_done += 1
        lines.append(f"{finding.where}: {finding.what}; {'done: ' * is_done}{finding.remedy}")
        document.append(
            {
                "where": finding.where,
                "what": finding.what,
                "remedy": finding.remedy,
                "is_broken": finding.is_broken,
                "is_repaired": is_done,
            }
        )
    if not findings:
        lines.append(f"{registry.store.uri}: nothing is broken")
    if not yes and any(finding.mend for finding in findings):
        lines.append("nothing was changed; `medray verify --repair --yes` repairs what it can")
    out.result(document, *lines)
    if any(finding.is_broken and not (yes and finding.mend) for finding in findings):
        raise typer.Exit(PARTIAL_SUCCESS if num_done else 1)


@app.command()
def export(
    reference: Reference,
    folder: Annotated[Path, typer.Argument(help="a new folder")],
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
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a release as a plain Hub folder with a model card, or as a storage path of its own."""
    from medray.registry.registry import Registry

    out = Output.start(as_json, quiet)
    if merged and bundle:
        raise UsageError("--merged and --bundle: a server merges what it loads; drop one of them")
    release = Registry(storage_path).resolve(reference)
    if bundle:
        release.bundle(folder)
    else:
        release.export(folder, merged=merged)
    next_step = f": `medray serve {reference} --storage-path {folder}`" if bundle else ""
    out.result(
        {"release": release.reference, "folder": str(folder)},
        f"{reference} is in {folder}{next_step}",
    )
