"""The `medray` command: parse, call, print. No logic of its own; a failure exits non-zero."""

import errno
import io
import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType

import typer

from medray.cli import chat, data, plan, predict, release, report, review, serve, study, submit
from medray.errors import MedrayError
from medray.errors.redaction import redact
from medray.storage import files

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune, select and serve biomedical text models.",
)
app.add_typer(data.first)
app.add_typer(study.app)
app.add_typer(plan.app)
app.add_typer(submit.app)
app.add_typer(review.app)
app.add_typer(report.app)
app.add_typer(release.app)
app.add_typer(predict.app)
app.add_typer(serve.app)
app.add_typer(chat.app)
app.add_typer(data.app, name="data")
_NO_PLACE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
)  # of a path
_INTERRUPTED = (
    128 + signal.SIGINT,
    128 + signal.SIGTERM,
)  # exit statuses of typer and of the runtime


def _again(given: Sequence[str]) -> str:
    """What somebody does whose command was cut off."""
    if given[:1] in (["study"], ["predict"]):
        return f"`medray {given[0]} --resume` goes on from the last stored state"
    return "give the command again"


class _Redacted(logging.Formatter):
    """Libraries log addresses as they were given them."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _print_traceback(
    kind: type[BaseException], err: BaseException, trace: TracebackType | None
) -> None:
    """As Python prints it, without secrets."""
    print(redact("".join(traceback.format_exception(kind, err, trace))), end="", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(_Redacted("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[shown], force=True)
    for noisy in ("bitsandbytes", "botocore", "filelock", "fsspec", "httpx", "transformers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    sys.excepthook = _print_traceback
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        typer.main.get_command(app)(
            args=given
        )  # a Typer that is called puts a hook of its own in the place of ours
    except MedrayError as err:
        print(f"medray: {err}", file=sys.stderr)
        return err.exit_status
    except OSError as err:
        if files.is_full(err):
            print(
                f"medray: {files.full(err.filename or 'the disk', _again(given))}", file=sys.stderr
            )
        elif err.filename and err.errno in _NO_PLACE:
            print(f"medray: {err.filename!s:.200}: cannot be used: {err.strerror}", file=sys.stderr)
        else:
            raise
        return 1
    except SystemExit as end:
        if end.code in _INTERRUPTED:
            print(f"medray: interrupted; {_again(given)}", file=sys.stderr)
        return int(end.code or 0)
    return 0
