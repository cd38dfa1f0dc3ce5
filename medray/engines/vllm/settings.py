"""The settings and the environment of vLLM's processes, and a guard that ends them with this one.

Nothing here imports vLLM."""

import importlib.util
import math
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medray.config.trial import Precision
from medray.models.architecture import load_config, outline
from medray.models.precision import DTYPES

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # which vLLM supports
HEAD_SIZES = (
    32,
    64,
    80,
    96,
    112,
    128,
    160,
    192,
    224,
    256,
    512,
)  # which vLLM's attention on CPUs supports
_BLOCK = 128  # tokens per block of vLLM's cache on CPUs
_SPARE_BLOCKS = 2  # vLLM itself uses one of them
_WORKSPACE = 2_000_000_000  # bytes per GPU beside weights and cache: context, activations, graphs


def is_installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def window_of(folder: Path) -> int | None:
    """Return the number of positions of a model, where its config has it."""
    return getattr(load_config(folder, str(folder)), "max_position_embeddings", None)


def head_size(folder: Path) -> int:
    config = load_config(folder, str(folder))
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


@dataclass(frozen=True)
class Settings:
    folder: Path  # the base model or the merged model, in the Hub's layout
    precision: Precision
    window: int  # tokens of a prompt and its answer
    cache_tokens: int  # capacity of the cache of keys and values
    num_rows: int  # generated together
    threads: int = 1
    gpus: int = 0  # which share every layer
    rank: int = 0  # of the largest adapter; 0 without adapters
    num_adapters: int = 0  # loaded together
    targets: tuple[str, ...] = ()  # names of the layers with adapters

    @property
    def cache_bytes(self) -> int:
        """Return the bytes of the cache per GPU, or of the process on a CPU."""
        config = load_config(self.folder, str(self.folder))
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        blocks = math.ceil(max(self.cache_tokens, self.window) / _BLOCK) + _SPARE_BLOCKS
        num_bytes = (
            blocks
            * _BLOCK
            * config.num_hidden_layers
            * 2
            * heads
            * head_size(self.folder)
            * DTYPES[self.precision].itemsize
        )
        return math.ceil(num_bytes / max(1, self.gpus))

    def memory_share(self, total_bytes: int) -> float:
        """Return the share of a GPU's memory that the engine needs: weights, cache and workspace.

        vLLM does not start unless this share is free. By default it requires 92 %, also where the
        size of the cache is given, so no second engine could start beside the first."""
        network, _ = outline(self.folder, "language model")
        num_weights = sum(parameter.numel() for parameter in network.parameters())
        weight_bytes = num_weights * DTYPES[self.precision].itemsize / self.gpus
        return min(1.0, (weight_bytes + self.cache_bytes + _WORKSPACE) / total_bytes)


def set_environment(settings: Settings) -> None:
    """Set the environment variables that vLLM reads, some of them at import."""
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if not settings.gpus:
        cores = sorted(os.sched_getaffinity(0))
        # By default vLLM leaves a core free, which is half of two. Beside other processes, binding
        # would put all of them on the same cores.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = (
            ",".join(map(str, cores)) if settings.threads >= len(cores) else "nobind"
        )
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)


def config_end_tokens(folder: Path) -> int | list[int] | None:
    """Return the end tokens of a model, as transformers reads them from its folder."""
    from transformers import GenerationConfig

    try:
        ends: int | list[int] | None = GenerationConfig.from_pretrained(
            str(folder), local_files_only=True
        ).eos_token_id
    except OSError:
        ends = getattr(load_config(folder, str(folder)), "eos_token_id", None)
    return ends


def guard(pids: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start a process that kills these processes and their children when this one is killed.

    Serve and the system may kill this one; the others would wait forever.
    """
    # a process id may be used again, but not with the same start
    processes = [*pids, *child_processes(pids)]
    start_times = {pid: start for pid in processes if (start := _start_of(pid))}
    ends = [
        f'case "$(cat /proc/{pid}/stat)" in *" {start} "*) kill -9 {pid};; esac'
        for pid, start in start_times.items()
    ]
    script = "; ".join(["exec 2>/dev/null", "read line", *ends])
    return subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True)


def child_processes(pids: Sequence[int]) -> list[int]:
    """Return the children of these processes and theirs, of all that still run."""
    descendants: list[int] = []
    for pid in pids:
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            children = [int(child) for child in _text_of(path).split()]
            descendants += [*children, *child_processes(children)]
    return descendants


def _start_of(pid: int) -> str:
    stat = _text_of(Path(f"/proc/{pid}/stat"))
    return stat.rsplit(")", 1)[1].split()[19] if stat else ""


def _text_of(path: Path) -> str:
    """Return the text of a file of /proc, or "" when its thread or process has ended."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
