"""Commands about releases: publish, list, verify, export."""

from pathlib import Path
from typing import Annotated

import typer

from medray.cli.arguments import SHOWN, Reference, Storage

app = typer.Typer()


@app.command()
def publish(
    place: Annotated[str, typer.Argument(help="a study's folder or that of a run, whose winner is meant, or a checkpoint's folder or URI")],
    name: Annotated[str, typer.Argument(help="the release's name")],
    alias: Annotated[str | None, typer.Option(help="point this alias at the new version")] = None,
    notes: Annotated[str, typer.Option(help="a sentence for the model card")] = "",
    abstain_precision: Annotated[
        float | None, typer.Option(min=0.01, max=0.999, help="fit the threshold for abstention anew, for this share of right answers")
    ] = None,
    storage_path: Storage = "runs",
) -> None:
    """Publish a study's winner, or a checkpoint, as the next version of a release."""
    from medray.registry import Registry
    from medray.tuning import winners

    registry = Registry(storage_path)
    release = winners.publish(registry, place, name, notes=notes, abstain_precision=abstain_precision)
    if alias:
        registry.point(name, alias, release.record.version)
    print(f"{release.reference}" + (f" is {name}@{alias}" if alias else ""))


@app.command()
def releases(storage_path: Storage = "runs") -> None:
    """List releases, their versions, aliases and figures."""
    from medray.registry import Registry

    registry = Registry(storage_path)
    for name in registry.names():
        aliases = registry.aliases(name)
        for version in registry.versions(name):
            record = registry.resolve(f"{name}@{version}").record
            called = "".join(f" @{alias}" for alias, at in sorted(aliases.items()) if at == version)
            figures = (
                "  ".join(f"test {metric} {value:.4f}" for metric, value in record.test.metrics.items() if metric in SHOWN)
                if record.test
                else ""
            )
            print(f"{name}@{version}{called}  {record.created}  {record.content_id[:12]}  {figures}".rstrip())


@app.command()
def verify(reference: Reference, storage_path: Storage = "runs") -> None:
    """Recompute every hash of a release, and have it answer its probe."""
    from medray.registry import Registry

    release = Registry(storage_path).resolve(reference)
    release.verify()
    release.load()
    print(f"{release.reference}: every file is what its manifest says, and the model answers its probe")


@app.command()
def export(
    reference: Reference,
    folder: Annotated[str, typer.Argument(help="a new folder")],
    merged: Annotated[bool, typer.Option("--merged", help="the whole model instead of the adapter")] = False,
    storage_path: Storage = "runs",
) -> None:
    """Write a release as a plain Hub folder with a model card."""
    from medray.registry import Registry

    Registry(storage_path).resolve(reference).export(Path(folder), merged=merged)
    print(f"{reference} is in {folder}")
