"""The command that checks this machine."""

import typer

from medray.cli.output import Json, Output, Quiet

app = typer.Typer()


@app.command()
def doctor(as_json: Json = False, quiet: Quiet = False) -> None:
    """Check this machine: Python, packages, GPUs, Ray, disk and proxies. It prints what is missing
    and the command that installs it, and exits with 1 if something that medray needs is broken."""
    from medray.runtime.doctor import examine

    out = Output.start(as_json, quiet)
    checks = examine()
    is_broken = any(check.status == "broken" for check in checks)
    out.result(
        {"is_broken": is_broken, "checks": checks},
        *(check.render() for check in checks if not quiet or check.status != "ok"),
    )
    if is_broken:
        raise typer.Exit(1)
