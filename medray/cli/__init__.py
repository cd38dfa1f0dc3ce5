import sys

try:
    from medray.cli.main import main
except ModuleNotFoundError as err:
    if err.name is None or err.name.split(".")[0] == "medray":
        raise
    print(
        f"medray: the command needs the package {err.name}, and this is the client alone; "
        "pip install 'medray[predict]'",
        file=sys.stderr,
    )
    raise SystemExit(1) from None

__all__ = ["main"]
