"""transformers and bitsandbytes without lines that help nobody: progress bars, a table of missing weights, a kernel of the Hub.

What is missing we check and say ourselves.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as of_transformers

_KERNELS = logging.getLogger("bitsandbytes.backends.cpu.ops")


@contextmanager
def quiet() -> Iterator[None]:
    level, bars = of_transformers.get_verbosity(), of_transformers.is_progress_bar_enabled()
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    _KERNELS.addFilter(_is_wanted)
    try:
        yield
    finally:
        _KERNELS.removeFilter(_is_wanted)
        of_transformers.set_verbosity(level)
        if bars:
            of_transformers.enable_progress_bar()


def _is_wanted(record: logging.LogRecord) -> bool:
    """bitsandbytes 0.50 looks for a kernel of the Hub as it is imported, and advises to install it; medray never calls it."""
    return "gemm_4bit_forward" not in str(record.msg)
