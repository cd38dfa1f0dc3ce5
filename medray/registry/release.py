"""One release: its record, its checkpoint on this machine, and ways to check, load and export it.

It imports torch only to load or export, so that processes that only handle records stay light."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medray.config.trial import Precision
from medray.errors import ArtifactError, ConfigError, suggest
from medray.records import MERGE_LIMIT, ReleaseRecord
from medray.registry import card, signatures
from medray.registry.predictions import probe_record
from medray.storage import checkpoint, files
from medray.storage.checkpoint import Manifest
from medray.storage.store import open_store
from medray.tasks.base.protocol import Task, restore, task_options

if TYPE_CHECKING:
    from medray.registry.loading import LoadedRelease
    from medray.registry.registry import Registry

log = logging.getLogger(__name__)

_PROBE_TOLERANCE = 1e-6  # of a calibrated probability, computed from the same outputs


@dataclass(frozen=True)
class Release:
    registry: "Registry"
    record: ReleaseRecord
    raw: bytes = field(repr=False)  # the stored bytes of the record

    @property
    def digest(self) -> str:
        """The hash of the record, to which an alias is bound."""
        return files.hash_bytes(self.raw)

    @property
    def reference(self) -> str:
        return f"{self.record.name}@{self.record.version}"

    def folder(self, *, anew: bool = False) -> Path:
        """Return the checkpoint's folder on this machine, after a check of its content id."""
        folder = self.registry.store.get_folder(f"checkpoints/{self.record.content_id}", anew=anew)
        try:
            content_id = checkpoint.content_id(folder)
        except ArtifactError as err:
            raise ArtifactError(f"{self.reference}: {err}") from None
        if content_id != self.record.content_id:
            raise ArtifactError(
                f"{self.reference}: manifest.json was changed: its hash is {content_id[:12]}"
                f" instead of {self.record.content_id[:12]}; restore the file"
            )
        return folder

    def verify(self) -> None:
        """Recompute the hash of each file in the store, and compare labels and calibration with
        the record. Raise an error that names the difference."""
        self.check_probe(
            checkpoint.verify(self.folder(anew=True), expected_id=self.record.content_id)
        )

    def check_aliases(self) -> list[str]:
        """Raise if an alias names another record of this version. Return a sentence per check that
        the release does not support."""
        name, notes = self.record.name, []
        if self.record.probe is None:
            notes.append(
                f"{self.reference}: an earlier version published it, without labels and "
                "calibration "
                "in its probe; publish it again"
            )
        for alias in self.registry.alias_names(name):
            try:
                move = self.registry.newest(name, alias)
            except ArtifactError as err:  # the alias may point at another version
                notes.append(str(err))
                continue
            if move.version != self.record.version:
                continue
            self.check_digest(move.record, f"{name}@{alias}")
            if move.record is None:
                notes.append(
                    f"{name}@{alias}: an earlier version wrote it, without the digest of "
                    f"{self.reference};"
                    f" point the alias again to bind it (`medray promote {self.reference} {alias} "
                    "--no-wait`)"
                )
        return notes

    def mend(self, folder: Path) -> None:
        """Put damaged or lost files back from a checkpoint of the same content."""
        self.registry.store.put_folder(f"checkpoints/{self.record.content_id}", folder)

    def check_digest(self, digest: str | None, where: str) -> None:
        """Raise if an alias is bound to another digest than the record's. None means unbound."""
        if digest not in (None, self.digest):
            raise ArtifactError(
                f"{where}: the record of {self.reference} changed after the alias was pointed at "
                "it; "
                "restore the record,"
                " or point the alias again if the change is yours"
            )

    def check_probe(self, manifest: Manifest) -> None:
        """Raise if the record has other labels or calibrated probabilities for the probe. A load
        checks the probe itself."""
        expectation = self.record.probe
        if expectation is None:
            return
        probe = probe_record(
            self.reference, self.task(manifest), self.record.calibration, manifest.probe
        )
        if probe.labels != expectation.labels:
            raise ArtifactError(
                f"{self.reference}: has labels {', '.join(probe.labels)[:80]}, and its record "
                f"{', '.join(expectation.labels)[:80]}; publish it again"
            )
        ours, theirs = np.array(probe.probabilities), np.array(expectation.probabilities)
        if (
            probe.answers != expectation.answers
            or ours.shape != theirs.shape
            or not np.allclose(ours, theirs, rtol=0, atol=_PROBE_TOLERANCE)
        ):
            raise ArtifactError(
                f"{self.reference}: its calibrated answers to the probe differ from its record; "
                "publish it again"
            )

    def check_signature(self, public_key: Path) -> None:
        """Raise unless the holder of the key signed the record, which names each file by its
        hash."""
        key, name = (
            signatures.read_key(public_key),
            self.registry.signature_name(self, signatures.key_id(public_key)),
        )
        if Path(name).name not in self.registry.store.names(f"releases/{self.record.name}"):
            raise ArtifactError(
                f"{self.reference}: is not signed by the key of {public_key}; sign it (`medray "
                "publish ... --sign PRIVATE_KEY`)"
            )
        signatures.check(self.raw, self.registry.store.read(name), key, where=self.reference)

    def load(
        self, *, precision: Precision | None = None, device: str = "cpu", merge: bool = False
    ) -> "LoadedRelease":
        """Rebuild task, engine and calibration, after a check of hashes, base weights and probe.

        With `merge`, add the adapter to the base's weights where that changes no answer, and check
        the probe again."""
        from medray.models.device import free_memory
        from medray.models.precision import check_precision
        from medray.registry.loading import load

        if precision is not None:
            check_precision(precision, self.reference)
        checkpoint_alone = load(self.folder(), precision=precision, device=device)
        self.check_probe(checkpoint_alone.manifest)
        release = replace(
            checkpoint_alone,
            name=self.record.name,
            version=self.record.version,
            task=self.task(checkpoint_alone.manifest),
            calibration=self.record.calibration,
            release=self,
        )
        if not merge or not self.serves_merged():
            return release
        if plain := self._merge(release):
            return plain
        del release, checkpoint_alone  # the memory is needed to load again
        free_memory()
        return self.load(precision=precision, device=device)

    def _merge(self, release: "LoadedRelease") -> "LoadedRelease | None":
        """Merge a loaded release in place, or return None where the memory is too small for it.

        On a GPU that computes in 16 bits, merged layers have them at once: 7 billion weights in
        fp32 are 29 GB."""
        from medray.models.device import is_out_of_memory

        weights = release.precision if release.device == "cuda" else "fp32"
        try:
            plain = release.merge(weights)
            plain.in_precision(weights).check_probe()
            return plain
        except (RuntimeError, MemoryError) as err:
            if not is_out_of_memory(err):
                raise
            log.warning(
                "%s: the merged model does not fit into memory, so it runs unmerged; use a GPU "
                "with more memory to merge it",
                self.reference,
            )
        return None

    def task(self, manifest: Manifest) -> Task:
        """Return the task of the training, with this version's own options."""
        task, options = (
            restore(manifest.task.options, manifest.task.state),
            self.record.task_options,
        )
        for option in options:
            check_changeable(self.reference, task, option)
        return (
            restore({**manifest.task.options, **options}, manifest.task.state) if options else task
        )

    def serves_merged(self) -> bool:
        """Return whether the merged model may replace this one. A merge is exact without 4 bits;
        with 4 bits its record must show it."""
        merge = self.record.merge
        return merge.is_faithful if merge else checkpoint.read(self.folder()).quantization == "none"

    @property
    def card(self) -> str:
        """The model card in Markdown: origin, training, figures, limits."""
        return card.render(self.record, checkpoint.read(self.folder()), merged=False)

    def export(self, target: Path, *, merged: bool) -> None:
        """Write a folder in the Hub's layout: a model card, and the adapter with its tokenizer or
        the merged model."""
        from medray.models.adapter import CONFIG, WEIGHTS

        folder = self.folder()
        manifest = checkpoint.verify(folder)
        check_new(target)
        if merged:
            self._check_merge()
        elif manifest.is_untuned:
            raise ArtifactError(
                f"{self.reference}: is a base model without an adapter; export it with --merged"
            )
        with files.new_folder(target) as filling:
            if merged:
                _export_merge(folder, filling)
            else:
                for path in [
                    folder / WEIGHTS,
                    folder / CONFIG,
                    *sorted((folder / "tokenizer").iterdir()),
                ]:
                    (filling / path.name).write_bytes(path.read_bytes())
            (filling / "README.md").write_text(
                card.render(self.record, manifest, merged=merged), encoding="utf-8"
            )

    def bundle(self, target: Path) -> None:
        """Write a storage path with this release alone: record, signatures, checkpoint, and its
        aliases."""
        folder, registry = self.folder(), self.registry
        checkpoint.verify(folder)
        check_new(target)
        below = f"releases/{self.record.name}"
        with files.new_folder(target) as filling:
            store = open_store(str(filling))
            store.put_folder(f"checkpoints/{self.record.content_id}", folder)
            store.create(f"{below}/{self.record.version}.json", self.raw)
            for name in registry.store.names(below):
                if name.startswith(f"{self.record.version}.") and name.endswith(".sig"):
                    store.create(f"{below}/{name}", registry.store.read(f"{below}/{name}"))
            for alias in registry.alias_names(self.record.name):
                move = registry.newest(self.record.name, alias)
                if move.version == self.record.version:
                    store.create(f"{below}/aliases/{alias}/1.json", move.model_dump_json().encode())

    def _check_merge(self) -> None:
        merge = self.record.merge
        if merge and not merge.is_faithful:
            raise ArtifactError(
                f"{self.reference}: the merged model's validation {merge.metric} is "
                f"{merge.merged:.4f} instead of {merge.unmerged:.4f}, and the largest allowed "
                f"difference is {MERGE_LIMIT}; export it without --merged"
            )
        if not self.serves_merged():
            log.warning(
                "%s: is in 4 bits and was published without its run, so the effect of the merge on "
                "its F1 is unknown",
                self.reference,
            )


def check_new(target: Path) -> None:
    if target.exists():
        raise ArtifactError(f"{target}: exists already; choose another folder")


def check_changeable(where: str, task: Task, option: str) -> None:
    changeable = task_options(task.options).CHANGEABLE
    if option not in changeable:
        raise ConfigError(
            f"{where}: task {task.options.name!r} trains with its {option!r}; "
            f"{suggest(option, changeable)}"
        )


def _export_merge(folder: Path, target: Path) -> None:
    from medray.models.build import merge_and_export
    from medray.registry.loading import load

    merge_and_export(load(folder).model, target)
