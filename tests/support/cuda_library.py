"""Builds and loads the library that gives a CPU build of PyTorch a CUDA device in name.

Imports no torch: PyTorch looks for its hooks when it is imported, so the library comes first."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("fake_cuda.cpp")


def lacking() -> str:
    """Return why this machine cannot have the device in name, or an empty string."""
    if list(_torch().glob("lib/*torch_cuda.*")):
        return "this build of PyTorch has a CUDA of its own"
    if sys.platform != "linux":
        return f"the library is built for Linux, and this is {sys.platform}"
    return "" if _compiler() else "needs a C++ compiler: c++, g++ or clang++"


def load() -> None:
    """Load the library into this process, which must not have imported torch yet."""
    if reason := lacking():
        raise RuntimeError(f"the CUDA device in name: {reason}")
    if "torch" in sys.modules:
        raise RuntimeError("the CUDA device in name: torch is imported already; load it first")
    ctypes.CDLL(str(_build()))


def _build() -> Path:
    """Return the library, which is built once per source and version of torch."""
    key = hashlib.sha256(SOURCE.read_bytes() + metadata.version("torch").encode()).hexdigest()[:16]
    path = ROOT / "build" / f"fake_cuda-{key}.so"
    if path.is_file():
        return path
    path.parent.mkdir(exist_ok=True)
    torch, draft = _torch(), path.with_suffix(f".{os.getpid()}")
    command = [
        str(_compiler()),
        *("-std=c++20", "-O0", "-shared", "-fPIC", f"-I{torch / 'include'}"),
        *(str(SOURCE), "-o", str(draft), f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"),
        f"-Wl,-rpath,{torch / 'lib'}",
    ]
    subprocess.run(command, check=True)
    draft.replace(path)  # another process may build it at the same time
    return path


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def _torch() -> Path:
    spec = find_spec("torch")
    assert spec
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])
