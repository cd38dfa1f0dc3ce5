"""A base model that is shipped as one GGUF file, as the safetensors folder that everything else reads."""

import importlib.util
import json
import re
from pathlib import Path

import torch
from filelock import FileLock

from medray import storage
from medray.errors import ArtifactError
from medray.models.quiet import quiet

_FORMAT = 1  # of the folder; raise it where a conversion would give another one, so that old folders are left alone
_NOTE = "conversion.json"


def converted(gguf: Path, name: str, cache_dir: Path) -> tuple[Path, str]:
    """The folder, made once for all processes of this machine, and the sentence that says what was lost."""
    digest = storage.hash_file(gguf)
    target = cache_dir / "bases" / f"{name}-{digest[:16]}-{_FORMAT}"
    if not target.is_dir():
        (cache_dir / "locks").mkdir(parents=True, exist_ok=True)
        # The lock saves the other processes the work and the memory; without it the folder would still appear whole.
        with FileLock(cache_dir / "locks" / f"{target.name}.lock"):
            if not target.is_dir():
                _convert(gguf, target)
    return target, str(json.loads((target / _NOTE).read_text(encoding="utf-8"))["note"])


def _convert(gguf: Path, target: Path) -> None:
    from medray.models.libraries import AutoModelForCausalLM, AutoTokenizer

    if importlib.util.find_spec("gguf") is None:
        raise ArtifactError(f"{gguf.name}: reading GGUF needs one more package: pip install gguf")
    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    with quiet():
        loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**place)
    # The loaded model calls itself quantised and refuses to be saved, so its weights go into one that does not.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    tokenizer.model_max_length = config.max_position_embeddings  # GGUF does not say, and transformers then takes 10^30
    with storage.new_folder(target) as folder:
        with quiet():
            plain.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        (folder / _NOTE).write_text(json.dumps({"note": _note(gguf), "file": gguf.name}), encoding="utf-8")


def _note(gguf: Path) -> str:
    from gguf import GGUFReader, LlamaFileType

    field = GGUFReader(gguf).get_field("general.file_type")
    kind = LlamaFileType(field.contents()).name.removeprefix("MOSTLY_").removeprefix("ALL_") if field else "unknown"
    bits = re.match(r"I?Q(\d)", kind)
    return f"dequantised from {bits.group(1)} bits ({kind} GGUF)" if bits else f"converted from {kind} GGUF"
