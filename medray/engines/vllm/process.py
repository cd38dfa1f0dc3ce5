"""What an engine in processes of its own is started with, and how they end with this one. Knows no
engine by its code."""

import importlib.util
import math
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medray.config.study import Precision
from medray.models.architecture import load_config
from medray.models.precision import DTYPES

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM makes room for
HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # of its attention on CPUs
_BLOCK = 128  # tokens of a piece of vLLM's cache on CPUs
_SPARE_BLOCKS = 2  # of which vLLM itself keeps one


def is_installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def window_of(folder: Path) -> int | None:
    """Places that the model has for tokens."""
    return getattr(load_config(folder, str(folder)), "max_position_embeddings", None)


def head_size(folder: Path) -> int:
    config = load_config(folder, str(folder))
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


@dataclass(frozen=True)
class Settings:
    folder: Path  # the base, or the merged model, in the Hub's layout
    precision: Precision
    window: int  # tokens of a prompt with its answer
    cache_tokens: int  # whose keys and values are kept
    num_rows: int  # that are generated together
    threads: int = 1
    gpus: int = 0  # that share every layer
    rank: int = 0  # of the largest adapter; 0: none is put on it
    num_adapters: int = 0  # at a time
    targets: tuple[str, ...] = ()  # names of the layers that adapters are put on

    @property
    def cache_bytes(self) -> int:
        """Of one GPU, or of the process."""
        config = load_config(self.folder, str(self.folder))
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        blocks = math.ceil(max(self.cache_tokens, self.window) / _BLOCK) + _SPARE_BLOCKS
        whole = (
            blocks
            * _BLOCK
            * config.num_hidden_layers
            * 2
            * heads
            * head_size(self.folder)
            * DTYPES[self.precision].itemsize
        )
        return math.ceil(whole / max(1, self.gpus))


def set_environment(settings: Settings) -> None:
    """vLLM reads most of its settings here only, some of them at import."""
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if not settings.gpus:
        cores = sorted(os.sched_getaffinity(0))
        # Left to itself it keeps a core free, which is half of two. Where others compute beside it,
        # binding would put all on the same.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = (
            ",".join(map(str, cores)) if settings.threads >= len(cores) else "nobind"
        )
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)


def configured_ends(folder: Path) -> int | list[int] | None:
    """The end tokens of a model, as transformers reads them from the same folder."""
    from transformers import GenerationConfig

    try:
        ends: int | list[int] | None = GenerationConfig.from_pretrained(
            str(folder), local_files_only=True
        ).eos_token_id
    except OSError:
        ends = getattr(load_config(folder, str(folder)), "eos_token_id", None)
    return ends


def guard(pids: Sequence[int]) -> subprocess.Popen[bytes]:
    """Ends these processes and those below them when this one is killed, as Serve does and the
    system may: they would wait for ever for more to do."""
    began = {
        pid: _start_of(pid) for pid in [*pids, *_below(pids)]
    }  # a number may be used again, a number and a start not
    ends = [
        f'case "$(cat /proc/{pid}/stat)" in *" {start} "*) kill -9 {pid};; esac'
        for pid, start in began.items()
    ]
    script = "; ".join(["exec 2>/dev/null", "read line", *ends])
    return subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True)


def _start_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]


def _below(pids: Sequence[int]) -> list[int]:
    found: list[int] = []
    for pid in pids:
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            children = [int(child) for child in path.read_text().split()]
            found += [*children, *_below(children)]
    return found
