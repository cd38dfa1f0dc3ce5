"""What notebooks show: the live table of a running study, and results as HTML."""

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType

if TYPE_CHECKING:
    from medray.study.progress import Progress

_EVERY_S = 2.0
_WIDTH = 110  # characters


def is_notebook() -> bool:
    """Return whether this process runs the cells of a notebook."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module else None
    return shell is not None and hasattr(shell, "kernel")


def html(renderable: RenderableType) -> str:
    """Return what rich would print in a terminal as HTML, with all text escaped."""
    console = Console(record=True, file=io.StringIO(), width=_WIDTH, force_jupyter=False)
    console.print(renderable)
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


@contextmanager
def live_table(progress: "Progress") -> Iterator[None]:
    """Show the table of a running study below the cell, and renew it."""
    page: Any = import_module("IPython.display")

    def table() -> Any:
        return page.HTML(html(progress.render()))

    handle = page.display(table(), display_id=True)
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(_EVERY_S):
            handle.update(table())

    thread = threading.Thread(target=renew, daemon=True, name="medray live table")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        handle.update(table())
