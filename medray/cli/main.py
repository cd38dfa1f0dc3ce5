"""The `medray` command: parse, call, print. It holds no logic; a failure exits non-zero."""

import contextlib
import errno
import io
import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated

import typer

import medray
from medray.cli import (
    chat,
    data,
    doctor,
    evaluate,
    jobs,
    plan,
    predict,
    publish,
    release,
    report,
    review,
    serve,
    study,
    submit,
)
from medray.errors import MedrayError
from medray.errors.redaction import redact
from medray.storage import files

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune, select and serve biomedical text models.",
)
app.add_typer(data.first)
app.add_typer(doctor.app)
app.add_typer(study.app)
app.add_typer(evaluate.app)
app.add_typer(plan.app)
app.add_typer(submit.app)
app.add_typer(jobs.app, name="jobs")
app.add_typer(review.app)
app.add_typer(report.app)
app.add_typer(publish.app)
app.add_typer(release.app)
app.add_typer(predict.app)
app.add_typer(serve.app)
app.add_typer(chat.app)
app.add_typer(data.app, name="data")
_PATH_ERRORS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
)
_SIGNALS = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        print(f"medray {medray.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="print the version", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def _next_step(arguments: Sequence[str]) -> str:
    """Return what to do after a command was interrupted."""
    if arguments[:1] in (["study"], ["predict"]):
        return f"`medray {arguments[0]} --resume` continues from the last stored state"
    return "run the command again"


def _is_interruption(end: SystemExit) -> bool:
    """Return whether a signal ended the command; a command may also return a job's status."""
    status = end.__context__
    is_of_command = isinstance(status, typer.Exit) and status.__cause__ is None
    return end.code in _SIGNALS and not is_of_command


class _RedactingFormatter(logging.Formatter):
    """Hides secrets of addresses, which libraries log in full."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _print_traceback(
    kind: type[BaseException], err: BaseException, trace: TracebackType | None
) -> None:
    """Print a traceback as Python does, without secrets."""
    print(redact("".join(traceback.format_exception(kind, err, trace))), end="", file=sys.stderr)


def _set_up() -> None:
    """Set up logging, tracebacks and stdout for a command."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_RedactingFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("bitsandbytes", "botocore", "filelock", "fsspec", "httpx", "transformers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    sys.excepthook = _print_traceback
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    _set_up()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # A command may redirect stdout. Calling a Typer itself would replace our excepthook.
        with contextlib.redirect_stdout(sys.stdout):
            typer.main.get_command(app)(args=words, prog_name="medray")
    except MedrayError as err:
        print(f"medray: {err}", file=sys.stderr)
        return err.exit_status
    except OSError as err:
        if files.is_full(err):
            message = str(files.full(err.filename or "the disk", _next_step(words)))
        elif err.filename and err.errno in _PATH_ERRORS:
            message = f"{err.filename!s:.200}: cannot be used: {err.strerror}"
        else:
            raise
        print(f"medray: {message}", file=sys.stderr)
        return 1
    except SystemExit as end:
        if _is_interruption(end):
            print(f"medray: interrupted; {_next_step(words)}", file=sys.stderr)
        return int(end.code or 0)
    return 0
