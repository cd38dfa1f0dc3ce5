"""Opens releases on vLLM: a single one merged on its own core, several as adapters on the core of
their base."""

import logging
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from medray.config import environment
from medray.config.trial import Precision
from medray.engines.vllm import engine as vllm
from medray.errors import ArtifactError, ServingError
from medray.models.build import load_tokenizer, merge_and_export
from medray.models.precision import fast_precision
from medray.registry.loading import LoadedRelease, find_base, load
from medray.registry.probe import probe_outputs
from medray.registry.release import Release
from medray.serving.chat import ChatModel, Relay
from medray.serving.schemas import AppOptions
from medray.serving.vllm import Adapter, ReleaseGroup, adapter_of, refused_by_vllm
from medray.storage import checkpoint, files
from medray.storage.checkpoint import Manifest
from medray.types import Floats

log = logging.getLogger(__name__)
# Tolerances for a probe's log-likelihoods in half precision. Three adapters on SmolLM2 in bf16 had
# values from -55 to -21, and were 0.32, 0.24 and 0.74 from their own. In bf16, transformers is
# 0.63 from the third. The bases without adapter were 1.2, 1.4 and 1.06 away. So rounding explains
# up to 1.0, and outputs less than 0.5 apart count as the same.
_ROUNDING, _ANOTHER, _RELATIVE = 1.0, 0.5, 0.01


class VllmModels:
    def __init__(
        self, group: ReleaseGroup, options: AppOptions, *, threads: int, gpus: float
    ) -> None:
        self.group, self.options, self.threads = group, options, threads
        self.gpus = math.ceil(gpus)  # a part of one counts as one
        self.precision = (
            fast_precision("cuda" if gpus else "cpu")
            if options.precision == "auto"
            else options.precision
        )
        self._lock = threading.Lock()  # several followers load at the same time
        self._core: vllm.Core | None = None  # of the shared base, or of the newest merged model
        self._base_hash = ""
        self._probes: dict[str, Floats] = {}  # of the other releases on the same core

    @property
    def is_dead(self) -> bool:
        return self._core is not None and self._core.is_dead

    def open(self, release: Release) -> ChatModel:
        """Open a release, and check its hashes, its base and its probe, which runs on vLLM."""
        refusal = refused_by_vllm(release)
        if refusal:
            raise ServingError(
                f"{release.reference}: the vLLM engine of {self.group.references[0]} cannot load "
                f"it: {refusal}"
            )
        folder = release.folder()
        manifest = checkpoint.verify(folder)
        release.check_probe(manifest)
        record, task, tokenizer = (
            release.record,
            release.task(manifest),
            load_tokenizer(folder / "tokenizer"),
        )
        with self._lock:
            engine = (
                self._engine_with_adapter(release, manifest, tokenizer)
                if self.group.is_shared
                else self._engine_of_merge(release, manifest, tokenizer)
            )
            model = LoadedRelease(
                record.name,
                record.version,
                folder,
                manifest,
                task,
                engine,
                self.precision,
                record.calibration,
                is_merged=not self.group.is_shared,
            )
            self.check_probe(model, engine)
        log.info(
            "%s: %s on vLLM, %s",
            release.reference,
            self.precision,
            "an adapter" if self.group.is_shared else "merged",
        )
        relay = Relay(engine, waiting_tokens=self.options.limits.waiting_tokens)
        return ChatModel.open(model, relay, engine.core.settings.window)

    def _engine_with_adapter(
        self, release: Release, manifest: Manifest, tokenizer: Any
    ) -> vllm.VllmEngine:
        room, adapter = self.group.room, adapter_of(release)
        assert room is not None, "a shared engine has room"
        if not adapter.fits(room):
            raise ServingError(
                f"{release.reference}: has rank {adapter.rank} on "
                f"{', '.join(sorted(adapter.targets))}; its engine was started for"
                f" {room.rank} on {', '.join(sorted(room.targets))}; deploy again"
            )
        if self._core is None:
            base = find_base(release.reference, manifest)
            # One more than there are releases, because an alias that moves needs old and new.
            self._core = self._start(base.path, room, num_adapters=len(self.group.references) + 1)
            self._base_hash = base.weight_hash
        if manifest.base.weight_hash != self._base_hash:
            raise ServingError(
                f"{release.reference}: has another base than its engine; deploy again"
            )
        return vllm.VllmEngine(
            self._core,
            tokenizer,
            release.reference,
            None if manifest.is_untuned else release.folder(),
        )

    def _engine_of_merge(
        self, release: Release, manifest: Manifest, tokenizer: Any
    ) -> vllm.VllmEngine:
        folder = (
            find_base(release.reference, manifest).path
            if manifest.is_untuned
            else merged_folder(release, self.precision)
        )
        core = self._start(folder)
        self._core = core  # the core before it ends with its last text
        return vllm.VllmEngine(core, tokenizer)

    def _start(self, folder: Path, room: Adapter | None = None, num_adapters: int = 0) -> vllm.Core:
        options = self.options
        window = vllm.window_of(folder) or options.limits.tokens
        return vllm.Core(
            vllm.Settings(
                folder,
                self.precision,
                window=min(window, options.limits.tokens, options.generation_tokens),
                cache_tokens=options.generation_tokens,
                num_rows=options.limits.ongoing_requests,
                threads=self.threads,
                gpus=self.gpus,
                rank=room.rank if room else 0,
                num_adapters=num_adapters,
                targets=tuple(sorted(room.targets)) if room else (),
            )
        )

    def check_probe(self, model: LoadedRelease, engine: vllm.VllmEngine) -> None:
        """Raise if the probe's outputs are not those of the manifest. In fp32, compare as any load.

        Half precision hides small differences. Then no other release on this core may be nearer to
        the outputs than the manifest's own."""
        if self.precision == "fp32":
            model.check_probe()
            return
        outputs, reference = (
            probe_outputs(model.task, engine),
            np.array(model.manifest.probe.outputs),
        )
        if not _alike(outputs, reference, _ROUNDING):
            raise ArtifactError(
                f"{model.reference}: its probe on vLLM returns "
                f"{outputs.round(2).tolist()} instead of {reference.round(2).tolist()}"
            )
        if not self.group.is_shared or model.manifest.is_untuned:
            return
        bare = probe_outputs(model.task, vllm.VllmEngine(engine.core, engine.tokenizer))
        for name, other in {"its base without adapter": bare, **self._probes}.items():
            if (
                name != model.reference
                and not _alike(other, reference, _ANOTHER)
                and _distance(outputs, other) < _distance(outputs, reference)
            ):
                raise ArtifactError(
                    f"{model.reference}: its probe on vLLM returns the outputs of {name}"
                )
        self._probes[model.reference] = reference


def merged_folder(release: Release, precision: Precision) -> Path:
    """Return the folder of the merged model in the Hub's layout, with weights of a precision.
    Loading checks the release first, and one process merges for all of this machine."""
    name = f"{release.record.content_id}-{precision}"
    target = environment.cache_dir() / "merged" / name
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f"{target.name}.lock"):
            if not target.is_dir():
                with files.new_folder(target) as filling:
                    merge_and_export(load(release.folder()).model, filling, precision)
    return target


def _alike(one: Floats, other: Floats, within: float) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, atol=within, rtol=_RELATIVE))


def _distance(one: Floats, other: Floats) -> float:
    return float(np.abs(one - other).max()) if one.shape == other.shape else float("inf")
